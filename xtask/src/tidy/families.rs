//! A family of models is a file of facts: no other code of the programs may ask which family it has.

/// Where the files of facts are, each named for its `model_type`.
const FOLDER: &str = "crates/sterna-arch/src/families/";

/// Crates that make or measure models, and say of what family.
const MAKERS: [&str; 3] = ["tools/sterna-fuzz/", "tools/sterna-suite/", "tools/sterna-testkit/"];

/// The `model_type`s.
pub(super) fn names(files: &[String]) -> Vec<&str> {
    let file = |path: &'_ String| -> Option<(usize, usize)> {
        let name = path.strip_prefix(FOLDER)?.strip_suffix(".rs")?;
        Some((FOLDER.len(), name.len()))
    };
    files
        .iter()
        .filter_map(|path| file(path).map(|(start, len)| &path[start..start + len]))
        .collect()
}

/// The lines of a program's source, before its tests, that name a family.
pub(super) fn named_elsewhere(path: &str, bytes: &[u8], families: &[&str]) -> Vec<String> {
    let is_program = ["crates/", "tools/"].iter().any(|folder| path.starts_with(folder))
        && path.contains("/src/")
        && std::path::Path::new(path).extension().is_some_and(|extension| extension == "rs")
        && !path.starts_with(FOLDER)
        && MAKERS.iter().all(|maker| !path.starts_with(maker));
    let Some(text) = std::str::from_utf8(bytes).ok().filter(|_| is_program) else {
        return Vec::new();
    };
    let lines = text.lines().take_while(|line| !line.contains("#[cfg(test)]")).enumerate();
    let named =
        |line: &str| families.iter().find(|name| line.contains(&format!("\"{name}\""))).copied();
    lines
        .filter_map(|(i, line)| Some((i, named(line)?)))
        .map(|(i, name)| {
            format!(
                "{path}:{}: names the family `{name}`; what it has beyond others is a fact in {FOLDER}",
                i + 1
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_named_in_its_file_and_in_tests_only() {
        let files = [format!("{FOLDER}qwen3.rs"), "crates/sterna-arch/src/config.rs".to_owned()];
        let families = names(&files);
        assert_eq!(families, ["qwen3"]);
        let source =
            b"let x = 1;\nif model_type == \"qwen3\" {}\n#[cfg(test)]\nlet y = \"qwen3\";\n";
        let found = |path: &str| named_elsewhere(path, source, &families);
        assert_eq!(found("crates/sterna-arch/src/config.rs").len(), 1);
        assert!(found("crates/sterna-arch/src/config.rs")[0].contains("config.rs:2: names"));
        assert!(found(&files[0]).is_empty());
        assert!(found("crates/sterna-arch/tests/it/config.rs").is_empty());
        assert!(found("tools/sterna-testkit/src/tiny_model.rs").is_empty());
    }
}
