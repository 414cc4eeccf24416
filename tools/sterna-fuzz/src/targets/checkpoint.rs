//! The manifest of a checkpoint.

use std::path::Path;

use serde_json::{Map, Value};
use sterna_arch::DType;
use sterna_checkpoint::{
    Checkpoint, CheckpointFolder, FlatBuffer, Manifest, ParameterPlace, Position, ShardWriter,
    StateDtype, StateKind, StateName, StateTensor, hash_file, list,
};

use super::{Target, answer, read, write};

pub(super) const CHECKPOINT: Target = Target {
    name: "checkpoint",
    dictionary: &[
        "\"format\"",
        "\"step\"",
        "\"world_size\"",
        "\"states\"",
        "\"flats\"",
        "\"shard_len\"",
        "\"parameters\"",
        "\"shape\"",
        "\"offset\"",
        "\"flat\"",
        "\"files\"",
        "\"name\"",
        "\"bytes\"",
        "\"sha256\"",
        "\"master\"",
        "\"exp_avg\"",
        "\"BF16\"",
        "\"rank_00000.safetensors\"",
        "\"../../outside\"",
        "\"/etc/passwd\"",
        "\"assets/config.json\"",
    ],
    memory: 3,
    seeds: || {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        vec![read(&make(folder.path()).join("manifest.json"))]
    },
    run: |input, folder| {
        let dir = make(folder);
        let path = dir.join("manifest.json");
        write(&path, input);
        let hash = hash_file(&path).expect("it was just written");
        write(&dir.join("manifest.json.sha256"), format!("{hash}  manifest.json\n").as_bytes());
        let _ = list(folder);
        let checkpoint = match Checkpoint::open(&dir) {
            Ok(checkpoint) => checkpoint,
            Err(err) => return answer(&err),
        };
        let num_bad = checkpoint.verify().len();
        for flat in &checkpoint.manifest.flats {
            for state in &checkpoint.manifest.states {
                for range in [0..0, 0..9, 3..5] {
                    if let Err(err) = checkpoint.read_state(&flat.name, state.name, range) {
                        return answer(&err);
                    }
                }
            }
        }
        match sterna_checkpoint::export(&checkpoint, &folder.join("out"), DType::BF16) {
            Ok(()) => {
                format!("exported, {num_bad} bad files, {} bytes", checkpoint.manifest.num_bytes())
            }
            Err(err) => format!("read, not exported: {err}"),
        }
    },
};

/// A checkpoint of one parameter, written by one rank; its folder.
fn make(folder: &Path) -> std::path::PathBuf {
    let write = || -> sterna_checkpoint::Result<std::path::PathBuf> {
        let checkpoints = CheckpointFolder::open(folder)?;
        let dir = checkpoints.begin(7)?;
        let tensor = StateTensor {
            flat: "0.decayed".to_owned(),
            state: StateName::Master,
            dtype: StateDtype::F32,
            len: 6,
        };
        let mut shard = ShardWriter::create(&dir, 0, &[tensor])?;
        shard.write(&[0; 24])?;
        let files = vec![shard.finish()?, checkpoints.write_asset(7, "config.json", b"{}")?];
        checkpoints.commit(&Manifest {
            format: Manifest::FORMAT,
            sterna: env!("CARGO_PKG_VERSION").to_owned(),
            step: 7,
            num_updates: 7,
            position: Position { micro_batches: 7, epoch: 0, of_epoch: 7, rows: 1 },
            world_size: 1,
            sequence_parallel_size: 1,
            data: "0".repeat(64),
            model: Map::new(),
            recipe: Value::Null,
            adapter: None,
            base: None,
            metrics_bytes: Some(100),
            states: vec![StateKind { name: StateName::Master, dtype: StateDtype::F32 }],
            flats: vec![FlatBuffer {
                name: "0.decayed".to_owned(),
                shard_len: 6,
                is_trained: true,
            }],
            parameters: vec![ParameterPlace {
                name: "model.embed_tokens.weight".to_owned(),
                shape: vec![2, 3],
                flat: 0,
                offset: 0,
                is_fp32: false,
            }],
            files,
        })
    };
    write().unwrap_or_else(|err| panic!("{err}"))
}
