//! Which tokens are special, and for what, by transformers' precedence of files.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::read_json_object;
use crate::error::{Error, Result};

/// The roles of single special tokens, in transformers' order.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// The role of a list of further ones.
const ADDITIONAL: &str = "additional_special_tokens";

/// Special tokens by role, and the tokens that `tokenizer_config.json` adds to the vocabulary.
#[derive(Debug, Clone)]
pub(super) struct SpecialTokens {
    /// Strings by role, and a list of strings for the additional ones: what templates see.
    by_role: Map<String, Value>,
    /// Tokens of `added_tokens_decoder` by id, then those of the roles: the order of adding.
    to_add: Vec<AddedToken>,
}

impl SpecialTokens {
    /// Reads the roles from the config, over the defaults of its `tokenizer_class`; files from
    /// before `added_tokens_decoder` have them in `special_tokens_map.json`.
    pub(super) fn read(
        dir: &Path,
        path: &Path,
        config: &Map<String, Value>,
    ) -> Result<SpecialTokens> {
        let mut to_add = added_tokens(path, config)?;
        let legacy_path = dir.join("special_tokens_map.json");
        let legacy = if config.contains_key("added_tokens_decoder") {
            Map::new()
        } else {
            read_json_object(&legacy_path)?.unwrap_or_default()
        };
        let find = |role: &str| match legacy.get(role) {
            Some(value) => Some((legacy_path.as_path(), value)),
            None => config.get(role).map(|value| (path, value)),
        };
        let defaults =
            class_defaults(config.get("tokenizer_class").and_then(Value::as_str).unwrap_or(""));

        let mut by_role = Map::new();
        let mut remember = |token: AddedToken| {
            if to_add.iter().all(|known| known.content != token.content) {
                to_add.push(token);
            }
        };
        for role in ROLES {
            let token = match find(role) {
                // A `null` of the file is an answer: no such token.
                Some((_, Value::Null)) => None,
                Some((path, value)) => Some(added_token(path, role, value)?),
                None => defaults
                    .iter()
                    .find(|(default_role, _)| *default_role == role)
                    .map(|(_, token)| AddedToken::from(*token, true)),
            };
            if let Some(token) = token.filter(|token| !token.content.is_empty()) {
                by_role.insert(role.to_owned(), Value::from(token.content.as_str()));
                remember(token);
            }
        }
        // Of this one role, the legacy file adds to the config's list.
        let mut names: Vec<Value> = Vec::new();
        for (path, file) in [(path, config), (legacy_path.as_path(), &legacy)] {
            for value in file.get(ADDITIONAL).and_then(Value::as_array).into_iter().flatten() {
                let token = added_token(path, ADDITIONAL, value)?;
                let name = Value::from(token.content.as_str());
                if !names.contains(&name) {
                    names.push(name);
                }
                remember(token);
            }
        }
        if !names.is_empty() {
            by_role.insert(ADDITIONAL.to_owned(), Value::from(names));
        }
        Ok(SpecialTokens { by_role, to_add })
    }

    /// The string of a single special token.
    pub(super) fn get(&self, role: &str) -> Option<&str> {
        self.by_role.get(role)?.as_str()
    }

    /// What a chat template sees.
    pub(super) fn by_role(&self) -> &Map<String, Value> {
        &self.by_role
    }

    /// The tokens to add to a tokenizer that knows only its own file.
    pub(super) fn missing_from(&self, tokenizer: &tokenizers::Tokenizer) -> Vec<AddedToken> {
        let known = tokenizer.get_added_tokens_decoder();
        self.to_add
            .iter()
            .filter(|token| known.values().all(|known| known != *token))
            .cloned()
            .collect()
    }

    /// The ids of the tokens marked special and of those with a role, in increasing order.
    pub(super) fn ids(&self, tokenizer: &tokenizers::Tokenizer) -> Vec<u32> {
        let added = tokenizer.get_added_tokens_decoder();
        let marked = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id);
        let names = self.by_role.values().flat_map(|value| match value {
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            name => Vec::from_iter(name.as_str()),
        });
        let mut ids: Vec<u32> =
            marked.chain(names.filter_map(|name| tokenizer.token_to_id(name))).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// The special tokens that transformers' classes of our families have when a file names none.
fn class_defaults(tokenizer_class: &str) -> &'static [(&'static str, &'static str)] {
    match tokenizer_class.strip_suffix("Fast").unwrap_or(tokenizer_class) {
        "LlamaTokenizer" => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
        "GPT2Tokenizer" => &[
            ("bos_token", "<|endoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
        ],
        "Qwen2Tokenizer" => &[
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
            ("pad_token", "<|endoftext|>"),
        ],
        _ => &[],
    }
}

/// The tokens of `added_tokens_decoder`, by id.
fn added_tokens(path: &Path, config: &Map<String, Value>) -> Result<Vec<AddedToken>> {
    let Some(Value::Object(decoder)) = config.get("added_tokens_decoder") else {
        return Ok(Vec::new());
    };
    let mut tokens = decoder
        .iter()
        .map(|(id, value)| {
            let key = format!("added_tokens_decoder.{id}");
            let id: u32 = id.parse().map_err(|_| wrong(path, &key, value, "under a token id"))?;
            Ok((id, added_token(path, &key, value)?))
        })
        .collect::<Result<Vec<_>>>()?;
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens.into_iter().map(|(_, token)| token).collect())
}

/// A token written as a string or as an object with its flags.
fn added_token(path: &Path, key: &str, value: &Value) -> Result<AddedToken> {
    let required = "a string, or an object with `content`";
    match value {
        Value::String(content) => Ok(AddedToken::from(content.as_str(), true)),
        Value::Object(map) => {
            let content = map.get("content").and_then(Value::as_str);
            let content = content.ok_or_else(|| wrong(path, key, value, required))?;
            let flag = |name: &str| map.get(name).and_then(Value::as_bool);
            // Of a role, a token is special whether or not it says so.
            let is_special = flag("special").unwrap_or(!key.starts_with("added_tokens_decoder"));
            Ok(AddedToken::from(content, is_special)
                .single_word(flag("single_word").unwrap_or(false))
                .lstrip(flag("lstrip").unwrap_or(false))
                .rstrip(flag("rstrip").unwrap_or(false))
                .normalized(flag("normalized").unwrap_or(!is_special)))
        }
        _ => Err(wrong(path, key, value, required)),
    }
}

fn wrong(path: &Path, key: &str, value: &Value, required: &str) -> Error {
    Error::Value {
        path: path.to_owned(),
        key: key.to_owned(),
        found: format!("`{value}`"),
        required: required.to_owned(),
    }
}
