//! Checkpoints of multimodal classes, whose text decoder is trained: what a class calls it, in the config and in the weights.
//!
//! The config of the decoder is a section of the model's, its tensors have a prefix, and other towers lie beside them. They are not
//! computed: rows of text alone never reach them, and an export carries them as they are.

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Map, Value};

use crate::config::reader::Reader;
use crate::error::{Error, Result};
use crate::families::{self, Family};

/// A class of transformers around a text decoder.
#[derive(Debug, PartialEq)]
pub struct Wrapper {
    /// The `model_type` of its configs.
    pub(crate) model_type: &'static str,
    /// The `model_type`s of sections that mean the family whose wrapper it is; so does a section without one.
    pub(crate) aliases: &'static [&'static str],
    /// What the class fills in where the section does not say it, as JSON, and the family has another default.
    pub(crate) defaults: &'static str,
    /// Whether a config may have the keys of the decoder at its top, without a section.
    pub(crate) is_flat_too: bool,
    /// Names of tensors in the checkpoints that transformers writes by default.
    pub(crate) names: Names,
}

/// How the tensors of a decoder are called in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Names {
    /// What stands before `embed_tokens.weight`, `layers.0` and `norm.weight`.
    pub(crate) decoder: &'static str,
    pub(crate) lm_head: &'static str,
}

impl Names {
    /// Those of a class of text alone.
    pub(crate) const TEXT: Self = Self { decoder: "model.", lm_head: "lm_head.weight" };
    pub(crate) const INSIDE: Self =
        Self { decoder: "language_model.model.", lm_head: "language_model.lm_head.weight" };
    pub(crate) const BESIDE: Self =
        Self { decoder: "model.language_model.", lm_head: "lm_head.weight" };

    /// All that checkpoints have.
    pub(crate) const ALL: [Self; 3] = [Self::INSIDE, Self::BESIDE, Self::TEXT];
}

impl Wrapper {
    /// A section, and names inside of `language_model`.
    pub(crate) const USUAL: Self = Self {
        model_type: "",
        aliases: &[],
        defaults: "{}",
        is_flat_too: false,
        names: Names::INSIDE,
    };
}

impl Wrapper {
    /// The class that this is a config of, if it is of one of them.
    pub fn of(config: &Map<String, Value>) -> Option<&'static Self> {
        let model_type = config.get("model_type")?.as_str()?;
        let mut all = families::ALL.iter().flat_map(|family| family.wrappers);
        all.find(|wrapper| wrapper.model_type == model_type)
    }

    /// The `model_type` of the family whose wrapper it is.
    fn family(&self) -> &'static str {
        let is_own = |family: &&&Family| family.wrappers.contains(self);
        families::ALL.iter().find(is_own).map_or("", |family| family.model_type())
    }

    /// An error that says what is `required` instead of a config of this class.
    pub fn refuse(&self, path: &Path, required: &str) -> Error {
        Error::Value {
            path: path.to_owned(),
            key: "model_type".to_owned(),
            found: format!("`{}`, which has other towers beside its text decoder", self.model_type),
            required: required.to_owned(),
        }
    }

    /// Its names as a phrase for messages.
    pub(crate) fn all_names() -> String {
        let all = families::ALL.iter().flat_map(|family| family.wrappers);
        let names: Vec<String> = all.map(|wrapper| format!("`{}`", wrapper.model_type)).collect();
        names.join(", ")
    }

    pub(crate) fn names(&self) -> Names {
        self.names
    }

    /// The section of the decoder in a config, for keys that change it.
    pub(crate) fn section(raw: &mut Map<String, Value>) -> &mut Map<String, Value> {
        if raw.get("text_config").is_some_and(Value::is_object) {
            raw["text_config"].as_object_mut().expect("it is an object")
        } else {
            raw
        }
    }

    /// The config of the decoder as a config of its family.
    pub(crate) fn decoder(
        &self,
        reader: &Reader<'_>,
        raw: &Map<String, Value>,
    ) -> Result<Map<String, Value>> {
        let section = match raw.get("text_config") {
            Some(Value::Object(section)) => Cow::Borrowed(section),
            None if self.is_flat_too => Cow::Borrowed(raw),
            Some(other) => return Err(reader.wrong("text_config", other, "an object")),
            None => {
                return Err(reader.refuse(
                    "text_config",
                    "missing",
                    "the config of the text decoder",
                ));
            }
        };
        let mut decoder = section.into_owned();
        let family = self.family();
        let model_type = decoder.get("model_type").and_then(Value::as_str).unwrap_or(family);
        let model_type = if self.aliases.contains(&model_type) { family } else { model_type };
        let model_type = model_type.to_owned();
        let defaults: Map<String, Value> =
            serde_json::from_str(self.defaults).expect("a fact is valid JSON");
        let of_family = defaults.into_iter().filter(|_| model_type == family);
        for (key, value) in of_family {
            let is_said = decoder.contains_key(&key)
                || key == "rope_theta" && decoder.contains_key("rope_parameters");
            if !is_said {
                decoder.insert(key, value);
            }
        }
        decoder.insert("model_type".to_owned(), Value::from(model_type));
        // What stands at the top for the whole model.
        for key in ["tie_word_embeddings", "quantization_config", "torch_dtype", "dtype"] {
            if let (Some(value), false) = (raw.get(key), decoder.contains_key(key)) {
                decoder.insert(key.to_owned(), value.clone());
            }
        }
        // Three positions of a token for images; for text they are one.
        for key in ["rope_scaling", "rope_parameters"] {
            if let Some(Value::Object(rope)) = decoder.get_mut(key)
                && rope.remove("mrope_section").is_some()
            {
                for key in ["type", "rope_type"] {
                    if rope.get(key).is_some_and(|value| value == "mrope") {
                        rope.insert(key.to_owned(), Value::from("default"));
                    }
                }
            }
        }
        Ok(decoder)
    }
}
