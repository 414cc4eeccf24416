//! Rules between recipe, model and ranks; and what is worth knowing about a combination that works.

use sterna_arch::ModelConfig;
use sterna_recipe::{Diagnostic, Kind, Note, Packing, PadTo, Place, Recipe};

use crate::BatchPlan;

/// Samples that one pack of the reference can hold.
const REFERENCE_PACK_SAMPLES: usize = 1000;

/// Tokens of a micro-batch that memory is still counted for: 68 billion, with which no product of sizes overflows.
const MAX_TOKENS: usize = 1 << 36;

/// Longer than nearly all chats; above it a sequence is only full if samples are packed.
const LONG_SAMPLE: usize = 32_768;

/// Every rule that is broken.
pub(crate) fn errors(recipe: &Recipe, model: &ModelConfig, world_size: usize) -> Vec<Diagnostic> {
    let mut errors = Vec::new();
    let sp_size = recipe.sequence_parallel_size;
    let sp_key = "sequence_parallel_size";
    let mut conflict = |key: &str, found: String, required: String, hint: Option<String>| {
        errors.push(Diagnostic {
            kind: Kind::Conflict,
            key_path: key.to_owned(),
            span: recipe.source.locate(key),
            found,
            required,
            hint,
        });
    };
    if world_size == 0 || !world_size.is_multiple_of(sp_size) {
        let found = format!(
            "`sequence_parallel_size` `{sp_size}` does not divide the `{world_size}` ranks of this run"
        );
        let hint = format!(
            "start {} ranks, or set `sequence_parallel_size` to a divisor of {world_size}",
            world_size.next_multiple_of(sp_size).max(sp_size)
        );
        conflict(
            sp_key,
            found,
            "a number of ranks that is a multiple of it".to_owned(),
            Some(hint),
        );
    }
    let num_heads = model.arch.fewest_heads();
    if sp_size > num_heads {
        let mut layers = model.arch.layers.iter();
        let is_of_attention = layers.any(|layer| {
            layer.mixer.attention().is_some_and(|attention| attention.num_heads == num_heads)
        });
        let key = if is_of_attention { "num_attention_heads" } else { "linear_num_value_heads" };
        let found = format!(
            "wrong head split: `sequence_parallel_size` `{sp_size}` is larger than {key} `{num_heads}`"
        );
        let required = format!("at most {num_heads}, so that each rank has a head");
        let hint = "ranks beyond that can be data-parallel: keep the number of ranks and lower `sequence_parallel_size`";
        conflict(sp_key, found, required, Some(hint.to_owned()));
    } else if let Some(typed) = recipe.deepspeed.train_batch_size
        && world_size.is_multiple_of(sp_size)
    {
        let own = recipe
            .micro_batch_size
            .saturating_mul(recipe.gradient_accumulation_steps)
            .saturating_mul(world_size / sp_size);
        if typed != own {
            let found =
                format!("`deepspeed.train_batch_size` is `{typed}` and a step has `{own}` rows");
            let required =
                "micro_batch_size * gradient_accumulation_steps * ranks / sequence_parallel_size"
                    .to_owned();
            let hint = "remove it: the recipe's own keys decide".to_owned();
            conflict("deepspeed.train_batch_size", found, required, Some(hint));
        }
    }
    let fewest_heads = num_heads / sp_size;
    if (1..=num_heads).contains(&sp_size) && recipe.memory.attention_head_groups > fewest_heads {
        let found = format!(
            "`memory.attention_head_groups` is `{}` and a rank has `{fewest_heads}` query heads",
            recipe.memory.attention_head_groups
        );
        let required = format!("at most {fewest_heads}, so that each group has a head");
        conflict("memory.attention_head_groups", found, required, None);
    }
    let data = &recipe.data;
    let max_length = data.max_length.unwrap_or(model.max_position_embeddings);
    let row_length = padded_length(recipe, data.row_length(max_length));
    let tokens = recipe.micro_batch_size.saturating_mul(row_length);
    if tokens > MAX_TOKENS {
        let found = format!("a micro-batch has up to `{tokens}` tokens, padded");
        let key = if recipe.source.is_set("data.max_length") {
            "data.max_length"
        } else {
            "micro_batch_size"
        };
        conflict(key, found, format!("at most {MAX_TOKENS}"), None);
    }
    if data.max_length.is_none()
        && data.pad_to == PadTo::MaxLength
        && recipe.source.is_set("data.div_length")
        && !max_length.is_multiple_of(data.div_length)
    {
        let found = format!(
            "`data.pad_to` is `max_length`, and the model's max_position_embeddings `{max_length}` is no multiple of `data.div_length` `{}`",
            data.div_length
        );
        let hint = format!(
            "remove `div_length` or set `data.max_length` to {}",
            (max_length / data.div_length).max(1) * data.div_length
        );
        conflict("data.div_length", found, "a multiple".to_owned(), Some(hint));
    }
    errors
}

