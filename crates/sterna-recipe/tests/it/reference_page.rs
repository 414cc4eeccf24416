//! The reference page has exactly the keys that the parser has.

use std::{collections::BTreeSet, fs, path::Path};

/// The words in backticks of `text`.
fn in_backticks(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The key paths of the page: first cells of tables whose head starts with `key`, below the sections that headings name.
fn documented(page: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut prefixes = vec![String::new()];
    let mut is_key_table = false;
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix('#') {
            let named: Vec<_> =
                in_backticks(heading).map(|section| format!("{section}.")).collect();
            prefixes = if named.is_empty() { vec![String::new()] } else { named };
        }
        let Some(row) = line.strip_prefix('|') else {
            is_key_table = false;
            continue;
        };
        let first = row.split('|').next().unwrap_or("");
        if first.trim() == "key" {
            is_key_table = true;
        } else if is_key_table {
            // A second name stands in parentheses behind the first.
            let names = first.split(" (or").next().unwrap_or(first);
            for key in in_backticks(names) {
                keys.extend(prefixes.iter().map(|prefix| format!("{prefix}{key}")));
            }
        }
    }
    keys
}

#[test]
fn the_reference_page_has_every_key_and_no_other() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/recipe.md");
    let documented = documented(&fs::read_to_string(path).unwrap());
    let parsed: BTreeSet<String> =
        sterna_recipe::keys().iter().map(|key| key.path.clone()).collect();
    let missing: Vec<_> = parsed.difference(&documented).collect();
    let unknown: Vec<_> = documented.difference(&parsed).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "not on the page: {missing:?}\nnot in the parser: {unknown:?}"
    );
}
