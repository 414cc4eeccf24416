//! `config.json`: what a model is, parsed and checked, with the rules of each transformers family.
//!
//! A key that transformers fills from a default is filled from the same default; a key whose effect we cannot give (dropout in
//! attention, a quantised checkpoint, an activation other than `silu`) is an error instead of a silent difference.

mod reader;
mod rope_section;

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use self::reader::Reader;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::parameters::Parameters;
use crate::rope::Rope;

/// The architectures that Sterna trains. All are pre-norm decoders with RMSNorm, rotary embeddings and a SwiGLU MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 1 to 3.3, SmolLM2 and everything else saved as `llama`.
    Llama,
    /// Mistral 7B and its kin.
    Mistral,
    /// Qwen 1.5, 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
}

impl Family {
    /// All families.
    pub const ALL: [Family; 4] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3];

    /// The `model_type` of its configs.
    pub const fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    /// The transformers class with a language-model head, which loaders look up.
    pub(crate) const fn causal_lm_class(self) -> &'static str {
        match self {
            Family::Llama => "LlamaForCausalLM",
            Family::Mistral => "MistralForCausalLM",
            Family::Qwen2 => "Qwen2ForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// The supported `model_type`s as a phrase for messages.
    pub(crate) fn names() -> String {
        Family::ALL.map(|family| format!("`{}`", family.model_type())).join(", ")
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}

/// A model's `config.json`, checked, with every default filled in.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent property of the architecture, as config.json has them"
)]
pub struct ModelConfig {
    /// The file it was read from, for messages.
    pub path: PathBuf,
    /// The architecture.
    pub family: Family,
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
    /// be drawn: compare it with the one of `self`. A `layer_types` list in the file is cut to a smaller number of layers.
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
        if !overrides.contains_key("layer_types")
            && let Some(num_layers) = overrides.get("num_hidden_layers").and_then(Value::as_u64)
            && let Some(Value::Array(layer_types)) = raw.get_mut("layer_types")
        {
            layer_types.truncate(num_layers as usize);
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
        refuse_what_we_lack(&reader)?;

        let size = |key: &str| reader.required(key, Reader::size);
        let size_or = |key: &str, default| reader.or(key, default, Reader::size);
        let hidden_size = size("hidden_size")?;
        let num_hidden_layers = reader.required("num_hidden_layers", Reader::num_layers)?;
        let num_attention_heads = size("num_attention_heads")?;
        let num_key_value_heads = num_key_value_heads(&reader, family, num_attention_heads)?;
        let head_dim = head_dim(&reader, family, hidden_size, num_attention_heads)?;
        let vocab_size = size("vocab_size")?;
        let max_position_embeddings = size_or(
            "max_position_embeddings",
            match family {
                Family::Llama => 2048,
                Family::Mistral => 131_072,
                Family::Qwen2 | Family::Qwen3 => 32_768,
            },
        )?;
        // Llama and Qwen3 read attention_bias; Qwen2 has biases on q, k and v whatever the file says; Mistral has none.
        let attention_bias = matches!(family, Family::Llama | Family::Qwen3)
            && reader.or("attention_bias", false, Reader::bool)?;
        let (bos_default, eos_default) = match family {
            Family::Llama | Family::Mistral => (Some(1), vec![2]),
            Family::Qwen2 | Family::Qwen3 => (None, Vec::new()),
        };
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
            rope: rope_section::parse(&reader, max_position_embeddings)?,
            tie_word_embeddings: reader.or("tie_word_embeddings", false, Reader::bool)?,
            qkv_bias: attention_bias || family == Family::Qwen2,
            o_bias: attention_bias,
            mlp_bias: family == Family::Llama && reader.or("mlp_bias", false, Reader::bool)?,
            qk_norm: family == Family::Qwen3,
            sliding_window: sliding_window(&reader, family, num_hidden_layers)?,
            initializer_range: reader.or("initializer_range", 0.02, Reader::non_negative)?,
            bos_token_id: reader.nullable("bos_token_id", bos_default, Reader::token_id)?,
            eos_token_id: reader
                .nullable("eos_token_id", Some(eos_default), Reader::token_ids)?
                .unwrap_or_default(),
            pad_token_id: reader
                .nullable("pad_token_id", None, |r, k, v| r.embedding_row(k, v, vocab_size))?,
            hidden_act: hidden_act(&reader)?,
            torch_dtype: torch_dtype(&reader),
            raw: raw.clone(),
        })
    }
}

fn first_segment(key: &str) -> &str {
    key.split('.').next().unwrap_or(key)
}

fn family(reader: &Reader<'_>) -> Result<Family> {
    let found = reader.required("model_type", Reader::string)?;
    Family::ALL
        .into_iter()
        .find(|family| family.model_type() == found)
        .ok_or_else(|| Error::UnsupportedModelType { path: reader.path().to_owned(), found })
}

/// Refuses the settings that would change the arithmetic in ways that training here does not follow.
fn refuse_what_we_lack(reader: &Reader<'_>) -> Result<()> {
    if let Some(value) = reader.get("quantization_config") {
        return Err(reader.wrong(
            "quantization_config",
            value,
            "absent: training needs weights in float",
        ));
    }
    let dropout = reader.or("attention_dropout", 0.0, Reader::non_negative)?;
    if dropout > 0.0 {
        let value = &Value::from(dropout);
        return Err(reader.wrong(
            "attention_dropout",
            value,
            "`0.0`: attention here has no dropout",
        ));
    }
    Ok(())
}

fn num_key_value_heads(
    reader: &Reader<'_>,
    family: Family,
    num_attention_heads: usize,
) -> Result<usize> {
    let default = match family {
        Family::Llama => num_attention_heads,
        Family::Mistral => 8,
        Family::Qwen2 | Family::Qwen3 => 32,
    };
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
    family: Family,
    hidden_size: usize,
    num_attention_heads: usize,
) -> Result<usize> {
    let head_dim = match reader.get("head_dim") {
        Some(value) => reader.size("head_dim", value)?,
        // Qwen3 has a default of its own; the others divide the hidden size.
        None if family == Family::Qwen3 && reader.entry("head_dim").is_none() => 128,
        None if hidden_size.is_multiple_of(num_attention_heads) => {
            hidden_size / num_attention_heads
        }
        None => {
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

fn sliding_window(
    reader: &Reader<'_>,
    family: Family,
    num_hidden_layers: usize,
) -> Result<Vec<Option<usize>>> {
    match family {
        Family::Llama => Ok(vec![None; num_hidden_layers]),
        Family::Mistral => {
            let window = reader.nullable("sliding_window", Some(4096), Reader::size)?;
            Ok(vec![window; num_hidden_layers])
        }
        Family::Qwen2 | Family::Qwen3 => {
            let window = if reader.or("use_sliding_window", false, Reader::bool)? {
                reader.nullable("sliding_window", Some(4096), Reader::size)?
            } else {
                None
            };
            let is_sliding = if let Some(layer_types) = reader.get("layer_types") {
                layer_types_are_sliding(reader, layer_types, num_hidden_layers)?
            } else {
                let first = reader.or("max_window_layers", 28, Reader::count)?;
                (0..num_hidden_layers).map(|layer_idx| layer_idx >= first).collect()
            };
            Ok(is_sliding.into_iter().map(|is_sliding| window.filter(|_| is_sliding)).collect())
        }
    }
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
