//! `config.json`: what a model is, parsed and checked, with the rules of each transformers family.
//!
//! A key that transformers fills from a default is filled from the same default; a key whose effect we cannot give (dropout in
//! attention, a quantised checkpoint, an activation without an op) is an error instead of a silent difference.

pub(crate) mod layers;
pub(crate) mod reader;
pub(crate) mod rope_section;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use self::reader::Reader;
use crate::adapters::LoraConfig;
use crate::describe;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::families::{Family, Refused};
use crate::layer::Architecture;
use crate::wrappers::{Names, Wrapper};

/// Keys whose value is a list with an entry for each layer.
const PER_LAYER: [&str; 3] = ["layer_types", "no_rope_layers", "layer_rope_theta"];

/// A model's `config.json`, checked, with every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The file it was read from, for messages.
    pub path: PathBuf,
    /// The class of transformers that it is a config of; of a multimodal model, that of its text decoder.
    pub family: &'static Family,
    /// The multimodal class around it.
    pub wrapper: Option<&'static Wrapper>,
    /// What the model computes.
    pub arch: Architecture,
    /// The longest sequence in tokens that the model was made for.
    pub max_position_embeddings: usize,
    /// `bos_token_id`.
    pub bos_token_id: Option<u32>,
    /// `eos_token_id`; a config may have several.
    pub eos_token_id: Vec<u32>,
    /// `torch_dtype` (`dtype` in newer files): what the weights were saved in.
    pub torch_dtype: Option<DType>,
    /// The whole file, for export.
    pub raw: Map<String, Value>,
    /// The adapters that are trained in place of its weights.
    pub lora: Option<LoraConfig>,
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
                Err(Error::MissingFile { path })
            }
            Err(source) => Err(Error::Read { path, source }),
        }
    }

    /// The config with keys replaced, as `hf_config_kwargs` of a recipe does.
    ///
    /// Another [number of layers](ModelConfig::num_hidden_layers) means that the checkpoint no longer fits and weights are to
    /// be drawn: compare it with the one of `self`. Lists by layer in the file (`layer_types`, `no_rope_layers`) are
    /// cut to a smaller number of layers.
    ///
    /// # Errors
    ///
    /// As [`ModelConfig::from_json`], with overridden keys named `hf_config_kwargs.KEY`.
    pub fn with_overrides(&self, overrides: &Map<String, Value>) -> Result<ModelConfig> {
        let mut raw = self.raw.clone();
        let section = match self.wrapper {
            Some(_) => Wrapper::section(&mut raw),
            None => &mut raw,
        };
        rope_section::check_overrides(&Reader::new(&self.path, section), overrides)?;
        rope_section::make_room(section, overrides);
        for (key, value) in overrides {
            section.insert(key.clone(), value.clone());
        }
        if let Some(num_layers) = overrides.get("num_hidden_layers").and_then(Value::as_u64) {
            for key in PER_LAYER.into_iter().filter(|key| !overrides.contains_key(*key)) {
                if let Some(Value::Array(of_layers)) = section.get_mut(key) {
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

    /// The same model, frozen, with adapters.
    ///
    /// # Errors
    ///
    /// [`Error::Adapter`] if they do not fit it.
    pub fn with_lora(mut self, lora: LoraConfig) -> Result<ModelConfig> {
        self.arch.add_lora(&lora)?;
        self.lora = Some(lora);
        Ok(self)
    }

    /// The number of layers.
    pub fn num_hidden_layers(&self) -> usize {
        self.arch.layers.len()
    }

    /// Refuses a multimodal model, saying what is `required` instead.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] that names its `model_type`.
    pub fn expect_text_alone(&self, required: &str) -> Result<()> {
        self.wrapper.map_or(Ok(()), |wrapper| Err(wrapper.refuse(&self.path, required)))
    }

    /// The same, with the names that a checkpoint with these tensors has for those of the decoder of a multimodal model. There
    /// are several: transformers has changed them, and writes the old ones still.
    #[must_use]
    pub fn named_as_in(mut self, has_tensor: impl Fn(&str) -> bool) -> ModelConfig {
        let Some(wrapper) = self.wrapper else { return self };
        let has = |names: &Names| has_tensor(&format!("{}embed_tokens.weight", names.decoder));
        let ours = wrapper.names();
        if let Some(found) = Names::ALL.into_iter().find(has).filter(|found| *found != ours) {
            self.arch.rename(|name| match name.strip_prefix(ours.decoder) {
                Some(rest) => format!("{}{rest}", found.decoder),
                None => found.lm_head.to_owned(),
            });
        }
        self
    }

    fn from_map(raw: &Map<String, Value>, path: &Path) -> Result<ModelConfig> {
        let outer = Reader::new(path, raw);
        let wrapper = Wrapper::of(raw);
        let decoder = match wrapper {
            Some(wrapper) => Cow::Owned(wrapper.decoder(&outer, raw)?),
            None => Cow::Borrowed(raw),
        };
        let reader = match wrapper {
            Some(_) if raw.contains_key("text_config") => outer.section("text_config", &decoder),
            _ => Reader::new(path, &decoder),
        };
        let names = wrapper.map_or(Names::TEXT, Wrapper::names);
        let family = family(&reader)?;
        refuse_what_we_lack(&reader, family)?;
        let defaults = &family.defaults;
        let max_position_embeddings =
            reader.or("max_position_embeddings", defaults.max_position_embeddings, Reader::size)?;
        let eos_token_id = Some(defaults.eos_token_id.to_vec());
        Ok(ModelConfig {
            path: path.to_owned(),
            family,
            wrapper,
            arch: describe::architecture(&reader, family, names, max_position_embeddings)?,
            max_position_embeddings,
            bos_token_id: reader.nullable(
                "bos_token_id",
                defaults.bos_token_id,
                Reader::token_id,
            )?,
            eos_token_id: reader
                .nullable("eos_token_id", eos_token_id, Reader::token_ids)?
                .unwrap_or_default(),
            torch_dtype: torch_dtype(&reader),
            raw: raw.clone(),
            lora: None,
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
        let method = value.get("quant_method").and_then(Value::as_str);
        if !family.may_be_mxfp4 {
            let required = "absent: training needs weights in float";
            return Err(reader.wrong("quantization_config", value, required));
        }
        if method != Some("mxfp4") {
            let required = "absent, or of quant_method `mxfp4`: training needs weights in float, and reads no others as such";
            return Err(reader.wrong("quantization_config", value, required));
        }
    }
    // Of every class in transformers 5; `null` switches it off, too.
    if !reader.flag("is_causal", true)? {
        let value = reader.entry("is_causal").unwrap_or(&Value::Null);
        let required = "absent or `true`: training here has no attention to tokens that come later";
        return Err(reader.wrong("is_causal", value, required));
    }
    let is_idle = |value: &&Value| value.as_object().is_none_or(|layers| !layers.is_empty());
    if let Some(value) = reader.get("per_layer_config").filter(is_idle)
        && !family.has_global_heads
    {
        let required = "absent: training here has no layers of different sizes in this family";
        return Err(reader.wrong("per_layer_config", value, required));
    }
    for &(key, default) in family.dropouts {
        let dropout = reader.or(key, default, Reader::non_negative)?;
        if dropout > 0.0 {
            let found = match reader.get(key) {
                Some(value) => format!("`{value}`"),
                None => format!("missing, which is `{dropout}` in this family"),
            };
            let required =
                "`0.0`, which `model.hf_config_kwargs` can set: training here has no dropout";
            return Err(reader.refuse(key, found, required));
        }
    }
    for Refused { key, default, idle, what } in family.refused {
        let found = reader.entry(key).map(Value::to_string);
        let value = found.as_deref().unwrap_or(default);
        if !idle.contains(&value) {
            let required = format!("`{}`: training here has no {what}", idle[0]);
            let found = match &found {
                Some(found) => format!("`{found}`"),
                None => format!("missing, which is `{default}` in this family"),
            };
            return Err(reader.refuse(key, found, required));
        }
    }
    Ok(())
}

/// The dtype of the file, if it names one that we have; it is only a default, so anything else is as good as none.
fn torch_dtype(reader: &Reader<'_>) -> Option<DType> {
    ["dtype", "torch_dtype"]
        .into_iter()
        .find_map(|key| DType::from_torch_name(reader.get(key)?.as_str()?))
}
