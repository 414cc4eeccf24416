//! Everything that has state across steps: ZeRO, offload, optimizer, schedule, step, metrics, export.
//!
//! [`train`] is the whole run of one rank. In reading order: [`trainer`] (the loop), [`engine`] (one micro-batch),
//! [`zero`] (who holds which part of the model), [`storage`] (what does not fit in memory), [`optim`] (schedule and clipping), [`export`].

pub mod trainer;

pub mod activations;
pub mod engine;
pub mod export;
pub mod load;
pub mod objective;
pub mod observe;
pub mod optim;
pub mod storage;
pub mod zero;

mod checkpoint;
mod error;
mod oom;
mod scalars;
mod stop;

pub use error::TrainError;
pub use observe::{
    gpus::{Bf16Products, Gpu, Processor},
    memory::HostMemory,
    metrics::{EvalMetrics, IterationMetrics},
    phases::{Phase, PhaseMemory, PhaseTime, StepMemory, StepTime},
    sources::SourceMetrics,
    timeline::TimelineLayer,
};
pub use oom::OutOfMemory;
pub use stop::Stop;
pub use trainer::{
    DeviceChoice, EarlyExit, Observer, TrainOptions, TrainSummary, model_config, train,
};
