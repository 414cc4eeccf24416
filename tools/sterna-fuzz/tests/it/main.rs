//! Every target on what needs no fuzzer: its seeds, the same with small damage, and what once broke its reader.

use std::fmt::Display;
use std::fs;
use std::time::{Duration, Instant};

use sterna_fuzz::{ALL, Target, limit, programs, regressions};

/// Generous: the code is not optimised and the machine may be busy.
const SLOWEST: Duration = Duration::from_secs(20);

/// What `target` answers to `input`, within the limits of a fuzzed process.
fn answer(target: &Target, input: &[u8], which: &dyn Display) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    limit(target).expect("these are less than usual limits");
    // A reader may look beside its own folder, and must not.
    let inner = folder.path().join("files");
    fs::create_dir(&inner).expect("the folder is new");
    let start = Instant::now();
    let answer = (target.run)(input, &inner);
    assert!(start.elapsed() < SLOWEST, "{} {which}: {:?}", target.name, start.elapsed());
    answer
}

/// A seed that is refused would be mutated into nothing but refusals.
#[test]
fn every_seed_is_read() {
    for target in ALL {
        for (i, seed) in (target.seeds)().iter().enumerate() {
            let answer = answer(target, seed, &i);
            assert!(!answer.contains("refused"), "{} {i}: {answer}", target.name);
        }
    }
}

/// Inputs that once broke a reader.
#[test]
fn what_once_broke_a_reader_no_longer_does() {
    let mut num_inputs = 0;
    for target in ALL {
        for (path, input) in regressions(target).expect("they are files") {
            answer(target, &input, &path.display());
            num_inputs += 1;
        }
    }
    assert!(num_inputs > 10);
}

#[test]
fn a_seed_that_is_cut_or_has_a_wrong_byte_breaks_no_reader() {
    /// Inputs of a target, over all of its seeds.
    const NUM_INPUTS: usize = 100;
    for target in ALL {
        let seeds = (target.seeds)();
        for i in 0..NUM_INPUTS {
            let mut input = seeds[i % seeds.len()].clone();
            // Places all over the file, and each in its own way.
            let at = input.len() * i / NUM_INPUTS;
            match i % 4 {
                0 => input.truncate(at),
                1 => input[at] = 0xff,
                2 => input[at] ^= 1 << (i / 4 % 8),
                _ => drop(input.remove(at)),
            }
            answer(target, &input, &format_args!("damage {i}"));
        }
    }
}

/// libFuzzer makes such inputs hardly ever: a level more is no new coverage.
#[test]
fn nothing_is_nested_too_deep() {
    const DEPTH: usize = 10_000;
    /// Openers and closers that may stand inside themselves.
    const PAIRS: [(&str, &str); 10] = [
        ("[", "]"),
        ("{\"a\":", "}"),
        ("(", ")"),
        ("- ", ""),
        ("a: ", ""),
        ("{% if a %}", "{% endif %}"),
        ("{% for a in [1, 2] %}", "{% endfor %}"),
        ("{{ ", " }}"),
        ("not ", ""),
        ("&a [", "]"),
    ];
    for target in ALL {
        let seed = (target.seeds)().swap_remove(0);
        // Where values stand in JSON, YAML and templates.
        let places = seed.iter().enumerate().filter(|(_, byte)| b":{[(".contains(byte));
        let places = std::iter::once(0).chain(places.map(|(at, _)| at + 1)).take(3);
        for at in places {
            for (open, close) in PAIRS {
                let (before, after) = seed.split_at(at);
                let (open, close) = (open.repeat(DEPTH), close.repeat(DEPTH));
                let input = [before, open.as_bytes(), close.as_bytes(), after].concat();
                answer(target, &input, &format_args!("{:?} at {at}", &open[..open.len() / DEPTH]));
            }
        }
    }
}

/// Nothing that every change runs builds `fuzz/`, so its files are held against what they have to be.
#[test]
fn each_target_has_its_program() {
    let manifest = fs::read_to_string(programs().join("Cargo.toml")).expect("it is there");
    let names: Vec<&str> = ALL.iter().map(|target| target.name).chain(["self_test"]).collect();
    for name in &names {
        let file = format!("fuzz_targets/{name}.rs");
        let text = fs::read_to_string(programs().join(&file)).expect("each target has a file");
        let (about, program) = text.split_once("\n\n").expect("a comment, then the program");
        assert!(about.starts_with("//! ") && about.ends_with("\n#![no_main]"), "{file}: {about}");
        assert_eq!(
            program,
            format!(
                "libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start(\"{name}\"), |input| sterna_fuzz::read(input));\n"
            ),
            "{file}"
        );
        let entry = format!(
            "[[bin]]\nname = \"{name}\"\npath = \"{file}\"\ntest = false\ndoc = false\nbench = false\n"
        );
        assert!(manifest.contains(&entry), "fuzz/Cargo.toml lacks {entry}");
    }
    let files = fs::read_dir(programs().join("fuzz_targets")).expect("it is there");
    assert_eq!(files.count(), names.len());
}
