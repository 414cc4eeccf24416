//! What is fuzzed: for each format, valid files, the words it is made of, and the reader.
//!
//! A reader gets the bytes of one file and an empty folder, does with the file what a run does, and answers with a line:
//! what was read, or the error. To add a target, write such a function and enter it in [`ALL`].

mod cache;
mod checkpoint;
mod launch;
mod model;
mod recipe;
mod rows;
mod tokens;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::mutate::Shape;

/// A format and its reader.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) shape: Shape,
    pub(crate) dictionary: &'static [&'static str],
    /// Address space in GiB, most of which is reserved and not used.
    pub(crate) memory: u64,
    /// Valid inputs.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// Reads an input, with a folder to put files in.
    pub(crate) run: fn(&[u8], &Path) -> String,
}

/// Every target.
pub(crate) const ALL: &[Target] = &[
    recipe::RECIPE,
    recipe::OVERRIDE,
    model::CONFIG,
    model::WEIGHTS,
    model::INDEX,
    tokens::TOKENIZER,
    tokens::TEMPLATE,
    rows::JSONL,
    rows::PARQUET,
    rows::ARROW,
    rows::README,
    rows::STATE,
    cache::MANIFEST,
    checkpoint::CHECKPOINT,
    launch::HOSTFILE,
];

/// Does what no reader may do. By name only: it shows that the watch sees it.
pub(crate) const SELF_TEST: Target = Target {
    name: "self-test",
    about: "panics, recurses, allocates and stalls",
    shape: Shape::Text,
    dictionary: &[],
    memory: 3,
    seeds: || ["panic", "stack", "memory", "time"].map(|word| word.as_bytes().to_vec()).to_vec(),
    run: |input, _| match input {
        b"panic" => panic!("as asked"),
        b"stack" => descend(0).to_string(),
        b"memory" => {
            let mut blocks = Vec::new();
            loop {
                blocks.push(vec![0_u8; 1 << 26]);
            }
        }
        b"time" => loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
        },
        _ => String::new(),
    },
};

/// Deeper than any stack; the array keeps the compiler from making a loop of it.
fn descend(depth: u64) -> u64 {
    let here = std::hint::black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { descend(depth + 1) + here[0] }
}

/// The crates' folder, where their test files are seeds.
fn crates() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The files of a folder of the crates, sorted by name, that end with `end`.
fn files(folder: &str, end: &str) -> Vec<Vec<u8>> {
    let folder = crates().join(folder);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|err| panic!("`{}`: {err}", folder.display()))
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with(end))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "`{}` has no file that ends with `{end}`", folder.display());
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|err| panic!("`{}`: {err}", path.display()))
}

/// An input as text; readers of text files read them so.
fn text(input: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(input)
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap_or_else(|err| panic!("`{}`: {err}", path.display()));
}

/// An error with its causes, as the command line prints it.
fn answer(error: &dyn std::error::Error) -> String {
    let mut text = format!("refused: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::answers_of_seeds;

    /// A seed that is refused would be mutated into nothing but refusals.
    #[test]
    fn every_seed_is_read() {
        for target in ALL {
            for (i, answer) in answers_of_seeds(target).iter().enumerate() {
                assert!(!answer.contains("refused"), "{} {i}: {answer}", target.name);
            }
        }
    }
}
