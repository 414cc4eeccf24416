//! Checkpoints as files: what resumes a run bit for bit, and nothing of how it trains.
//!
//! ```text
//! OUTPUT_DIR/
//!   checkpoint-40/
//!     manifest.json            step, position in the data, layout of the states, every file with its size and SHA-256
//!     manifest.json.sha256     of the manifest itself, as `sha256sum -c` reads it
//!     rank_00000.safetensors   what rank 0 stepped: fp32 masters and both moments of its shard of every flat buffer
//!     rank_00001.safetensors
//!     assets/                  config.json, tokenizer: enough for `sterna checkpoint export`
//!   checkpoint-60.incomplete/  being written, or left by a run that was killed
//! ```
//!
//! A checkpoint is written into an incomplete folder, synced, and renamed when its manifest is there: one that has its name is
//! whole, or was damaged later, which [`Checkpoint::verify`] sees. States are addressed by flat buffer and element, not by rank, so
//! they load at another world size ([`Checkpoint::read_state`]). No torch here: listing, verifying and exporting run anywhere.

mod error;
mod export;
mod folder;
mod manifest;
mod shard;
mod verify;

pub use error::{Error, Result};
pub use export::{export, merge};
pub use folder::{CheckpointFolder, Listed, complete, incomplete, list};
pub use manifest::{
    Checkpoint, FileEntry, FlatBuffer, Manifest, ParameterPlace, Position, StateDtype, StateKind,
    StateName,
};
pub use shard::{ShardWriter, StateTensor, shard_file_name};
pub use verify::hash_file;
