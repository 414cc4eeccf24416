//! The head of a data set's README on the hub, where `configs` says which files are which split.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};

/// Patterns of each split.
type SplitPatterns = Vec<(String, Vec<String>)>;

#[derive(Deserialize)]
struct FrontMatter {
    #[serde(default)]
    configs: Vec<Config>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "config_name")]
    name: String,
    #[serde(default, rename = "default")]
    is_default: bool,
    data_files: Option<DataFiles>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum DataFiles {
    Pattern(String),
    Entries(Vec<DataFile>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum DataFile {
    Pattern(String),
    Split { split: String, path: Patterns },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Patterns {
    One(String),
    Many(Vec<String>),
}

/// The patterns that `README.md` in `root` gives for the configuration `wanted`, or for the default one; `None` if it says nothing.
pub(super) fn configured_files(
    source_name: &str,
    root: &Path,
    wanted: Option<&str>,
) -> Result<Option<SplitPatterns>> {
    let path = root.join("README.md");
    let Ok(text) = std::fs::read_to_string(&path) else { return unconfigured(source_name, wanted) };
    let Some(head) =
        text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---")).map(|(head, _)| head)
    else {
        return unconfigured(source_name, wanted);
    };
    let front: FrontMatter = serde_saphyr::from_str(head)
        .map_err(|source| Error::FrontMatter { path: path.clone(), source: Box::new(source) })?;
    if front.configs.is_empty() {
        return unconfigured(source_name, wanted);
    }
    let chosen = match wanted {
        Some(name) => front.configs.iter().find(|config| config.name == name),
        None => front
            .configs
            .iter()
            .find(|config| config.is_default || config.name == "default")
            .or_else(|| (front.configs.len() == 1).then(|| &front.configs[0])),
    };
    let chosen = chosen.ok_or_else(|| Error::UnknownConfiguration {
        source_name: source_name.to_owned(),
        found: wanted.unwrap_or("default").to_owned(),
        available: front.configs.iter().map(|config| config.name.clone()).collect(),
    })?;
    Ok(chosen.data_files.as_ref().map(split_patterns))
}

/// Without `configs` there is one configuration, called `default`.
fn unconfigured(source_name: &str, wanted: Option<&str>) -> Result<Option<SplitPatterns>> {
    match wanted {
        None | Some("default") => Ok(None),
        Some(name) => Err(Error::UnknownConfiguration {
            source_name: source_name.to_owned(),
            found: name.to_owned(),
            available: vec!["default".to_owned()],
        }),
    }
}

fn split_patterns(data_files: &DataFiles) -> SplitPatterns {
    let mut splits: SplitPatterns = Vec::new();
    let mut add = |split: &str, patterns: &[String]| match splits
        .iter_mut()
        .find(|(name, _)| name == split)
    {
        Some((_, known)) => known.extend_from_slice(patterns),
        None => splits.push((split.to_owned(), patterns.to_vec())),
    };
    match data_files {
        DataFiles::Pattern(pattern) => add("train", std::slice::from_ref(pattern)),
        DataFiles::Entries(entries) => {
            for entry in entries {
                match entry {
                    DataFile::Pattern(pattern) => add("train", std::slice::from_ref(pattern)),
                    DataFile::Split { split, path: Patterns::One(pattern) } => {
                        add(split, std::slice::from_ref(pattern));
                    }
                    DataFile::Split { split, path: Patterns::Many(patterns) } => {
                        add(split, patterns);
                    }
                }
            }
        }
    }
    splits
}
