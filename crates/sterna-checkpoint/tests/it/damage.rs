//! Nothing that happens to the files of a checkpoint goes unseen, and nothing in them leads elsewhere.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sterna_checkpoint::{Checkpoint, Error};

use crate::files::{checkpoint, files};

/// What a run that resumes would be told; `None` if all is well.
fn problem(dir: &Path) -> Option<Error> {
    match Checkpoint::open(dir) {
        Ok(checkpoint) => checkpoint.verify().into_iter().next(),
        Err(error) => Some(error),
    }
}

#[test]
fn every_flipped_bit_is_seen_and_its_file_named() {
    let (_temp, dir) = checkpoint();
    assert!(problem(&dir).is_none());
    for path in files(&dir) {
        let good = fs::read(&path).unwrap();
        // Every byte of the small files, some of the shards.
        let stride = (good.len() / 97).max(1);
        for place in (0..good.len()).step_by(stride) {
            let mut bad = good.clone();
            bad[place] ^= 1 << (place % 8);
            fs::write(&path, &bad).unwrap();
            // Flipping the blanks after the hash changes nothing that is read.
            let is_hash = path.extension().is_some_and(|extension| extension == "sha256");
            if is_hash && place >= 64 {
                continue;
            }
            let error = problem(&dir).unwrap_or_else(|| panic!("{}: byte {place}", path.display()));
            assert!(error.is_damage(), "{error}");
            assert!(error.to_string().contains("checkpoint-3/"), "{error}");
        }
        fs::write(&path, &good).unwrap();
    }
    assert!(problem(&dir).is_none());
}

#[test]
fn missing_and_truncated_files_are_named() {
    let (_temp, dir) = checkpoint();
    for path in files(&dir) {
        let good = fs::read(&path).unwrap();
        let name = path.strip_prefix(&dir).unwrap().display().to_string();
        for bad in [&good[..good.len() - 1], &good[..0]] {
            fs::write(&path, bad).unwrap();
            // A hash file without its last byte still has its hash.
            if name != "manifest.json.sha256" || bad.is_empty() {
                let error = problem(&dir).unwrap();
                assert!(error.to_string().contains(name.trim_end_matches(".sha256")), "{error}");
            }
        }
        fs::remove_file(&path).unwrap();
        let error = problem(&dir).unwrap();
        assert!(error.to_string().contains(&name), "{error}");
        fs::write(&path, &good).unwrap();
    }
}

/// Writes `manifest` with its right hash: what someone does who means harm.
fn forge(dir: &Path, manifest: &Value) {
    let text = manifest.to_string();
    let mut hash = String::new();
    for byte in Sha256::digest(&text) {
        write!(hash, "{byte:02x}").unwrap();
    }
    fs::write(dir.join("manifest.json"), text).unwrap();
    fs::write(dir.join("manifest.json.sha256"), hash).unwrap();
}

#[test]
fn forged_manifests_are_refused() {
    let (_temp, dir) = checkpoint();
    let good: Value =
        serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    let escapes = ["../x", "/etc/passwd", "a/../../x", "", "."];
    let mut forgeries: Vec<(String, Value, Value)> = escapes
        .into_iter()
        .map(|name| ("/files/0/name".to_owned(), json!(name), json!("outside")))
        .collect();
    forgeries.extend([
        ("/world_size".to_owned(), json!(0), json!("world_size")),
        ("/world_size".to_owned(), json!(4), json!("rank `3`")),
        ("/world_size".to_owned(), json!(1_u64 << 60), json!("elements")),
        ("/flats/0/shard_len".to_owned(), json!(u64::MAX / 2), json!("elements")),
        ("/parameters/0/offset".to_owned(), json!(11), json!("outside its flat buffer")),
        ("/parameters/0/shape".to_owned(), json!([1_u64 << 40, 1_u64 << 40]), json!("outside")),
        ("/parameters/0/flat".to_owned(), json!(2), json!("outside")),
        ("/states/1/name".to_owned(), json!("master"), json!("twice")),
        ("/files/1/name".to_owned(), good["files"][0]["name"].clone(), json!("twice")),
        ("/format".to_owned(), json!(2), json!("format `2`")),
    ]);
    for (pointer, value, expected) in forgeries {
        let mut forged = good.clone();
        *forged.pointer_mut(&pointer).unwrap() = value;
        forge(&dir, &forged);
        let error = Checkpoint::open(&dir).unwrap_err().to_string();
        assert!(error.contains(expected.as_str().unwrap()), "{pointer}: {error}");
    }
    forge(&dir, &good);
    assert!(problem(&dir).is_none());
}

#[test]
fn a_shard_that_does_not_fit_its_manifest_is_refused_when_read() {
    let (_temp, dir) = checkpoint();
    let mut forged: Value =
        serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    forged["flats"][0]["shard_len"] = json!(71);
    forge(&dir, &forged);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let error = checkpoint.read_state("0.decayed", sterna_checkpoint::StateName::Master, 0..2);
    assert!(error.unwrap_err().to_string().contains("required: `[71]` in F32"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is in the shard's header, reading it ends with bytes or an error.
    #[test]
    fn hostile_shards_do_not_crash(place in 0_usize..400, bytes in prop::collection::vec(any::<u8>(), 1..16)) {
        let (_temp, dir) = checkpoint();
        let path = dir.join("rank_00000.safetensors");
        let mut text = fs::read(&path).unwrap();
        text[place..place + bytes.len()].copy_from_slice(&bytes);
        fs::write(&path, &text).unwrap();
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let _ = checkpoint.read_state("0.decayed", sterna_checkpoint::StateName::ExpAvg, 0..70);
    }
}
