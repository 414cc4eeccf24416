//! `model.peft_config`: PEFT's own keys, which [`LoraConfig`] reads.

use std::path::Path;

use serde_json::Value;
use sterna_arch::{LoraConfig, adapters};

use super::missing;
use crate::{
    diagnostic::{Diagnostic, Kind},
    file::{At, ModelFile, Reader, nearest},
    yaml::{Content, Node, join},
};

/// The adapters that a recipe asks for: by its own keys, or by a folder, whose config says the rest.
pub(super) fn resolve(model: &ModelFile, reader: &mut Reader) -> Option<LoraConfig> {
    let at = model.peft_config.as_ref()?;
    let mut map = match at.value.to_json() {
        Value::Null => return None,
        Value::Object(map) if map.is_empty() => return None,
        Value::Object(map) => map,
        _ => {
            let required = "a mapping with PEFT's keys";
            reader.error(Diagnostic::value(&at.path, at.span, "no mapping".to_owned(), required));
            return None;
        }
    };
    if let Some(folder) = model.adapter_name_or_path.as_ref().filter(|at| at.value.is_some()) {
        reader.error(Diagnostic {
            kind: Kind::Conflict,
            key_path: folder.path.clone(),
            span: Some(folder.span),
            found: format!("`{}` and `{}` are both set", at.path, folder.path),
            required: "one of them: `adapter_config.json` of the folder says what its adapters are"
                .to_owned(),
            hint: None,
        });
        return None;
    }
    unknown_keys(at, reader);
    map.retain(|key, _| adapters::is_key(key));
    match LoraConfig::from_recipe(&map, Path::new("")) {
        Ok(lora) => Some(lora),
        Err(sterna_arch::Error::Value { key, found, required, .. }) if found == "missing" => {
            missing(reader, &join(&at.path, &key), &at.path, &required);
            None
        }
        Err(sterna_arch::Error::Value { key, found, required, .. }) => {
            let span = entry(&at.value, &key).map_or(at.span, |node| node.span);
            reader.error(Diagnostic::value(&join(&at.path, &key), span, found, required));
            None
        }
        Err(error) => unreachable!("a mapping is read without files: {error}"),
    }
}

/// Reports keys that PEFT has not: in a file of PEFT they may be newer, here they are typed.
fn unknown_keys(at: &At<Node>, reader: &mut Reader) {
    let Content::Mapping(entries) = &at.value.content else { return };
    for entry in entries.iter().filter(|entry| !adapters::is_key(&entry.key)) {
        let hint = match nearest(&entry.key, adapters::keys()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => "`model.peft_config` has the keys of PEFT's `LoraConfig`".to_owned(),
        };
        reader.error(Diagnostic {
            kind: Kind::UnknownKey,
            key_path: join(&at.path, &entry.key),
            span: Some(entry.key_span),
            found: format!("`{}`", entry.key),
            required: "a key of PEFT's `LoraConfig`".to_owned(),
            hint: Some(hint),
        });
    }
}

/// The value of a dotted key, as far as it is there.
fn entry<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    let Content::Mapping(entries) = &node.content else { return None };
    let first = key.split('.').next()?;
    entries.iter().find(|entry| entry.key == first).map(|entry| &entry.value)
}
