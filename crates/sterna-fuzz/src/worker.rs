//! The process that runs inputs.
//!
//! Each input is written to a file before it is run, so that whoever finds this process dead finds the input too.

use std::collections::HashSet;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};

use crate::args::{Args, Budget};
use crate::mutate::mutate;
use crate::rng::Rng;
#[cfg(test)]
use crate::targets::Target;

/// Readers run on threads of rayon's size.
const STACK_BYTES: usize = 2 << 20;
/// Inputs that brought a new answer, beside the seeds.
const MAX_CORPUS: usize = 4000;
/// Longest new seed in bytes; long ones slow everything after them down.
const MAX_SEED: usize = 1 << 16;

/// Exit status after an input that took too long.
pub(crate) const STALLED: u8 = 86;
/// Exit status after a template that was given up: its thread is still at work.
pub(crate) const GIVEN_UP: u8 = 87;
/// Name of the file with the current input.
pub(crate) const CURRENT: &str = "current";

static NUM_INPUTS: AtomicU64 = AtomicU64::new(0);
/// What the last panic said.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Runs inputs in the current folder until the budget is used up. Prints `inputs N answers M` and the panics.
pub(crate) fn run(args: &Args) -> ExitCode {
    in_thread(args, || work(args))
}

/// Runs one file and prints the answer.
pub(crate) fn replay(args: &Args, file: &Path) -> ExitCode {
    let [target] = args.targets[..] else {
        eprintln!("error: `--replay` needs one target");
        return ExitCode::from(2);
    };
    let (input, folder) = match (std::fs::read(file), tempfile::tempdir()) {
        (Ok(input), Ok(folder)) => (input, folder),
        (Err(err), _) | (_, Err(err)) => {
            eprintln!("error: {}: {err}", file.display());
            return ExitCode::from(2);
        }
    };
    in_thread(args, || {
        let start = Instant::now();
        let answer = (target.run)(&input, folder.path());
        println!("{:.3} s: {answer}", start.elapsed().as_secs_f64());
        ExitCode::SUCCESS
    })
}

fn in_thread(args: &Args, body: impl FnOnce() -> ExitCode + Send) -> ExitCode {
    let memory = args.targets.iter().map(|target| target.memory << 30).max().unwrap_or(0);
    if let Err(err) = setrlimit(Resource::RLIMIT_AS, memory, memory)
        .and_then(|()| setrlimit(Resource::RLIMIT_CORE, 0, 0))
    {
        eprintln!("error: cannot limit memory: {err}");
        return ExitCode::from(2);
    }
    let slowest = args.slowest;
    std::thread::spawn(move || watch(slowest));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, body);
        // A panic here is one of the fuzzer itself, and has said so.
        thread.map_or(ExitCode::from(2), |thread| thread.join().unwrap_or(ExitCode::from(2)))
    })
}

/// Ends the process when an input takes too long.
#[expect(clippy::exit, reason = "the thread that runs the input cannot be stopped otherwise")]
fn watch(slowest: Duration) {
    let mut seen = (u64::MAX, Instant::now());
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let num_inputs = NUM_INPUTS.load(Ordering::Relaxed);
        if num_inputs != seen.0 {
            seen = (num_inputs, Instant::now());
        } else if seen.1.elapsed() > slowest {
            println!("inputs {num_inputs} answers 0");
            std::process::exit(i32::from(STALLED));
        }
    }
}

fn work(args: &Args) -> ExitCode {
    let [target] = args.targets[..] else { return ExitCode::from(2) };
    std::panic::set_hook(Box::new(|panic| {
        *PANIC.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = panic.to_string();
    }));
    let start = Instant::now();
    let is_done = |num_inputs: u64| match args.budget {
        Budget::Time(limit) => start.elapsed() >= limit,
        Budget::Inputs(limit) => num_inputs >= limit,
    };
    let mut rng = Rng::new(args.seed);
    let mut corpus = match &args.only {
        None => (target.seeds)(),
        Some(path) => match std::fs::read(path) {
            Ok(seed) => vec![seed],
            Err(err) => {
                eprintln!("error: {}: {err}", path.display());
                return ExitCode::from(2);
            }
        },
    };
    let mut answers: HashSet<String> = HashSet::new();
    let folder = PathBuf::from("files");
    let mut num_inputs = 0;
    while !is_done(num_inputs) {
        let input = match corpus.get(num_inputs as usize) {
            // Seeds first, unchanged.
            Some(seed) if answers.len() < 2 + corpus.len() => seed.clone(),
            _ => {
                let (one, other) = (rng.below(corpus.len()), rng.below(corpus.len()));
                mutate(&mut rng, target.shape, target.dictionary, &corpus[one], &corpus[other])
            }
        };
        let ready = std::fs::write(CURRENT, &input).and_then(|()| {
            // Whatever a reader left behind is not the next one's.
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir(&folder)
        });
        if let Err(err) = ready {
            eprintln!("error: cannot write an input: {err}");
            return ExitCode::from(2);
        }
        let answer = catch_unwind(AssertUnwindSafe(|| (target.run)(&input, &folder)));
        num_inputs += 1;
        NUM_INPUTS.store(num_inputs, Ordering::Relaxed);
        match answer {
            Ok(answer) if answer.contains("the chat template was given up") => {
                println!("inputs {num_inputs} answers {}", answers.len());
                return ExitCode::from(GIVEN_UP);
            }
            Ok(answer) => {
                let is_new = answers.insert(outline(&answer));
                if is_new && corpus.len() < MAX_CORPUS && input.len() < MAX_SEED {
                    corpus.push(input);
                }
            }
            Err(_) => tell_panic(num_inputs, &input),
        }
    }
    println!("inputs {num_inputs} answers {}", answers.len());
    ExitCode::SUCCESS
}

/// Keeps the input for the supervisor and prints what the panic said, once for each place.
fn tell_panic(number: u64, input: &[u8]) {
    let text = PANIC.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let name = format!("panic-{number}");
    if std::fs::write(&name, input).is_ok() {
        println!("panic {name} {}", text.replace('\n', " | "));
        let _ = std::io::stdout().flush();
    }
}

/// An answer without what varies: numbers, and what stands in quotes. Two inputs of one outline went the same way.
fn outline(answer: &str) -> String {
    let mut out = String::new();
    for (i, part) in answer.split('`').enumerate() {
        if i % 2 == 0 {
            out.extend(part.chars().filter(|c| !c.is_ascii_digit()).take(200));
        } else {
            out.push('`');
        }
    }
    out
}

/// Runs `target` on nothing but its seeds: they have to be valid.
#[cfg(test)]
pub(crate) fn answers_of_seeds(target: &Target) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut number = 0;
    let seeds = (target.seeds)();
    seeds
        .iter()
        .map(|seed| {
            number += 1;
            let folder = folder.path().join(number.to_string());
            std::fs::create_dir(&folder).expect("it is new");
            (target.run)(seed, &folder)
        })
        .collect()
}
