//! Which files of a folder belong to which split.
//!
//! A folder written by `save_to_disk` says so itself; a hub data set may say so in the head of its README; any other folder is
//! read by the names of its files and folders, with the rules of the datasets library (`data_files.py`).

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use globset::GlobBuilder;
use serde_json::{Map, Value};
use sterna_hf::weights::stays_inside;

use crate::{
    error::{Error, Result},
    source::readme,
};

/// The files of each split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SplitFiles {
    /// The files are one split, whatever name the recipe uses for it.
    Single(Vec<PathBuf>),
    /// Splits with names, in order.
    Named(Vec<(String, Vec<PathBuf>)>),
}

/// The keywords that make a file belong to a split.
const KEYWORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Files that describe data instead of being data.
const IGNORED: [&str; 6] = [
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "dummy_data.json",
];

/// Finds the files of the source at `root`, with the `load_dataset` arguments that choose files.
pub(super) fn split_files(
    source_name: &str,
    root: &Path,
    kwargs: &Map<String, Value>,
) -> Result<SplitFiles> {
    if root.is_file() {
        return Ok(SplitFiles::Single(vec![root.to_path_buf()]));
    }
    let text_of = |key: &'static str| match kwargs.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(other) => Err(Error::BadKwarg {
            source_name: source_name.to_owned(),
            key,
            found: other.to_string(),
            required: "text",
        }),
    };
    if let Some(data_files) = kwargs.get("data_files") {
        return chosen_files(source_name, root, data_files);
    }
    let folder =
        text_of("data_dir")?.map_or_else(|| root.to_path_buf(), |data_dir| root.join(data_dir));
    if folder.join("dataset_dict.json").is_file() {
        return dataset_dict(&folder);
    }
    if folder.join("state.json").is_file() {
        return Ok(SplitFiles::Single(saved_files(&folder)?));
    }
    if folder == root
        && let Some(patterns) = readme::configured_files(source_name, root, text_of("name")?)?
    {
        let splits =
            patterns.into_iter().map(|(split, patterns)| Ok((split, matching(root, &patterns)?)));
        return Ok(SplitFiles::Named(splits.collect::<Result<_>>()?));
    }
    by_name(&folder)
}

impl SplitFiles {
    /// The files of the split `name`; `None` if there is no such split.
    pub(super) fn of(&self, name: &str) -> Option<&[PathBuf]> {
        match self {
            Self::Single(files) => Some(files),
            Self::Named(splits) => {
                let named = |name: &str| splits.iter().find(|(split, _)| split == name);
                // `eval` is the recipe's default name; the datasets library calls such files `test`.
                let canonical = || KEYWORDS.iter().find(|(_, keywords)| keywords.contains(&name));
                let found = named(name).or_else(|| named(canonical()?.0));
                found.map(|(_, files)| files.as_slice())
            }
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        match self {
            Self::Single(_) => Vec::new(),
            Self::Named(splits) => splits.iter().map(|(name, _)| name.clone()).collect(),
        }
    }
}

/// `data_files`: a pattern, a list of patterns, or either for each split.
fn chosen_files(source_name: &str, root: &Path, data_files: &Value) -> Result<SplitFiles> {
    let bad = |found: &Value| Error::BadKwarg {
        source_name: source_name.to_owned(),
        key: "data_files",
        found: found.to_string(),
        required: "a pattern, a list of patterns, or a map from split to patterns",
    };
    let patterns = |value: &Value| match value {
        Value::String(pattern) => Ok(vec![pattern.clone()]),
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned).ok_or_else(|| bad(value)))
            .collect(),
        other => Err(bad(other)),
    };
    let splits: Vec<(String, Vec<PathBuf>)> = match data_files {
        Value::Object(map) => map
            .iter()
            .map(|(split, value)| Ok((split.clone(), matching(root, &patterns(value)?)?)))
            .collect::<Result<_>>()?,
        other => vec![("train".to_owned(), matching(root, &patterns(other)?)?)],
    };
    Ok(SplitFiles::Named(splits))
}

/// The files under `root` that match any pattern, pattern after pattern.
fn matching(root: &Path, patterns: &[String]) -> Result<Vec<PathBuf>> {
    let all = all_files(root)?;
    let mut found = Vec::new();
    for pattern in patterns {
        let no_match =
            || Error::NoFileMatches { path: root.to_path_buf(), pattern: pattern.clone() };
        let glob =
            GlobBuilder::new(pattern.trim_start_matches("./")).literal_separator(true).build();
        let matcher = glob.map_err(|_| no_match())?.compile_matcher();
        let before = found.len();
        found.extend(all.iter().filter(|file| matcher.is_match(relative(root, file))).cloned());
        if found.len() == before {
            return Err(no_match());
        }
    }
    Ok(found)
}

fn dataset_dict(folder: &Path) -> Result<SplitFiles> {
    let path = folder.join("dataset_dict.json");
    let json = read_json(&path)?;
    let names = json.get("splits").and_then(Value::as_array).ok_or_else(|| Error::JsonShape {
        path: path.clone(),
        line: 1,
        found: "no list `splits`",
        required: "the file that save_to_disk writes",
    })?;
    let splits = names.iter().filter_map(Value::as_str).map(|name| {
        let files = saved_files(&inside(&path, folder, name)?)?;
        Ok((name.to_owned(), files))
    });
    Ok(SplitFiles::Named(splits.collect::<Result<_>>()?))
}

