//! A small checkpoint of three ranks, and what is read back from it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, json};
use sterna_arch::DType;
use sterna_checkpoint::{
    Checkpoint, CheckpointFolder, FlatBuffer, Manifest, ParameterPlace, Position, ShardWriter,
    StateDtype, StateKind, StateName, StateTensor, shard_file_name,
};

/// What exports have in single precision.
const FP32: &str = "norm.weight";

const WORLD_SIZE: usize = 3;
/// Elements that each rank holds of each of the two flat buffers.
const SHARD_LENS: [usize; 2] = [70, 5];

/// A value for each element of each state of each flat buffer, exact in bf16.
fn value(flat: usize, state: StateName, element: usize) -> f32 {
    (flat * 64 + state as usize * 16) as f32 + (element % 256) as f32 * 256.0
}

fn bytes(flat: usize, kind: StateKind, range: std::ops::Range<usize>) -> Vec<u8> {
    let values = range.map(|element| value(flat, kind.name, element));
    match kind.dtype {
        StateDtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        StateDtype::BF16 => {
            values.flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect()
        }
    }
}

fn states() -> Vec<StateKind> {
    let moment = |name| StateKind { name, dtype: StateDtype::BF16 };
    vec![
        StateKind { name: StateName::Master, dtype: StateDtype::F32 },
        moment(StateName::ExpAvg),
        moment(StateName::ExpAvgSq),
    ]
}

/// Writes the checkpoint of `step` to `folder`.
pub(crate) fn write(folder: &CheckpointFolder, step: u64) -> PathBuf {
    let dir = folder.begin(step).unwrap();
    let flats = ["0.decayed", "1.undecayed"];
    let mut files = Vec::new();
    for rank in 0..WORLD_SIZE {
        let tensors: Vec<_> = states()
            .into_iter()
            .flat_map(|kind| {
                flats.iter().zip(SHARD_LENS).map(move |(flat, len)| StateTensor {
                    flat: (*flat).to_owned(),
                    state: kind.name,
                    dtype: kind.dtype,
                    len,
                })
            })
            .collect();
        let mut writer = ShardWriter::create(&dir, rank, &tensors).unwrap();
        for kind in states() {
            for (flat, len) in SHARD_LENS.into_iter().enumerate() {
                // In two pieces, as a state on disk comes.
                writer.write(&bytes(flat, kind, rank * len..rank * len + 2)).unwrap();
                writer.write(&bytes(flat, kind, rank * len + 2..(rank + 1) * len)).unwrap();
            }
        }
        files.push(writer.finish().unwrap());
    }
    files.push(folder.write_asset(step, "config.json", b"{}").unwrap());
    let place = |name: &str, shape: &[usize], flat, offset| ParameterPlace {
        name: name.to_owned(),
        shape: shape.to_vec(),
        flat,
        offset,
        is_fp32: name == FP32,
    };
    let manifest = Manifest {
        format: Manifest::FORMAT,
        sterna: "0.0.0".to_owned(),
        step,
        num_updates: step,
        position: Position { micro_batches: step, epoch: 0, of_epoch: step, rows: 1 },
        world_size: WORLD_SIZE,
        sequence_parallel_size: 1,
        data: "d".to_owned(),
        model: Map::new(),
        recipe: json!({"seed": 42}),
        adapter: None,
        base: None,
        metrics_bytes: Some(17),
        states: states(),
        flats: flats
            .iter()
            .zip(SHARD_LENS)
            .map(|(name, shard_len)| FlatBuffer {
                name: (*name).to_owned(),
                shard_len,
                is_trained: true,
            })
            .collect(),
        parameters: vec![
            place("a.weight", &[10, 20], 0, 0),
            place("norm.weight", &[3], 1, 0),
            place("b.norm.weight", &[4], 1, 8),
        ],
        files,
    };
    folder.commit(&manifest).unwrap()
}

