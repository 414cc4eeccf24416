//! Everything that has state across steps: ZeRO, offload, optimizer, schedule, step, metrics, export.
//!
//! [`train`] is the whole run of one rank. In reading order: [`trainer`] (the loop), [`engine`] (one micro-batch),
//! [`zero`] (who holds which part of the model), [`disk`] (what does not fit in memory), [`optim`] (schedule and clipping), [`export`].

pub mod trainer;

pub mod disk;
pub mod engine;
pub mod export;
pub mod flops;
pub mod gpus;
pub mod kept;
pub mod load;
pub mod memory;
pub mod metrics;
pub mod objective;
pub mod optim;
pub mod phases;
pub mod timeline;
pub mod zero;

mod checkpoint;
mod error;
mod oom;
mod scalars;
mod stop;

pub use error::TrainError;
pub use gpus::{Bf16Products, Gpu, Processor};
pub use memory::HostMemory;
pub use metrics::{EvalMetrics, IterationMetrics};
pub use oom::OutOfMemory;
pub use phases::{Phase, PhaseMemory, PhaseTime, StepMemory, StepTime};
pub use stop::Stop;
pub use timeline::TimelineLayer;
pub use trainer::{DeviceChoice, EarlyExit, Observer, TrainOptions, TrainSummary, train};