/// A length after padding, without the padding to a multiple of the sequence-parallel size.
pub(crate) fn padded_length(recipe: &Recipe, length: usize) -> usize {
    match recipe.data.pad_to {
        PadTo::DivLength => length.next_multiple_of(recipe.data.div_length),
        PadTo::MaxLength => length,
    }
}

/// What is worth knowing.
pub(crate) fn notes(recipe: &Recipe, model: &ModelConfig, batch: BatchPlan) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut note = |key: &str, text: String| notes.push(Note { key_path: key.to_owned(), text });
    let data = &recipe.data;
    let max_length = batch.max_length;
    if data.pack_samples {
        let needed = max_length.div_ceil(REFERENCE_PACK_SAMPLES);
        let is_reference = data.packing == Packing::Reference && !data.is_sliced();
        if is_reference && max_length > LONG_SAMPLE {
            note(
                "data.packing",
                format!(
                    "the reference puts at most {REFERENCE_PACK_SAMPLES} samples into a pack, and ends one at every `num_proc`-th of \
                     the data: a pack is only full if samples average {} tokens or more; `data.packing: global` fills it with any",
                    grouped(needed)
                ),
            );
        }
    } else if max_length > LONG_SAMPLE {
        note(
            "data.pack_samples",
            format!(
                "it is off, so a sequence is one sample, however short: with chats, nothing comes near {} tokens; \
                 `pack_samples: true` with `packing: global` fills sequences",
                grouped(max_length)
            ),
        );
    }
    let positions = model.max_position_embeddings;
    // A row may have several samples.
    let max_length = data.max_length.unwrap_or(positions);
    if max_length > positions {
        let what = if data.pack_samples && data.fuse_positions_prob == 0.0 {
            "positions restart in each sample of a pack, so only longer samples go beyond it"
        } else {
            "the model has not been trained at such positions; `hf_config_kwargs: {rope_scaling: ..}` can stretch them"
        };
        note(
            "data.max_length",
            format!("{} is beyond the model's {}: {what}", grouped(max_length), grouped(positions)),
        );
    }
    let offloads = [
        ("activation_checkpoint_cpu_offload", recipe.activation_checkpoint_cpu_offload),
        (
            if recipe.source.is_set("memory.optimizer_on") {
                "memory.optimizer_on"
            } else {
                "deepspeed.zero_optimization.offload_optimizer"
            },
            recipe.memory.optimizer_on == Place::Host,
        ),
        ("deepspeed.zero_optimization.offload_param", recipe.deepspeed.offload_param),
    ];
    for (key, _) in offloads.into_iter().filter(|(_, is_on)| *is_on) {
        note(key, "on a CPU this is a move within host memory: it saves nothing there".to_owned());
    }
    if recipe.model.disable_activation_checkpoint {
        let text = "every intermediate value of every block is kept: `check` shows what that takes";
        note("model.disable_activation_checkpoint", text.to_owned());
    }
    if recipe.model.names_depth() {
        let text = "unless config.json has the same number of layers, the model starts from random weights".to_owned();
        note("model.hf_config_kwargs.num_hidden_layers", text);
    }
    notes
}

/// `1200000` as `1_200_000`, which a recipe can hold too.
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            out.push('_');
        }
        out.push(digit);
    }
    out
}
