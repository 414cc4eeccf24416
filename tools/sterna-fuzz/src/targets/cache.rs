//! The manifest of a cache entry.

use std::path::Path;

use serde_json::json;
use sterna_data::cache::{CacheKey, load_or_build};
use sterna_data::label_mask::Tokens;

use super::{Target, answer, read, write};

pub(super) const MANIFEST: Target = Target {
    name: "manifest",
    dictionary: &[
        "\"files\"",
        "\"name\"",
        "\"bytes\"",
        "\"sha256\"",
        "\"stats\"",
        "\"samples\"",
        "\"tokens\"",
        "\"../outside\"",
        "\"/etc/passwd\"",
        "\"tokens.u32\"",
        "\"lengths.u32\"",
        "\"is_label.u8\"",
        "\"inputs\"",
    ],
    memory: 3,
    seeds: || {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        build(folder.path());
        vec![read(&key().path(folder.path()).join("manifest.json"))]
    },
    run: |input, folder| {
        build(folder);
        write(&key().path(folder).join("manifest.json"), input);
        build(folder)
    },
};

fn key() -> CacheKey {
    CacheKey::new(json!({"source": "fuzz"}))
}

fn build(folder: &Path) -> String {
    let entry = load_or_build(folder, &key(), false, |writer| {
        for len in [3, 0, 5] {
            writer.push(&Tokens {
                ids: (0..len).collect(),
                is_label: (0..len).map(|i| i % 2 == 0).collect(),
            })?;
        }
        Ok(())
    });
    let (store, was_there) = match entry {
        Ok(entry) => entry,
        Err(err) => return answer(&err),
    };
    let mut num_tokens = 0;
    for index in 0..store.lengths().len() {
        match store.read(index) {
            Ok(tokens) => num_tokens += tokens.ids.len(),
            Err(err) => return answer(&err),
        }
    }
    assert_eq!(num_tokens, 8, "whatever the manifest says, the tokens are ours");
    format!("{} samples, was there: {was_there}", store.lengths().len())
}
