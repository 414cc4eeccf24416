//! YAML to `RecipeFile` to [`Recipe`] to `Plan`. Pure: no torch, environment, clock or network.

pub mod diagnostic;
mod edit;
mod file;
mod human;
mod json;
mod load;
pub mod plan;
pub mod recipe;
mod resolve;
pub mod source;
mod yaml;

pub use diagnostic::{Diagnostic, Diagnostics, Kind, Note};
pub use edit::{Override, OverrideError};
pub use load::{keys, load, parse};
pub use plan::{
    HeadSplit, KeepPlan, Memory, MemoryKind, MemoryRow, MeshPlan, Plan, TileLengths, UnitPlan,
    ZeroPlan, head_split,
};
pub use recipe::{
    AttnImplementation, CheckpointKind, CheckpointOptions, DataOptions, DeepSpeedOptions,
    LabelMask, LogLevel, LoggerOptions, LossAverage, ModelOptions, OptimizerOptions, Packing,
    PadTo, Ramp, Ranks, Recipe, RolePath, Sampling, Schedule, SchedulerOptions, Source,
    TokenizerOptions, ZeroStage,
};
pub use source::{Origin, RecipeSource, Span};
pub use sterna_hf::DType;
