//! Files that a recipe names and that are not there, found before anything is read or started.

use std::path::Path;

use sterna_recipe::{Diagnostic, Kind, Recipe};

/// One error for each local folder or file that the recipe names and that does not exist.
///
/// A name that could be one of the Hugging Face hub is left to the hub client.
pub(super) fn missing(recipe: &Recipe) -> Vec<Diagnostic> {
    let model = ("model.name_or_path".to_owned(), recipe.model.name_or_path.as_str());
    let tokenizer = ("tokenizer.name_or_path".to_owned(), recipe.tokenizer.name_or_path.as_str());
    let mut named = vec![model];
    // The tokenizer is the model's unless the recipe says otherwise; one error is enough then.
    if tokenizer.1 != named[0].1 {
        named.push(tokenizer);
    }
    for (list, sources) in
        [("sources", &recipe.data.sources), ("eval_sources", &recipe.data.eval_sources)]
    {
        let of_list = sources.iter().enumerate().map(|(idx, source)| {
            (format!("data.{list}[{idx}].name_or_path"), source.name_or_path.as_str())
        });
        named.extend(of_list);
    }
    let is_missing = |name: &str| is_local(name) && !Path::new(name).exists();
    named
        .into_iter()
        .filter(|(_, name)| is_missing(name))
        .map(|(key_path, name)| Diagnostic {
            kind: Kind::Conflict,
            span: recipe.source.locate(&key_path),
            found: format!("`{key_path}` is `{name}`, which does not exist"),
            required: "a folder or file that is there, or a hub name such as `owner/name`"
                .to_owned(),
            hint: Some("a relative path starts at the folder where sterna is called".to_owned()),
            key_path,
        })
        .collect()
}

/// Whether `name` can only be a path: hub names are `name` or `owner/name`.
fn is_local(name: &str) -> bool {
    name.starts_with(['.', '/', '~']) || name.matches('/').count() > 1 || name.ends_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_names_are_not_paths() {
        for name in ["gpt2", "Qwen/Qwen3-0.6B", "HuggingFaceH4/ultrachat_200k"] {
            assert!(!is_local(name), "{name}");
        }
        for name in ["./chats", "/data/chats", "~/chats", "data/my/chats", "chats/"] {
            assert!(is_local(name), "{name}");
        }
    }
}
