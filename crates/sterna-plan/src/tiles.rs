//! How many tokens go through a segment at once.

use sterna_arch::{Layer, ModelConfig};
use sterna_recipe::Recipe;

use crate::DeviceType;

/// What tiles take where the recipe does not say it, and what their lengths are multiples of.
///
/// A tile has to be long enough for its products to hide that each of its weight gradients is read and written once more in fp32, and
/// that takes more tokens the faster a device multiplies: an element of a weight is 8 bytes read and written against 2 FLOP a token, so
/// that is a tenth of the product's time at 6,500 tokens on an H200 (4.3 TB/s, 700 TFLOP/s) and at 400 on a core of a CPU (10 GB/s, 100
/// GFLOP/s). On a CPU the default is 7,600 tokens of SmolLM2-135M, 800 of an 8B Llama. On a GPU it is 6,656 of an 8B Llama through its
/// MLP, in whole multiples of the 128 rows that product kernels compute at once.
const fn default_bytes_and_step(device: DeviceType) -> (usize, usize) {
    match device {
        DeviceType::Cpu => (128 << 20, 64),
        DeviceType::Cuda => (1 << 30, 128),
    }
}

/// How many tokens go through a segment at once. The numbers depend on recipe, model and type of device only, so that all ranks agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileLengths {
    /// Norm, projections and rotary.
    pub qkv: usize,
    /// Output projection and MLP.
    pub mlp: usize,
    /// Final norm, head and loss; always tiled.
    pub head: usize,
}

impl TileLengths {
    /// The tile lengths of a recipe; a segment that is not tiled has one tile of `local_tokens`.
    pub(crate) fn new(
        recipe: &Recipe,
        model: &ModelConfig,
        device: DeviceType,
        local_tokens: usize,
    ) -> Self {
        let size = recipe.model.dtype.size();
        let (_, step) = default_bytes_and_step(device);
        let budget = Self::budget(recipe, device);
        let tile =
            |bytes_per_token| tile_len(budget, bytes_per_token, step).min(local_tokens.max(1));
        let is_tiled = recipe.tiled_mlp_compute;
        Self {
            qkv: if is_tiled {
                tile(model.arch.largest(Layer::peak_before_attention) * size)
            } else {
                local_tokens
            },
            mlp: if is_tiled {
                tile(model.arch.largest(Layer::peak_after_attention) * size)
            } else {
                local_tokens
            },
            // Softcapped logits stay beside their gradient.
            head: tile(
                model.arch.vocab_size * size * (1 + usize::from(model.arch.head.softcap.is_some())),
            ),
        }
    }

    /// What the intermediate values of one tile may take, in bytes.
    pub fn budget(recipe: &Recipe, device: DeviceType) -> usize {
        recipe.memory.tile_bytes.unwrap_or(default_bytes_and_step(device).0)
    }
}

/// The longest tile within `budget` bytes, and no less than one step.
fn tile_len(budget: usize, bytes_per_token: usize, step: usize) -> usize {
    (budget / bytes_per_token / step * step).max(step)
}
