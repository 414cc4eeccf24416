//! The head of a data set's README on the hub, where `configs` says which files are which split.

use std::{io::ErrorKind, path::Path};

use serde::Deserialize;
use sterna_hf::weights::stays_inside;

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
    data_dir: Option<String>,
}

/// What a configuration says about its files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Configured {
    /// The folder that its patterns are relative to, and whose files it has if it gives no patterns.
    pub(super) data_dir: Option<String>,
    pub(super) data_files: Option<SplitPatterns>,
}

/// Patterns of the only split, or of each.
#[derive(Deserialize)]
#[serde(untagged)]
enum DataFiles {
    Train(Patterns),
    Splits(Vec<SplitFiles>),
}

#[derive(Deserialize)]
struct SplitFiles {
    split: String,
    path: Patterns,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Patterns {
    One(String),
    Many(Vec<String>),
}

impl Patterns {
    fn to_vec(&self) -> Vec<String> {
        match self {
            Self::One(pattern) => vec![pattern.clone()],
            Self::Many(patterns) => patterns.clone(),
        }
    }
}

/// What `README.md` in `root` says of the configuration `wanted`, or of the default one; nothing if it has no configurations.
pub(super) fn configured_files(
    source_name: &str,
    root: &Path,
    wanted: Option<&str>,
) -> Result<Configured> {
    let path = root.join("README.md");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return unconfigured(source_name, wanted);
        }
        Err(source) => return Err(Error::Read { path, source }),
    };
    // Prose below the head in some other encoding is nothing to us.
    let Some(head) = front_matter(&String::from_utf8_lossy(&text)) else {
        return unconfigured(source_name, wanted);
    };
    let front: FrontMatter = serde_saphyr::from_str(&head)
        .map_err(|source| Error::FrontMatter { path: path.clone(), source: Box::new(source) })?;
    if front.configs.is_empty() {
        return unconfigured(source_name, wanted);
    }
    let chosen = if let Some(name) = wanted {
        front.configs.iter().find(|config| config.name == name)
    } else {
        let is_default = |config: &&Config| {
            config.is_default || config.name == "default" || front.configs.len() == 1
        };
        let defaults: Vec<&Config> = front.configs.iter().filter(is_default).collect();
        if defaults.len() > 1 {
            let found = defaults.iter().map(|config| config.name.clone()).collect();
            return Err(Error::SeveralDefaults { path, found });
        }
        defaults.first().copied()
    };
    let chosen = chosen.ok_or_else(|| Error::UnknownConfiguration {
        source_name: source_name.to_owned(),
        found: wanted.unwrap_or("default").to_owned(),
        available: front.configs.iter().map(|config| config.name.clone()).collect(),
    })?;
    if let Some(data_dir) = &chosen.data_dir
        && !stays_inside(data_dir)
    {
        return Err(Error::LeavesFolder { path, found: data_dir.clone() });
    }
    Ok(Configured {
        data_dir: chosen.data_dir.clone(),
        data_files: chosen
            .data_files
            .as_ref()
            .map(|files| split_patterns(&path, files))
            .transpose()?,
    })
}

/// The lines between the first two lines `---`, with any line breaks.
fn front_matter(text: &str) -> Option<String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_start();
    let mut lines = text.lines();
    if lines.next() != Some("---") {
        return None;
    }
    let mut head = String::new();
    for line in lines {
        if line == "---" {
            return Some(head);
        }
        head.push_str(line);
        head.push('\n');
    }
    None
}

/// Without `configs` there is one configuration, called `default`.
fn unconfigured(source_name: &str, wanted: Option<&str>) -> Result<Configured> {
    match wanted {
        None | Some("default") => Ok(Configured::default()),
        Some(name) => Err(Error::UnknownConfiguration {
            source_name: source_name.to_owned(),
            found: name.to_owned(),
            available: vec!["default".to_owned()],
        }),
    }
}

fn split_patterns(path: &Path, data_files: &DataFiles) -> Result<SplitPatterns> {
    let mut splits: SplitPatterns = Vec::new();
    match data_files {
        DataFiles::Train(patterns) => splits.push(("train".to_owned(), patterns.to_vec())),
        DataFiles::Splits(entries) => {
            for entry in entries {
                if splits.iter().any(|(known, _)| *known == entry.split) {
                    let (path, split) = (path.to_path_buf(), entry.split.clone());
                    return Err(Error::SplitTwice { path, split });
                }
                splits.push((entry.split.clone(), entry.path.to_vec()));
            }
        }
    }
    Ok(splits)
}
