//! What libFuzzer runs: everything that reads a file, on files that are broken.
//!
//! The engine is libFuzzer, and its programs are in `fuzz/`, a package for cargo-fuzz and a workspace of its own: they are built with
//! coverage, which the everyday build must not be. Each is two calls of this crate, [`start`] and [`read`]. Here is what they share
//! with the tests of this crate, which run every target on its seeds: what is read, and what a reader may take.
//!
//! A panic, an abort, a stack overflow, an input that takes too long and one that takes too much memory are findings.

mod targets;

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, raise};

pub use crate::targets::{ALL, Target};

/// Readers run on threads of rayon's size.
const STACK_BYTES: u64 = 2 << 20;

/// If it is set, the answer to each input is printed.
const TELL: &str = "STERNA_FUZZ_TELL";

/// Name of the file with the current input, in the temporary folder.
const CURRENT: &str = "current";

static FUZZED: OnceLock<Fuzzed> = OnceLock::new();

/// What the last panic said.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// What this process fuzzes.
struct Fuzzed {
    target: &'static Target,
    /// In the temporary folder: the current input, and the folder of its reader.
    current: PathBuf,
    folder: PathBuf,
    tells: bool,
}

/// Prepares this process to fuzz the target `name`: sets the limits of memory and stack, and writes the seeds to `fuzz/corpus/NAME/`,
/// where cargo-fuzz looks for them, and the words to `fuzz/dictionaries/NAME`, for libFuzzer's `-dict`.
///
/// # Panics
///
/// If no target has that name, or a file or a limit cannot be set.
pub fn start(name: &str) {
    let mut known = ALL.iter().chain([&targets::SELF_TEST]);
    let target = known.find(|target| target.name == name);
    let target = target.unwrap_or_else(|| panic!("no target is named `{name}`"));
    limit(target).unwrap_or_else(|err| panic!("cannot limit memory: {err}"));
    prepare(target).unwrap_or_else(|err| panic!("cannot write the seeds of `{name}`: {err}"));
    let temporary = std::env::temp_dir();
    let id = std::process::id();
    let fuzzed = Fuzzed {
        target,
        current: temporary.join(CURRENT),
        folder: temporary.join(format!("sterna-fuzz-{name}-{id}")),
        tells: std::env::var_os(TELL).is_some(),
    };
    assert!(FUZZED.set(fuzzed).is_ok(), "a process fuzzes one target");
    // libFuzzer's own hook ends the process in every panic, also those of other people's readers, which are caught and are errors.
    std::panic::set_hook(Box::new(|panic| {
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = panic.to_string();
    }));
}

/// Reads one input; a panic that the reader lets out ends the process.
///
/// # Panics
///
/// If [`start`] was not called, or the temporary folder cannot be written to.
#[expect(clippy::print_stderr, reason = "libFuzzer's programs talk to their terminal")]
pub fn read(input: &[u8]) {
    let Fuzzed { target, current, folder, tells } = FUZZED.get().expect("`start` comes first");
    // libFuzzer saves no input that overflows the stack: its handler runs on that stack. Whoever finds this process dead finds it here.
    fs::write(current, input).expect("the temporary folder can be written to");
    // Whatever a reader left behind is not the next one's.
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).expect("the temporary folder can be written to");
    let Ok(answer) = catch_unwind(AssertUnwindSafe(|| (target.run)(input, folder))) else {
        let text = PANIC.lock().unwrap_or_else(PoisonError::into_inner).replace('\n', " | ");
        eprintln!("panic: {text}");
        std::process::abort();
    };
    if *tells {
        eprintln!("answer: {answer}");
    }
    let is_given_up = answer.contains("the chat template was given up");
    if is_given_up && !answer.contains("the reader failed") {
        // Too long or too large, and its thread is still at work. libFuzzer ends in order when it is interrupted, and xtask starts another.
        let _ = raise(Signal::SIGINT);
    }
}

/// Sets what this process may take: the memory that `target` may, the stack of a thread, and no core files.
///
/// # Errors
///
/// When the system allows less already.
pub fn limit(target: &Target) -> io::Result<()> {
    for (resource, limit) in [
        (Resource::RLIMIT_AS, target.memory << 30),
        (Resource::RLIMIT_STACK, STACK_BYTES),
        (Resource::RLIMIT_CORE, 0),
    ] {
        // Only the limit that counts: the tests run one target after the other.
        let (_, most) = getrlimit(resource)?;
        setrlimit(resource, limit, most)?;
    }
    Ok(())
}

/// Inputs that once broke the reader of `target`, with their paths. For tests: they are no seeds, because some are refused only after
/// all the time or memory that there is for one.
///
/// # Errors
///
/// When they are there and cannot be read.
pub fn regressions(target: &Target) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(target.name);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    paths.map(|path| path.and_then(|path| Ok((path.clone(), fs::read(path)?)))).collect()
}

/// The folder of the programs that libFuzzer is linked into.
pub fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn prepare(target: &Target) -> io::Result<()> {
    let corpus = programs().join("corpus").join(target.name);
    fs::create_dir_all(&corpus)?;
    for (i, seed) in (target.seeds)().iter().enumerate() {
        fs::write(corpus.join(format!("seed-{i}")), seed)?;
    }
    let words = programs().join("dictionaries");
    fs::create_dir_all(&words)?;
    fs::write(words.join(target.name), dictionary(target.dictionary))
}

/// The words as libFuzzer reads them: one a line, in quotes, what is not plain as `\xNN`.
fn dictionary(words: &[&str]) -> String {
    let mut out = String::new();
    for word in words.iter().filter(|word| !word.is_empty()) {
        out.push('"');
        for byte in word.bytes() {
            match byte {
                b' '..=b'~' if !matches!(byte, b'"' | b'\\') => out.push(char::from(byte)),
                _ => {
                    let _ = write!(out, "\\x{byte:02X}");
                }
            }
        }
        out.push_str("\"\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dictionary_is_what_libfuzzer_reads() {
        assert_eq!(
            dictionary(&["", "a b", "\"\\\n\u{e9}"]),
            "\"a b\"\n\"\\x22\\x5C\\x0A\\xC3\\xA9\"\n"
        );
    }
}