/// A folder with the checkpoint of step 3.
pub(crate) fn checkpoint() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let folder = CheckpointFolder::open(temp.path()).unwrap();
    let dir = write(&folder, 3);
    (temp, dir)
}

#[test]
fn any_range_of_any_state_is_read_across_shards() {
    let (_temp, dir) = checkpoint();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    for (flat, (name, shard_len)) in
        ["0.decayed", "1.undecayed"].into_iter().zip(SHARD_LENS).enumerate()
    {
        let len = shard_len * WORLD_SIZE;
        for kind in states() {
            for range in [0..len, 0..1, 3..len - 1, shard_len - 1..shard_len + 1, len - 1..len] {
                let read = checkpoint.read_state(name, kind.name, range.clone()).unwrap();
                assert_eq!(read, bytes(flat, kind, range));
            }
            // Another world size pads to another length.
            let padded = checkpoint.read_state(name, kind.name, len - 1..len + 3).unwrap();
            let mut expected = bytes(flat, kind, len - 1..len);
            expected.resize(4 * kind.dtype.size(), 0);
            assert_eq!(padded, expected);
        }
    }
}

#[test]
fn shards_are_safetensors_and_the_manifest_passes_sha256sum() {
    let (_temp, dir) = checkpoint();
    // The safetensors crate's own reader.
    let text = fs::read(dir.join(shard_file_name(1))).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&text).unwrap();
    let master = tensors.tensor("0.decayed.master").unwrap();
    let kind = states()[0];
    assert_eq!(master.shape(), [SHARD_LENS[0]]);
    assert_eq!(master.data(), bytes(0, kind, SHARD_LENS[0]..2 * SHARD_LENS[0]));
    let sums = std::process::Command::new("sha256sum")
        .args(["--check", "--status", "manifest.json.sha256"])
        .current_dir(&dir)
        .status()
        .unwrap();
    assert!(sums.success());
}

#[test]
fn an_export_has_the_masters_under_their_names() {
    let (temp, dir) = checkpoint();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let out = temp.path().join("out");
    sterna_checkpoint::export(&checkpoint, &out, DType::BF16).unwrap();
    let weights = sterna_hf::WeightFiles::open(&out).unwrap();
    let expected = |flat, range: std::ops::Range<usize>, dtype: StateDtype| -> Vec<u8> {
        bytes(flat, StateKind { name: StateName::Master, dtype }, range)
    };
    for (name, shape, flat, range) in [
        ("a.weight", vec![10, 20], 0, 0..200),
        ("norm.weight", vec![3], 1, 0..3),
        ("b.norm.weight", vec![4], 1, 8..12),
    ] {
        let view = weights.tensor(name).unwrap();
        let (dtype, state) = if name == FP32 {
            (DType::F32, StateDtype::F32)
        } else {
            (DType::BF16, StateDtype::BF16)
        };
        assert_eq!((&view.shape, view.dtype), (&shape, dtype));
        assert_eq!(*view.bytes(), expected(flat, range, state), "{name}");
    }
}

/// All files of a checkpoint with their paths.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Written by the first version of this format: a reader that takes it for something else must have another number.
#[test]
fn a_checkpoint_of_format_1_reads_as_it_was_written() {
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1/checkpoint-3");
    let checkpoint = Checkpoint::open(&fixture).unwrap();
    assert!(checkpoint.verify().is_empty());
    let Manifest { step, num_updates, position, metrics_bytes, .. } = checkpoint.manifest.clone();
    assert_eq!((step, num_updates, metrics_bytes), (3, 3, Some(17)));
    assert_eq!(position, Position { micro_batches: 3, epoch: 0, of_epoch: 3, rows: 1 });
    for (flat, (name, shard_len)) in
        ["0.decayed", "1.undecayed"].into_iter().zip(SHARD_LENS).enumerate()
    {
        for kind in states() {
            let all = 0..shard_len * WORLD_SIZE;
            let read = checkpoint.read_state(name, kind.name, all.clone()).unwrap();
            assert_eq!(read, bytes(flat, kind, all));
        }
    }
}
