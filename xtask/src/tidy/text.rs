//! Rules on single files.

use super::comments::comments;

/// Larger fixtures belong to a generator, not to git.
const MAX_FIXTURE_BYTES: usize = 200_000;

/// Words that say "later"; each needs an issue: `WORD(#123): what`. In two parts, so that this file may be checked too.
const LATER: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];

/// Package registries are machinery: where packages come from is the business of cargo's and pip's configuration.
const REGISTRIES: [&str; 6] = [
    concat!("crates", ".io"),
    concat!("py", "pi.org"),
    concat!("python", "hosted.org"),
    concat!("npm", "js.org"),
    concat!("proxy.golang", ".org"),
    concat!("test.py", "pi.org"),
];

/// Places that exist only where this code was written.
const ELSEWHERE: [&str; 2] = [concat!("..", "/shared"), concat!("/wo", "rk/")];

/// Documents that are not in the repository, and the numbers of their decisions: a reader cannot look them up.
const UNKNOWN: [&str; 5] = [
    concat!("design decision", " D"),
    concat!("arctic", ".md"),
    concat!("rivals", ".md"),
    concat!("house", ".md"),
    concat!("ARCHITECTURE.md, ", "D"),
];

/// Everything wrong with one file, each with `path:line`.
pub(super) fn check(path: &str, bytes: &[u8]) -> Vec<String> {
    let mut problems = Vec::new();
    let is_fixture = path.split('/').any(|part| part == "fixtures" || part == "golden");
    if is_fixture && bytes.len() > MAX_FIXTURE_BYTES {
        problems.push(format!(
            "{path}: a fixture of {} bytes, at most {MAX_FIXTURE_BYTES} are allowed",
            bytes.len()
        ));
    }
    // Written by tools, or by lawyers.
    if matches!(path, "Cargo.lock" | "fuzz/Cargo.lock" | "LICENSE") {
        return problems;
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return problems;
    };
    for (i, line) in text.lines().enumerate() {
        let here = format!("{path}:{}", i + 1);
        problems.extend(LATER.iter().filter(|word| lacks_issue(line, word)).map(|word| {
            format!("{here}: `{word}` without the number of an issue; write `{word}(#123): what is to be done`")
        }));
        problems.extend(
            REGISTRIES
                .iter()
                .filter(|host| line.contains(**host))
                .map(|host| format!("{here}: names the host `{host}`")),
        );
        problems.extend(UNKNOWN.iter().filter(|name| line.contains(**name)).map(|name| {
            format!(
                "{here}: cites `{name}`, which this repository does not have; write the reason here"
            )
        }));
        problems.extend(ELSEWHERE.iter().filter(|place| line.contains(**place)).map(|place| {
            format!("{here}: names `{place}`, which a clone of this repository does not have")
        }));
    }
    if std::path::Path::new(path).extension().is_some_and(|extension| extension == "rs") {
        problems.extend(check_rust(path, text));
    }
    problems
}

fn check_rust(path: &str, source: &str) -> Vec<String> {
    let ignored = concat!("#[", "ignore");
    let is_ignored = |line: &str| line.contains(ignored) && !line.contains("xtask test --large");
    let ignored = source.lines().enumerate().filter(|(_, line)| is_ignored(line));
    let ignored = ignored.map(|(i, _)| {
        format!("{path}:{}: an ignored test; assert what happens today, or delete it", i + 1)
    });
    let foreign = comments(source).into_iter().filter(|(_, comment)| !comment.is_ascii());
    let foreign = foreign.map(|(line, comment)| {
        let found = comment.chars().find(|c| !c.is_ascii()).unwrap_or_default();
        format!("{path}:{line}: `{found}` in a comment; comments are ASCII")
    });
    ignored.chain(foreign).collect()
}

/// Whether `line` holds `word` as a word of its own that is not followed by `(#NUMBER)`.
fn lacks_issue(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + word.len()..];
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        if before.is_some_and(is_word) || after.starts_with(is_word) {
            return false;
        }
        let number = after
            .strip_prefix("(#")
            .and_then(|rest| rest.split_once(')'))
            .map(|(number, _)| number);
        !number
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_needs_an_issue() {
        let word = LATER[0];
        assert!(lacks_issue(&format!("// {word}: tidy up"), word));
        assert!(lacks_issue(&format!("// {word}(me): tidy up"), word));
        assert!(!lacks_issue(&format!("// {word}(#12): tidy up"), word));
        assert!(!lacks_issue(&format!("const {word}S: u8 = 1;"), word));
    }

    #[test]
    fn each_rule_finds_its_violation_on_its_line() {
        let check = |path: &str, text: String| check(path, text.as_bytes());
        assert_eq!(check("src/a.rs", "// Fine.\nlet s = \"\u{e9}\";\n".to_owned()), [""; 0]);
        assert_eq!(
            check("src/a.rs", "// Caf\u{e9}.\n".to_owned()),
            ["src/a.rs:1: `\u{e9}` in a comment; comments are ASCII"]
        );
        assert_eq!(
            check("src/a.rs", format!("\n    {}]\n", concat!("#[", "ignore"))),
            ["src/a.rs:2: an ignored test; assert what happens today, or delete it"]
        );
        let large =
            format!("{} = \"9 GB: `cargo xtask test --large`\"]\n", concat!("#[", "ignore"));
        assert_eq!(check("src/a.rs", large), [""; 0]);
        assert_eq!(
            check("README.md", format!("see {}/design.md\n", ELSEWHERE[0])),
            [format!(
                "README.md:1: names `{}`, which a clone of this repository does not have",
                ELSEWHERE[0]
            )]
        );
        assert_eq!(
            check("src/a.rs", format!("// As {}5 says.\n", UNKNOWN[0])),
            [format!(
                "src/a.rs:1: cites `{}`, which this repository does not have; write the reason here",
                UNKNOWN[0]
            )]
        );
        assert_eq!(
            check("docs/a.md", format!("from {}\n", REGISTRIES[0])),
            [format!("docs/a.md:1: names the host `{}`", REGISTRIES[0])]
        );
    }

    #[test]
    fn fixtures_stay_small() {
        let large = vec![0xff; MAX_FIXTURE_BYTES + 1];
        assert_eq!(
            check("crates/x/tests/fixtures/a.bin", &large),
            [
                "crates/x/tests/fixtures/a.bin: a fixture of 200001 bytes, at most 200000 are allowed"
            ]
        );
        assert_eq!(check("crates/x/src/a.bin", &large), [""; 0]);
        assert_eq!(check("crates/x/tests/fixtures/a.bin", &large[1..]), [""; 0]);
    }
}
