//! Hugging Face assets as data: tokenizer, chat template, safetensors, hub, export. No torch.
//!
//! Everything a training run reads from or writes to the Hugging Face file formats passes through here, so that recipes, packing
//! and plans can be checked in seconds on a machine without libtorch. What a model is says `sterna-arch`.

pub mod assets;
pub mod chat_template;
pub mod error;
pub mod export;
mod hex;
pub mod hub;
mod panics;
pub mod tokenizer;
pub mod weights;

pub use chat_template::{ChatTemplate, Conversation, Message, Rendered};
pub use error::{Error, Result};
pub use export::ExportWriter;
pub use hex::hex;
pub use hub::HubError;
pub use panics::{ReaderPanicked, catch_panic};
pub use tokenizer::{Encoded, Tokenizer};
pub use weights::{TensorSpec, WeightFiles, WeightView};
