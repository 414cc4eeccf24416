//! Hugging Face assets as data: config.json, tokenizer, chat template, safetensors, hub. No torch.
//!
//! Everything a training run reads from or writes to the Hugging Face file formats passes through here, so that recipes, packing
//! and plans can be checked in seconds on a machine without libtorch. [`config`] says what a model is; [`rope`] and
//! [`parameters`] derive its rotary frequencies and weight shapes.

pub mod assets;
pub mod chat_template;
pub mod config;
pub mod dtype;
pub mod error;
pub mod export;
mod families;
pub mod hub;
mod panics;
pub mod parameters;
pub mod rope;
pub mod tokenizer;
pub mod weights;

pub use chat_template::{ChatTemplate, Message};
pub use config::ModelConfig;
pub use dtype::DType;
pub use error::{Error, Result};
pub use export::ExportWriter;
pub use families::Family;
pub use hub::HubError;
pub use panics::{ReaderPanicked, catch_panic};
pub use parameters::{ParamSpec, Parameters};
pub use rope::{Rope, RopeScaling};
pub use tokenizer::{Encoded, Tokenizer};
pub use weights::{WeightFiles, WeightView};
