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
    source::{
        columnar,
        readme::{self, Configured},
    },
};

/// A file that is not read although it looks like data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The file.
    pub path: PathBuf,
    /// Why, as the end of a sentence.
    pub why: &'static str,
}

/// The files of each split, read or not.
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
    left_out: &mut Vec<LeftOut>,
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
    let folder =
        text_of("data_dir")?.map_or_else(|| root.to_path_buf(), |data_dir| root.join(data_dir));
    if let Some(data_files) = kwargs.get("data_files").filter(|files| !files.is_null()) {
        return chosen_files(source_name, &folder, data_files);
    }
    if folder.join("dataset_dict.json").is_file() {
        return dataset_dict(&folder);
    }
    if folder.join("state.json").is_file() {
        return Ok(SplitFiles::Single(saved_files(&folder)?));
    }
    if folder != root {
        return by_name(&folder, left_out);
    }
    let Configured { data_dir, data_files } =
        readme::configured_files(source_name, root, text_of("name")?)?;
    let folder = data_dir.map_or(folder, |data_dir| root.join(data_dir));
    let Some(patterns) = data_files else { return by_name(&folder, left_out) };
    let splits =
        patterns.into_iter().map(|(split, patterns)| Ok((split, matching(&folder, &patterns)?)));
    Ok(SplitFiles::Named(splits.collect::<Result<_>>()?))
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
fn by_name(root: &Path, left_out: &mut Vec<LeftOut>) -> Result<SplitFiles> {
    let files = all_files(root)?;
    if files.is_empty() {
        return Err(Error::NoDataFiles { path: root.to_path_buf() });
    }
    let splits = named_splits(root, &files);
    let used: HashSet<&PathBuf> = splits.iter().flat_map(|(_, files)| files).collect();
    let unused = files.iter().filter(|file| !used.contains(file));
    left_out.extend(
        unused.map(|file| LeftOut { path: file.clone(), why: "its name belongs to no split" }),
    );
    Ok(SplitFiles::Named(splits))
}

fn named_splits(root: &Path, files: &[PathBuf]) -> Vec<(String, Vec<PathBuf>)> {
    let sharded = sharded_splits(root, files);
    if !sharded.is_empty() {
        return sharded;
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
            return splits;
        }
    }
    vec![("train".to_owned(), files.to_vec())]
}

/// Splits of files named `data/SPLIT-00000-of-00001*.EXT`: the usual ones first, then the others by name.
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
    let rank = |name: &str| KEYWORDS.iter().position(|(split, _)| *split == name);
    splits.sort_by_key(|(name, _)| (rank(name).unwrap_or(KEYWORDS.len()), name.clone()));
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

/// Every data file below `root`, readable or not, sorted by path; hidden files and folders are left out.
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
            if name.starts_with('.') {
                continue;
            }
            if path.is_dir() {
                if !name.starts_with("__") {
                    folders.push(path);
                }
            } else if Kind::of(&path) != Kind::Other && !IGNORED.contains(&name.as_ref()) {
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

/// The files of a split that are read: as in the datasets library those of one format, which most of them have, so that a folder
/// that holds its rows twice gives them once. Files that cannot be read have no vote.
pub(super) fn of_one_format(
    files: Vec<PathBuf>,
    left_out: &mut Vec<LeftOut>,
) -> Result<Vec<(PathBuf, Format)>> {
    let mut counts: Vec<(Format, &'static str, usize)> = Vec::new();
    for file in &files {
        let Kind::Data(format, ending) = Kind::of(file) else { continue };
        match counts.iter_mut().find(|(_, known, _)| *known == ending) {
            Some((.., count)) => *count += 1,
            None => counts.push((format, ending, 1)),
        }
    }
    let rank = |ending| ENDINGS.iter().rev().position(|(known, _)| *known == ending);
    let most = counts.iter().max_by_key(|&&(_, ending, count)| (count, rank(ending)));
    let Some(&(chosen, ..)) = most else {
        let path = files.into_iter().next().unwrap_or_default();
        return Err(unreadable(path));
    };
    let mut chosen_files = Vec::new();
    for path in files {
        match Kind::of(&path) {
            Kind::Data(format, _) if format == chosen => chosen_files.push((path, format)),
            Kind::Data(..) => {
                left_out.push(LeftOut { path, why: "most files of the split have another format" });
            }
            Kind::Refused(why) => left_out.push(LeftOut { path, why }),
            Kind::Other => left_out.push(LeftOut { path, why: "its name says no format" }),
        }
    }
    Ok(chosen_files)
}

/// The error for a file that nothing here reads.
fn unreadable(path: PathBuf) -> Error {
    let why = match Kind::of(&path) {
        Kind::Refused(why) => why,
        Kind::Data(..) | Kind::Other => "its name says no format",
    };
    Error::UnknownFormat { path, why }
}

/// How a data file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Columnar(columnar::Kind),
}

/// Ends of names that are read, with the favourite first where a split has as many files of each.
const ENDINGS: [(&str, Format); 5] = [
    ("parquet", Format::Columnar(columnar::Kind::Parquet)),
    ("arrow", Format::Columnar(columnar::Kind::Arrow)),
    ("jsonl", Format::Json),
    ("json", Format::Json),
    ("ndjson", Format::Json),
];

/// Compressions of JSON files that are read.
const COMPRESSIONS: [&str; 3] = ["gz", "zst", "zstd"];

/// Ends of names that say that a file holds data which is not read.
const REFUSED: [(&[&str], &str); 8] = [
    (&["csv", "tsv"], "it is a table of text (CSV), whose columns have no types"),
    (&["txt", "text"], "it is plain text"),
    (&["zip", "tar", "tgz", "7z", "rar"], "it is an archive"),
    (&["bz2", "xz", "lz4", "lzma", "br", "lz", "gz", "zst", "zstd"], "it is compressed"),
    (&["feather", "orc", "avro", "lance", "vortex"], "it is a table in another format"),
    (&["h5", "hdf5", "npy", "npz", "pkl", "pickle", "pt"], "it is an array or a Python object"),
    (&["xml"], "it is a document"),
    (&["xlsx", "xls", "ods", "db", "sqlite", "sqlite3", "duckdb"], "it is a database"),
];

/// What the name of a file says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its format, and the end of the name without a compression.
    Data(Format, &'static str),
    /// It holds data in a form that is not read, and which.
    Refused(&'static str),
    Other,
}

impl Kind {
    pub(super) fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let Some((stem, ending)) = name.rsplit_once('.') else { return Self::Other };
        let read = |ending: &str| ENDINGS.into_iter().find(|(known, _)| *known == ending);
        let inner = stem.rsplit_once('.').and_then(|(_, inner)| read(inner));
        if let Some((ending, format)) = read(ending) {
            return Self::Data(format, ending);
        }
        if let Some((inner, Format::Json)) = inner
            && COMPRESSIONS.contains(&ending)
        {
            return Self::Data(Format::Json, inner);
        }
        let refused = REFUSED.iter().find(|(endings, _)| endings.contains(&ending));
        refused.map_or(Self::Other, |(_, why)| Self::Refused(why))
    }
}
