//! A decoder from its description ([`sterna_arch::Architecture`]): embedding, blocks, head; each forward with its backward.
//!
//! Everything here is a function of ordinary tensors: the weights of one block, the activations of this rank's shard of the
//! sequence, gradient buffers to add to. Where weights come from and where gradients go (ZeRO, offload) is the caller's business.
//! The only communication is the exchange around attention ([`parallel::ulysses`]).
//!
//! In the order of the data: [`embed`], [`block`], [`head`]. Activation gradients are returned (`=`), weight gradients are
//! accumulated (`+=`) in single precision.
//!
//! Letters in shapes: `b` rows of the micro-batch, `s` full sequence, `p` sequence-parallel size, `d` hidden, `n` query heads,
//! `k` kv heads, `h` head size, `f` MLP width, `v` vocabulary. A rank holds `[b * s/p, d]`.

pub mod init;
mod multiplier;
pub mod params;
pub mod rotary;

pub mod embed;

pub mod block;
pub mod heads;
pub mod parallel;
pub mod routing;

pub mod head;

pub mod stage;

mod error;

pub use block::{
    AttentionContext, BlockContext, Experts, Graph, Keep, Kept, KeysValuesStore, Streaming,
};
pub use error::ModelError;
pub use heads::HeadGroup;
pub use params::{BlockGrads, BlockParams};
pub use routing::Routing;
pub use sterna_ops::{
    attention::{Documents, Implementation, KeysValues},
    cross_entropy::IGNORE_INDEX,
    rope::RopeTable,
};
