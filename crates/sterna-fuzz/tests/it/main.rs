//! Each target for a moment, with the same inputs every time, and that the watch sees what it is there for.

use std::process::{Command, Output};

#[test]
fn what_no_reader_may_do_is_seen() {
    let keep = tempfile::tempdir().expect("a temporary folder can be made");
    let path = keep.path().to_str().expect("temporary folders have plain names");
    for (word, said) in [
        ("panic", "as asked"),
        ("stack", "ended by signal 6"),
        ("memory", "ended by signal 6: memory allocation of"),
        ("time", "takes too long"),
    ] {
        let input = keep.path().join(word);
        std::fs::write(&input, word).expect("the folder is new");
        let args = ["--inputs", "1", "--slowest", "1", "--keep", path, "--only"];
        let output =
            fuzz(&[&args[..], &[input.to_str().expect("it is plain"), "self-test"]].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(said), "{word}: {text}");
        let kept = std::fs::read_dir(keep.path().join("self-test")).expect("inputs are kept");
        let mut kept = kept
            .map(|entry| std::fs::read(entry.expect("it is listed").path()).expect("it is a file"));
        assert!(kept.any(|input| input == word.as_bytes()), "{word}");
        let _ = std::fs::remove_dir_all(keep.path().join("self-test"));
    }
}

/// Inputs that once broke a reader.
#[test]
fn what_once_broke_a_reader_no_longer_does() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/regressions");
    let mut num_inputs = 0;
    for target in targets() {
        let Ok(inputs) = std::fs::read_dir(format!("{folder}/{target}")) else { continue };
        for input in inputs {
            let input = input.expect("it is listed").path();
            let output =
                fuzz(&["--only", input.to_str().expect("it is plain"), "--inputs", "1", &target]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            num_inputs += 1;
        }
    }
    assert!(num_inputs > 0, "`{folder}` has inputs");
}

fn fuzz(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sterna-fuzz"))
        .args(args)
        .output()
        .expect("the binary was built")
}

fn targets() -> Vec<String> {
    let list = String::from_utf8(fuzz(&["--list"]).stdout).expect("names are ASCII");
    list.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn no_target_finds_anything() {
    let keep = tempfile::tempdir().expect("a temporary folder can be made");
    let keep = keep.path().to_str().expect("temporary folders have plain names");
    assert!(targets().len() > 10);
    for target in targets() {
        let output = fuzz(&["--inputs", "100", "--seed", "7", "--keep", keep, &target]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}
