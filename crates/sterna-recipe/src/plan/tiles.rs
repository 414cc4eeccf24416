//! How many tokens go through a segment at once.

use sterna_hf::ModelConfig;

use crate::recipe::Recipe;

/// Tile lengths are multiples of this, which kernels like.
const TILE_STEP: usize = 64;

/// How many tokens go through a segment at once. The numbers depend on recipe and model only, so that all ranks agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileLengths {
    /// Norm, projections and rotary.
    pub pre: usize,
    /// Output projection and MLP.
    pub post: usize,
    /// Final norm, head and loss; always tiled.
    pub head: usize,
}

impl TileLengths {
    /// The tile lengths of a recipe; a segment that is not tiled has one tile of `local_tokens`.
    pub(super) fn new(recipe: &Recipe, model: &ModelConfig, local_tokens: usize) -> Self {
        let size = recipe.model.dtype.size();
        let budget = recipe.memory.tile_bytes;
        let tile = |bytes_per_token| tile_len(budget, bytes_per_token).min(local_tokens.max(1));
        let is_tiled = recipe.tiled_mlp_compute;
        Self {
            pre: if is_tiled { tile(pre_values(model) * size) } else { local_tokens },
            post: if is_tiled { tile(post_values(model) * size) } else { local_tokens },
            head: tile(model.vocab_size * size),
        }
    }
}

/// The longest tile within `budget` bytes, and no less than one step.
fn tile_len(budget: usize, bytes_per_token: usize) -> usize {
    (budget / bytes_per_token / TILE_STEP * TILE_STEP).max(TILE_STEP)
}

/// Values of one token at the peak of `pre`'s backward: the norm, and q, k, v with their gradients.
pub(super) fn pre_values(model: &ModelConfig) -> usize {
    let heads = model.num_attention_heads + 2 * model.num_key_value_heads;
    2 * model.hidden_size + 2 * heads * model.head_dim
}

/// Values of one token at the peak of `post`'s backward: residual, norm, gate, up and the gradients of three of width `f`.
pub(super) fn post_values(model: &ModelConfig) -> usize {
    2 * model.hidden_size + 5 * model.intermediate_size
}
