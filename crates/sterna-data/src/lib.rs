//! Source to messages to tokens to packed samples to micro-batches to sequence shards. No torch.
//!
//! The modules stand in the order in which data flows through them:
//!
//! 1. [`source`] reads rows: JSON, Parquet, Arrow; splits and slices.
//! 2. [`mod@format`] says what a row is, and [`messages`] turns it into a chat; [`label_mask`] decides which of its tokens are trained on.
//! 3. [`cache`] keeps the tokens of a source on disk, so that a second run starts at once.
//! 4. [`pack`] puts samples together; [`mod@prepare`] runs all of this and shuffles, filters, replicates and splits.
//! 5. [`sampler`] says which rank reads which sample; [`collate`] pads samples to a micro-batch; [`shard`] cuts it along the sequence.
//!
//! Everything is a pure function of recipe, files and world size: no rank asks another anything, and the order of the data is
//! the reference's ([`rng`] has the three random generators that it takes).

pub mod cache;
pub mod collate;
pub mod dataset;
pub mod error;
pub mod format;
pub mod label_mask;
pub mod messages;
pub mod pack;
pub mod prepare;
pub mod rank_jsonl;
pub mod rng;
pub mod sampler;
pub mod shard;
pub mod source;
mod tokenize;

pub use collate::{Collator, IGNORE_INDEX, MicroBatch};
pub use dataset::{Dataset, Sample};
pub use error::{Error, Result};
pub use prepare::{Datasets, PrepareReport, SourceReport, prepare};
pub use rank_jsonl::write_rank_jsonl;
pub use sampler::MicroBatches;
pub use shard::SeqShard;
pub use tokenize::Progress;
