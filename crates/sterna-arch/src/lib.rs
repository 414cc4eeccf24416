//! The one description of a model, read from its `config.json`. No torch.
//!
//! A [`ModelConfig`] is a config, checked, with the defaults of its class of transformers; its [`Architecture`] is what follows from
//! it: the embedding, each layer with its norms, attention and MLP, and the head, all as data. Parameters and their names, the split of
//! heads over ranks ([`heads`]), what is gathered and sharded at once ([`units`]), bytes of activations and FLOPs ([`cost`]) and the
//! values that a fresh model begins with follow from the same data, for the plan, the engine, checkpoints and exports alike.
//!
//! What tells one class of transformers from another is a file of facts in `families/`; nothing else asks for a `model_type`.

pub mod adapters;
pub mod config;
pub mod cost;
mod describe;
pub mod dtype;
pub mod error;
mod families;
pub mod heads;
pub mod layer;
pub mod parameters;
pub mod rope;
pub mod units;
mod wrappers;

pub use adapters::LoraConfig;
pub use config::ModelConfig;
pub use dtype::DType;
pub use error::{Error, Result};
pub use families::Family;
pub use heads::HeadSplit;
pub use layer::{
    Activation, Alternate, Architecture, Attention, DeltaNet, Dense, Direct, Elementwise, Embed,
    ExpertGroups, ExpertNorms, Ffn, Head, Latent, Layer, Linear, LowRank, Mixer, Moe, Norm,
    NormKind, QkNorm, QkNormWidth, Qkv, QueryLatent, Router, RouterNorm, RouterScores,
    SharedExpert, TopkNorm,
};
pub use parameters::{Init, ParamSpec, Role};
pub use rope::{Rope, RopeLayout, RopeScaling};
pub use units::{UnitLayout, Units};
pub use wrappers::Wrapper;
