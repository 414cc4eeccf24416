//! `config.json`: what a model is, parsed and checked, with the rules of each transformers family.
//!
//! A key that transformers fills from a default is filled from the same default; a key whose effect we cannot give (dropout in
//! attention, a quantised checkpoint, an activation other than `silu`) is an error instead of a silent difference.

mod reader;
mod rope_section;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use self::reader::Reader;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::families::{Defaults, Family, Multipliers, Rotated, Setting, Windows};
use crate::parameters::Parameters;
use crate::rope::Rope;

/// Keys whose value is a list with an entry for each layer.
const PER_LAYER: [&str; 2] = ["layer_types", "no_rope_layers"];

/// A model's `config.json`, checked, with every default filled in.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent property of the architecture, as config.json has them"
)]
pub struct ModelConfig {
    /// The file it was read from, for messages.
    pub path: PathBuf,
    /// The class of transformers that it is a config of.
    pub family: &'static Family,
    /// `d`, the width of the residual stream.
    pub hidden_size: usize,
    /// `f`, the width of the MLP.
    pub intermediate_size: usize,
    /// The number of blocks.
    pub num_hidden_layers: usize,
    /// `n`, the number of query heads.
    pub num_attention_heads: usize,
    /// `k`, the number of key and value heads; divides `n`.
    pub num_key_value_heads: usize,
    /// `h`, the width of a head; even.
    pub head_dim: usize,
    /// `v`, the rows of the embedding.
    pub vocab_size: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// The longest sequence in tokens that the model was made for.
    pub max_position_embeddings: usize,
    /// The rotary embedding.
    pub rope: Rope,
    /// Whether the head is the transposed embedding.
    pub tie_word_embeddings: bool,
    /// Whether `q_proj`, `k_proj`, `v_proj` have biases.
    pub qkv_bias: bool,
    /// Whether `o_proj` has a bias.
    pub o_bias: bool,
    /// Whether `gate_proj`, `up_proj`, `down_proj` have biases.
    pub mlp_bias: bool,
    /// Whether queries and keys pass through an RMSNorm over each head before the rotary embedding.
    pub qk_norm: bool,
    /// What the rows of the embedding are multiplied by.
    pub embedding_multiplier: f64,
    /// What a block multiplies the outputs of attention and of the MLP by before it adds them.
    pub residual_multiplier: f64,
    /// What attention multiplies its scores by.
    pub attention_scale: f64,
    /// What logits are divided by.
    pub logits_scaling: f64,
    /// For each block, whether queries and keys are turned by their positions.
    pub is_rotated: Vec<bool>,
    /// For each block, how many tokens a query sees, itself included (`q - k < window`); `None` is all before it.
    pub sliding_window: Vec<Option<usize>>,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f64,
    /// `bos_token_id`.
    pub bos_token_id: Option<u32>,
    /// `eos_token_id`; a config may have several.
    pub eos_token_id: Vec<u32>,
    /// `pad_token_id`. Transformers gives it to `nn.Embedding` as `padding_idx`: the lookup of this row has no gradient.
    pub pad_token_id: Option<u32>,
    /// `hidden_act`; always `silu`, or its other name `swish`.
    pub hidden_act: String,
    /// `torch_dtype` (`dtype` in newer files): what the weights were saved in.
    pub torch_dtype: Option<DType>,
    /// The whole file, for export.
    pub raw: Map<String, Value>,
}

