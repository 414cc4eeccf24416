//! What a run says of itself: figures of each step and the file they go to, time and memory by phase and on a timeline, what the host
//! and the GPUs have, and how many operations a step is.

pub mod flops;
pub mod gpus;
pub mod memory;
pub mod metrics;
pub mod phases;
pub mod sources;
pub mod timeline;
