//! YAML to `RecipeFile` to [`Recipe`]. Pure: no torch, environment, clock or network.
//!
//! A recipe goes through three forms, each made from the one before by a pure function:
//!
//! 1. *YAML*: a tree that remembers lines, columns and quotes, read as `PyYAML` reads it. Overrides change this tree, so that
//!    `--set` can do whatever the file can.
//! 2. `RecipeFile`: every key that exists, typed, as the person gave it. Unknown keys and wrong values end here.
//! 3. [`Recipe`]: defaults filled in and rules checked. A value of this type is one that the engine can carry out; what the
//!    reference can do and we cannot was refused by name, and what changes nothing here became a [`Note`].
//!
//! With a model and a number of ranks it becomes a plan (`sterna-plan`): what each rank holds and computes, down to bytes.
//!
//! Errors are collected, never thrown at the first: [`Diagnostics`] has all of them, each with its line.
//!
//! ```
//! use std::path::Path;
//!
//! let text = "model: {name_or_path: folder}\ndata: {sources: [chats:train], max_length: 3.8M}\n";
//! let recipe = sterna_recipe::parse(Path::new("recipe.yaml"), text, &["seed=7".parse()?])?;
//! assert_eq!(recipe.data.max_length, Some(3_800_000));
//! assert_eq!(recipe.seed, 7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod diagnostic;
mod edit;
mod file;
mod human;
mod json;
mod keys;
mod load;
pub mod recipe;
mod resolve;
pub mod source;
mod yaml;

pub use diagnostic::{Diagnostic, Diagnostics, Kind, Note};
pub use edit::{Override, OverrideError};
pub use keys::{Affects, Key, affects, keys};
pub use load::{load, parse};
pub use recipe::{
    AttnImplementation, CheckpointKind, CheckpointOptions, ControlTokens, DataOptions,
    DeepSpeedOptions, DpoLoss, DpoOptions, ExcessLength, KeepAttention, LabelMask, LogLevel,
    LoggerOptions, LossAverage, MemoryOptions, ModelOptions, NonFinitePolicy, OptimizerOptions,
    Packing, PadTo, Place, Ramp, Ranks, Recipe, RolePath, RowFormat, Sampling, Schedule,
    SchedulerOptions, Source, SourceType, StoppingStrategy, TokenizerOptions, TrainOn, Trainer,
    UnmappedRoles, ZeroStage,
};
pub use source::{Origin, RecipeSource, Span};
pub use sterna_arch::DType;
