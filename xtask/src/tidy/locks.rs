//! What is fuzzed is what is built: the second lock file names the versions of the first.

use std::collections::{BTreeMap, BTreeSet};

/// The workspace that `fuzz/` is.
pub(super) const SECOND: &str = "fuzz/Cargo.lock";

/// The packages of `fuzz/Cargo.lock` that `Cargo.lock` has in other versions only. Those of the fuzzer itself are in one of them.
pub(super) fn differing(first: &str, second: &str) -> Vec<String> {
    let first = versions(first);
    let mut problems = Vec::new();
    for (name, versions) in versions(second) {
        let Some(ours) = first.get(name) else { continue };
        problems.extend(versions.difference(ours).map(|version| {
            format!(
                "{SECOND}: `{name}` {version} is not in Cargo.lock; `cp Cargo.lock {SECOND}`, then `cargo metadata \
                 --manifest-path fuzz/Cargo.toml`, brings the two together"
            )
        }));
    }
    problems
}

/// The versions of each package. A lock file is TOML that only cargo writes, always in this way.
fn versions(lock: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut name = "";
    for line in lock.lines() {
        let quoted = |key: &str| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"');
        if let Some(found) = quoted("name") {
            name = found;
        } else if let Some(version) = quoted("version") {
            versions.entry(name).or_default().insert(version);
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_fuzzed_and_not_built_is_told() {
        let package = |name: &str, version: &str| {
            format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n\n")
        };
        let first = package("a", "1.0.0") + &package("a", "2.0.0") + &package("b", "1.0.0");
        let same = package("a", "2.0.0") + &package("only-here", "3.0.0");
        assert!(differing(&first, &same).is_empty());
        let other = same + &package("b", "1.0.1");
        let problems = differing(&first, &other);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("`b` 1.0.1"), "{}", problems[0]);
    }
}
