//! What measurements of whole runs share: a command whose memory is watched, the metrics it leaves, the facts of the machine.
//!
//! `cargo xtask bench` and `sterna-suite` measure with it. Nothing here reaches libtorch, so that xtask builds before it is there.

pub mod figures;
pub mod machine;
pub mod metrics;
pub mod process;