/// The Arrow files of a folder written by `save_to_disk`, in the order in which they are the data set.
fn saved_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let path = folder.join("state.json");
    let json = read_json(&path)?;
    let files =
        json.get("_data_files").and_then(Value::as_array).ok_or_else(|| Error::JsonShape {
            path: path.clone(),
            line: 1,
            found: "no list `_data_files`",
            required: "the file that save_to_disk writes",
        })?;
    let names = files.iter().filter_map(|file| file.get("filename")?.as_str());
    names.map(|name| inside(&path, folder, name)).collect()
}

/// `name` in `folder`, as the file `list` gives it.
fn inside(list: &Path, folder: &Path, name: &str) -> Result<PathBuf> {
    if stays_inside(name) {
        return Ok(folder.join(name));
    }
    Err(Error::LeavesFolder { path: list.to_path_buf(), found: name.to_owned() })
}

fn read_json(path: &Path) -> Result<Value> {
    let text =
        std::fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    serde_json::from_slice(&text).map_err(|source| Error::Json {
        path: path.to_path_buf(),
        line: source.line(),
        source,
    })
}

/// The rules of the datasets library, in its order: `data/SPLIT-00000-of-00001.*`, then keywords in folder names, then keywords in
/// file names, then everything is `train`.
fn by_name(root: &Path) -> Result<SplitFiles> {
    let files = all_files(root)?;
    if files.is_empty() {
        return Err(Error::NoDataFiles {
            path: root.to_path_buf(),
            required: "a .json, .jsonl, .parquet or .arrow file".to_owned(),
        });
    }
    let sharded = sharded_splits(root, &files);
    if !sharded.is_empty() {
        return Ok(SplitFiles::Named(sharded));
    }
    for matches in [folder_has_keyword as fn(&str, &str) -> bool, file_has_keyword] {
        let splits: Vec<_> = KEYWORDS
            .iter()
            .filter_map(|(split, keywords)| {
                let is_match = |file: &&PathBuf| {
                    let name = relative(root, file);
                    keywords.iter().any(|keyword| matches(&name, keyword))
                };
                let found: Vec<PathBuf> = files.iter().filter(is_match).cloned().collect();
                (!found.is_empty()).then(|| ((*split).to_owned(), found))
            })
            .collect();
        if !splits.is_empty() {
            return Ok(SplitFiles::Named(splits));
        }
    }
    Ok(SplitFiles::Named(vec![("train".to_owned(), files)]))
}

/// Splits of files named `data/SPLIT-00000-of-00001*.EXT`.
fn sharded_splits(root: &Path, files: &[PathBuf]) -> Vec<(String, Vec<PathBuf>)> {
    let mut splits: Vec<(String, Vec<PathBuf>)> = Vec::new();
    for file in files {
        let name = relative(root, file);
        let Some(split) = name.strip_prefix("data/").and_then(shard_split) else { continue };
        match splits.iter_mut().find(|(name, _)| name == split) {
            Some((_, files)) => files.push(file.clone()),
            None => splits.push((split.to_owned(), vec![file.clone()])),
        }
    }
    splits
}

/// `train_sft` of `train_sft-00000-of-00003-f7dfac4afe5b93f4.parquet`.
fn shard_split(name: &str) -> Option<&str> {
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let (start, _) = name.match_indices("-of-").find(|&(at, _)| {
        let (before, after) = (&name[..at], &name[at + 4..]);
        after.get(..5).is_some_and(is_number)
            && before.len() > 6
            && before.is_char_boundary(before.len() - 6)
            && before[before.len() - 6..].starts_with('-')
            && is_number(&before[before.len() - 5..])
    })?;
    let split = &name[..start - 6];
    (!split.is_empty() && split.chars().all(|c| c.is_alphanumeric() || "_.".contains(c)))
        .then_some(split)
}

/// A folder on the way to `name` is the keyword, or holds it between separators.
fn folder_has_keyword(name: &str, keyword: &str) -> bool {
    let Some((folders, _)) = name.rsplit_once('/') else { return false };
    folders.split('/').any(|folder| folder == keyword || has_keyword(folder, keyword, true))
}

/// The file name holds the keyword at its start or after a separator, and before a separator.
fn file_has_keyword(name: &str, keyword: &str) -> bool {
    has_keyword(name.rsplit('/').next().unwrap_or(name), keyword, false)
}

fn has_keyword(name: &str, keyword: &str, may_end: bool) -> bool {
    let is_separator = |c: char| "-._ ".contains(c) || c.is_ascii_digit();
    name.match_indices(keyword).any(|(at, _)| {
        let starts = name[..at].chars().next_back().is_none_or(is_separator);
        starts && name[at + keyword.len()..].chars().next().map_or(may_end, is_separator)
    })
}

/// Every data file below `root`, sorted by path; hidden files and folders are left out.
fn all_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    // A link to a folder above it would be walked for ever.
    let mut seen = HashSet::new();
    while let Some(folder) = folders.pop() {
        let error = |source| Error::Read { path: folder.clone(), source };
        if !seen.insert(folder.canonicalize().map_err(error)?) {
            continue;
        }
        for entry in std::fs::read_dir(&folder).map_err(error)? {
            let path = entry.map_err(error)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') || name.starts_with("__") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if Format::of(&path).is_some() && !IGNORED.contains(&name.as_ref()) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// `file` below `root`, with slashes.
fn relative(root: &Path, file: &Path) -> String {
    let parts = file.strip_prefix(root).unwrap_or(file).components();
    parts.map(|part| part.as_os_str().to_string_lossy().into_owned()).collect::<Vec<_>>().join("/")
}

/// How a data file is read, by the end of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Parquet,
    Arrow,
}

impl Format {
    pub(super) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "json" | "jsonl" | "ndjson" => Some(Self::Json),
            "parquet" => Some(Self::Parquet),
            "arrow" => Some(Self::Arrow),
            _ => None,
        }
    }
}
