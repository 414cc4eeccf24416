//! Ranks, mesh, rendezvous and collectives. Knows ranks, never models.
//!
//! A program asks [`RankEnv::from_env`] who it is, joins the others with [`Comm::init`], and talks through the
//! [`Group`]s of the mesh: `world`, `sp` (ranks that share one sequence) and `dp` (ranks that hold the same part of
//! different sequences). The engine is c10d's Gloo, and its NCCL for tensors of GPUs; a group of one rank uses no engine, and a
//! world of one no network.
//!
//! # The laws of communication
//!
//! 1. Every operation of a [`Group`] is collective: all its ranks call it, with matching sizes, in the same order. Gloo
//!    aborts a process that receives more than it expects.
//! 2. An operation that returns [`Work`] owns its tensors until [`Work::wait`] returns: nobody reads the output or
//!    writes the input before that. Several may be under way; they may be awaited in any order.
//! 3. No operation waits for ever. A peer that died or gave up turns every rank's pending and later operations into
//!    [`CommError::PeerFailed`] within seconds, naming the rank; a peer that does not come is [`CommError::Timeout`].
//! 4. After an error a [`Comm`] is of no more use: the process is expected to report it and end.
//!
//! How rule 3 is kept is told in the `liveness` module's documentation.

mod comm;
pub mod env_vars;
mod error;
mod group;
mod liveness;
mod rank_env;
mod rendezvous;
mod work;

pub use comm::{Comm, GpuTransport};
pub use error::{CommError, Progress, Site};
pub use group::Group;
pub use liveness::Failure;
pub use rank_env::{Launcher, RankEnv};
pub use sterna_torch_sys::c10d::ReduceOp;
pub use work::Work;