impl ModelConfig {
    /// Parses the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`Error::Json`], [`Error::UnsupportedModelType`], or [`Error::Value`] for the first key that cannot be used.
    pub fn from_json(text: &str, path: &Path) -> Result<ModelConfig> {
        let raw = serde_json::from_str(text)
            .map_err(|source| Error::Json { path: path.to_owned(), source })?;
        ModelConfig::from_map(&raw, path)
    }

    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    ///
    /// [`Error::MissingFile`] or [`Error::Read`], and those of [`ModelConfig::from_json`].
    pub fn from_dir(dir: &Path) -> Result<ModelConfig> {
        let path = dir.join("config.json");
        match std::fs::read_to_string(&path) {
            Ok(text) => ModelConfig::from_json(&text, &path),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::MissingFile { path, purpose: "the shape of the model" })
            }
            Err(source) => Err(Error::Read { path, source }),
        }
    }

    /// The config with keys replaced, as `hf_config_kwargs` of a recipe does.
    ///
    /// A changed [`num_hidden_layers`](ModelConfig::num_hidden_layers) means that the checkpoint no longer fits and weights are to
    /// be drawn: compare it with the one of `self`. Lists by layer in the file (`layer_types`, `no_rope_layers`) are
    /// cut to a smaller number of layers.
    ///
    /// # Errors
    ///
    /// As [`ModelConfig::from_json`], with overridden keys named `hf_config_kwargs.KEY`.
    pub fn with_overrides(&self, overrides: &Map<String, Value>) -> Result<ModelConfig> {
        let mut raw = self.raw.clone();
        rope_section::make_room(&mut raw, overrides);
        for (key, value) in overrides {
            raw.insert(key.clone(), value.clone());
        }
        if let Some(num_layers) = overrides.get("num_hidden_layers").and_then(Value::as_u64) {
            for key in PER_LAYER.into_iter().filter(|key| !overrides.contains_key(*key)) {
                if let Some(Value::Array(of_layers)) = raw.get_mut(key) {
                    of_layers.truncate(num_layers as usize);
                }
            }
        }
        let config = ModelConfig::from_map(&raw, &self.path).map_err(|error| match error {
            Error::Value { path, key, found, required }
                if overrides.contains_key(first_segment(&key)) =>
            {
                Error::Value { path, key: format!("hf_config_kwargs.{key}"), found, required }
            }
            other => other,
        })?;
        if config.family != self.family {
            return Err(Error::Value {
                path: self.path.clone(),
                key: "hf_config_kwargs.model_type".to_owned(),
                found: format!("`{}`", config.family),
                required: format!("the checkpoint's own, `{}`", self.family),
            });
        }
        Ok(config)
    }

    /// Every weight tensor by name and shape.
    pub fn parameters(&self) -> Parameters {
        Parameters::of(self)
    }

    /// The number of weights; a tied head counts once.
    pub fn num_parameters(&self) -> usize {
        self.parameters().numel()
    }

    fn from_map(raw: &Map<String, Value>, path: &Path) -> Result<ModelConfig> {
        let reader = Reader::new(path, raw);
        let family = family(&reader)?;
        refuse_what_we_lack(&reader, family)?;

        let size = |key: &str| reader.required(key, Reader::size);
        let size_or = |key: &str, default| reader.or(key, default, Reader::size);
        let hidden_size = size("hidden_size")?;
        let num_hidden_layers = reader.required("num_hidden_layers", Reader::num_layers)?;
        let num_attention_heads = size("num_attention_heads")?;
        let defaults = &family.defaults;
        let num_key_value_heads = num_key_value_heads(&reader, defaults, num_attention_heads)?;
        let head_dim = head_dim(&reader, defaults, hidden_size, num_attention_heads)?;
        let vocab_size = size("vocab_size")?;
        let max_position_embeddings =
            size_or("max_position_embeddings", defaults.max_position_embeddings)?;
        let is_set = |setting: &Setting| match setting {
            Setting::Never => Ok(false),
            Setting::Always => Ok(true),
            Setting::Key(key, default) => reader.or(key, *default, Reader::bool),
        };
        let multiplier = |key: &str, default| match family.multipliers {
            Multipliers::None => Ok(default),
            Multipliers::Keys => reader.or(key, default, Reader::positive),
        };
        let is_rotated = is_rotated(&reader, &family.rotated, num_hidden_layers)?;
        Ok(ModelConfig {
            path: path.to_owned(),
            family,
            hidden_size,
            intermediate_size: size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size,
            rms_norm_eps: reader.or("rms_norm_eps", 1e-6, Reader::positive)?,
            max_position_embeddings,
            rope: rope_section::parse(&reader, defaults.rope_theta, max_position_embeddings)?,
            tie_word_embeddings: reader.or(
                "tie_word_embeddings",
                defaults.tie_word_embeddings,
                Reader::bool,
            )?,
            qkv_bias: is_set(&family.qkv_bias)?,
            o_bias: is_set(&family.o_bias)?,
            mlp_bias: is_set(&family.mlp_bias)?,
            qk_norm: family.qk_norm,
            sliding_window: sliding_window(&reader, &family.windows, &is_rotated)?,
            is_rotated,
            embedding_multiplier: multiplier("embedding_multiplier", 1.0)?,
            residual_multiplier: multiplier("residual_multiplier", 1.0)?,
            attention_scale: match family.multipliers {
                Multipliers::None => 1.0 / (head_dim as f64).sqrt(),
                Multipliers::Keys => multiplier("attention_multiplier", 1.0)?,
            },
            logits_scaling: multiplier("logits_scaling", 1.0)?,
            initializer_range: reader.or("initializer_range", 0.02, Reader::non_negative)?,
            bos_token_id: reader.nullable(
                "bos_token_id",
                defaults.bos_token_id,
                Reader::token_id,
            )?,
            eos_token_id: reader
                .nullable("eos_token_id", Some(defaults.eos_token_id.to_vec()), Reader::token_ids)?
                .unwrap_or_default(),
            pad_token_id: reader.nullable("pad_token_id", defaults.pad_token_id, |r, k, v| {
                r.embedding_row(k, v, vocab_size)
            })?,
            hidden_act: hidden_act(&reader)?,
            torch_dtype: torch_dtype(&reader),
            raw: raw.clone(),
        })
    }
}

