//! Ranks as processes on loopback: what the collectives compute, and how they fail.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use sterna_comm::{Comm, RankEnv};

/// The collectives against values worked out on each rank.
mod collectives;
/// Ranks that die, give up, come late or disagree.
mod failures;
mod gpus;
/// Groups of a mesh of several axes.
mod groups;

/// Joins the ranks of a test.
fn join(sp_size: usize) -> Comm {
    Comm::init(&RankEnv::from_env().unwrap(), sp_size, Duration::from_mins(1)).unwrap()
}
