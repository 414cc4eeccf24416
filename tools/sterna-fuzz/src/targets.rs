//! What is fuzzed: for each format, valid files, the words it is made of, and the reader.
//!
//! A reader gets the bytes of one file and an empty folder, does with the file what a run does, and answers with a line:
//! what was read, or the error. To add a target, write such a function, enter it in [`ALL`], and give it a file and a `[[bin]]`
//! in `fuzz/`.

mod cache;
mod checkpoint;
mod launch;
mod model;
mod recipe;
mod rows;
mod tokens;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A format and its reader.
pub struct Target {
    /// What it is called here and in `fuzz/`.
    pub name: &'static str,
    /// Words that the format is made of.
    pub dictionary: &'static [&'static str],
    /// Address space in GiB, most of which is reserved and not used.
    pub memory: u64,
    /// Makes valid inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Reads an input, with a folder to put files in.
    pub run: fn(&[u8], &Path) -> String,
}

/// Every target.
pub const ALL: &[Target] = &[
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

/// Does what no reader may do, and is in no list: it shows that each of these is found, and that coverage leads there.
pub(crate) const SELF_TEST: Target = Target {
    name: "self_test",
    dictionary: &[],
    memory: 3,
    seeds: Vec::new,
    run: |input, _| {
        // A comparison for each byte, so that each byte that is right is new coverage. Guessing four takes four billion tries.
        let mut bytes = input.iter();
        for expected in b"seed" {
            if bytes.next() != Some(expected) {
                return "other bytes".to_owned();
            }
        }
        match bytes.as_slice() {
            b"-stack" => descend(0).to_string(),
            b"-memory" => {
                let mut blocks = Vec::new();
                loop {
                    blocks.push(std::hint::black_box(vec![0_u8; 1 << 26]));
                }
            }
            b"-time" => loop {
                std::thread::sleep(std::time::Duration::from_secs(1));
            },
            _ => panic!("as asked"),
        }
    },
};

/// Deeper than any stack; the array keeps the compiler from making a loop of it.
fn descend(depth: u64) -> u64 {
    let here = std::hint::black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { descend(depth + 1) + here[0] }
}

/// The crates' folder, where their test files are seeds.
fn crates() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates"))
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