fn first_segment(key: &str) -> &str {
    key.split('.').next().unwrap_or(key)
}

fn family(reader: &Reader<'_>) -> Result<&'static Family> {
    let found = reader.required("model_type", Reader::string)?;
    Family::find(&found)
        .ok_or_else(|| Error::UnsupportedModelType { path: reader.path().to_owned(), found })
}

/// Refuses the settings that would change the arithmetic in ways that training here does not follow.
fn refuse_what_we_lack(reader: &Reader<'_>, family: &Family) -> Result<()> {
    if let Some(value) = reader.get("quantization_config") {
        return Err(reader.wrong(
            "quantization_config",
            value,
            "absent: training needs weights in float",
        ));
    }
    let of_attention = ("attention_dropout", family.defaults.attention_dropout);
    for &(key, default) in family.dropouts.iter().chain([&of_attention]) {
        let dropout = reader.or(key, default, Reader::non_negative)?;
        if dropout > 0.0 {
            let found = match reader.get(key) {
                Some(value) => format!("`{value}`"),
                None => format!("missing, which is `{dropout}` in this family"),
            };
            let required = "`0.0`: training here has no dropout";
            return Err(reader.refuse(key, found, required));
        }
    }
    Ok(())
}

fn num_key_value_heads(
    reader: &Reader<'_>,
    defaults: &Defaults,
    num_attention_heads: usize,
) -> Result<usize> {
    let default = defaults.num_key_value_heads.unwrap_or(num_attention_heads);
    let found = match reader.entry("num_key_value_heads") {
        Some(Value::Null) => num_attention_heads,
        _ => reader.or("num_key_value_heads", default, Reader::size)?,
    };
    if !num_attention_heads.is_multiple_of(found) {
        let required = format!("a divisor of num_attention_heads `{num_attention_heads}`");
        return Err(reader.wrong("num_key_value_heads", &Value::from(found), required));
    }
    Ok(found)
}

fn head_dim(
    reader: &Reader<'_>,
    defaults: &Defaults,
    hidden_size: usize,
    num_attention_heads: usize,
) -> Result<usize> {
    let default = defaults.head_dim.filter(|_| reader.entry("head_dim").is_none());
    let head_dim = match (reader.get("head_dim"), default) {
        (Some(value), _) => reader.size("head_dim", value)?,
        (None, Some(default)) => default,
        (None, None) if hidden_size.is_multiple_of(num_attention_heads) => {
            hidden_size / num_attention_heads
        }
        (None, None) => {
            let required = format!(
                "a multiple of num_attention_heads `{num_attention_heads}`, or a config that gives head_dim"
            );
            return Err(reader.wrong("hidden_size", &Value::from(hidden_size), required));
        }
    };
    // Rotary embeddings turn pairs; dynamic scaling divides by `head_dim - 2`.
    if !head_dim.is_multiple_of(2) || head_dim < 4 {
        return Err(reader.wrong(
            "head_dim",
            &Value::from(head_dim),
            "an even number of at least `4`",
        ));
    }
    Ok(head_dim)
}

fn is_rotated(
    reader: &Reader<'_>,
    rotated: &Rotated,
    num_hidden_layers: usize,
) -> Result<Vec<bool>> {
    if *rotated == Rotated::All {
        return Ok(vec![true; num_hidden_layers]);
    }
    let key = "no_rope_layers";
    let Some(value) = reader.get(key) else {
        let interval = reader.or("no_rope_layer_interval", 4, Reader::size)?;
        return Ok((1..=num_hidden_layers).map(|number| number % interval != 0).collect());
    };
    let required = || format!("a list of `{num_hidden_layers}` numbers, each `0` or `1`");
    let layers = value.as_array().ok_or_else(|| reader.wrong(key, value, required()))?;
    if layers.len() != num_hidden_layers {
        return Err(reader.refuse(key, format!("a list of `{}`", layers.len()), required()));
    }
    let of_layer = |(layer_idx, value): (usize, &Value)| match value.as_u64() {
        Some(number @ 0..=1) => Ok(number == 1),
        _ => Err(reader.wrong(&format!("{key}.{layer_idx}"), value, "`0` or `1`")),
    };
    layers.iter().enumerate().map(of_layer).collect()
}

fn sliding_window(
    reader: &Reader<'_>,
    windows: &Windows,
    is_rotated: &[bool],
) -> Result<Vec<Option<usize>>> {
    let num_hidden_layers = is_rotated.len();
    let default = match windows {
        Windows::None => return Ok(vec![None; num_hidden_layers]),
        Windows::All => {
            let window = reader.nullable("sliding_window", Some(4096), Reader::size)?;
            return Ok(vec![window; num_hidden_layers]);
        }
        Windows::Chosen => Some(4096),
        Windows::NotRotated => None,
    };
    let window = if reader.or("use_sliding_window", false, Reader::bool)? {
        reader.nullable("sliding_window", default, Reader::size)?
    } else {
        None
    };
    let is_sliding = if let Some(layer_types) = reader.get("layer_types") {
        layer_types_are_sliding(reader, layer_types, num_hidden_layers)?
    } else if *windows == Windows::NotRotated {
        is_rotated.iter().map(|is_rotated| !is_rotated).collect()
    } else {
        let first = reader.or("max_window_layers", 28, Reader::count)?;
        (0..num_hidden_layers).map(|layer_idx| layer_idx >= first).collect()
    };
    Ok(is_sliding.into_iter().map(|is_sliding| window.filter(|_| is_sliding)).collect())
}

fn layer_types_are_sliding(
    reader: &Reader<'_>,
    value: &Value,
    num_hidden_layers: usize,
) -> Result<Vec<bool>> {
    let required = || {
        format!(
            "a list of `{num_hidden_layers}` names, each `full_attention` or `sliding_attention`"
        )
    };
    let layer_types =
        value.as_array().ok_or_else(|| reader.wrong("layer_types", value, required()))?;
    if layer_types.len() != num_hidden_layers {
        return Err(reader.refuse(
            "layer_types",
            format!("a list of `{}`", layer_types.len()),
            required(),
        ));
    }
    layer_types
        .iter()
        .enumerate()
        .map(|(layer_idx, layer_type)| match layer_type.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => {
                let key = format!("layer_types.{layer_idx}");
                Err(reader.wrong(&key, layer_type, "`full_attention` or `sliding_attention`"))
            }
        })
        .collect()
}

fn hidden_act(reader: &Reader<'_>) -> Result<String> {
    let found = reader.or("hidden_act", "silu".to_owned(), Reader::string)?;
    if found == "silu" || found == "swish" {
        Ok(found)
    } else {
        Err(reader.wrong("hidden_act", &Value::from(found), "`silu`"))
    }
}

/// The dtype of the file, if it names one that we have; it is only a default, so anything else is as good as none.
fn torch_dtype(reader: &Reader<'_>) -> Option<DType> {
    ["dtype", "torch_dtype"]
        .into_iter()
        .find_map(|key| DType::from_torch_name(reader.get(key)?.as_str()?))
}
