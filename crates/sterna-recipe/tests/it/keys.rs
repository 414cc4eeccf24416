//! Every key of a resolved recipe is one that the parser has.

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;
use sterna_recipe::{Recipe, keys, parse};

/// Curves with all their arguments.
const CURVES: [&str; 8] = [
    "{}",
    "{name: cosine}",
    "{name: cosine_with_restarts}",
    "{name: polynomial}",
    "{name: inverse_sqrt}",
    "{name: cosine_with_min_lr, scheduler_specific_kwargs: {min_lr_rate: 0.1}}",
    "{name: cosine_warmup_with_min_lr, scheduler_specific_kwargs: {min_lr_rate: 0.1}}",
    "{type: wds, num_warmup_steps: 5, num_decay_steps: 10}",
];

/// Recipes that have every key of a resolved recipe between them.
fn recipes() -> impl Iterator<Item = Recipe> {
    CURVES.into_iter().map(|curve| {
        let text = format!(
            "model: {{name_or_path: folder, hf_config_kwargs: {{rope_scaling: {{factor: 2}}}}}}\n\
             data: {{sources: [{{name_or_path: chats, kwargs: {{name: x}}}}], eval_sources: [chats]}}\n\
             eval_interval: 1\nscheduler: {curve}\ncheckpoint: [{{output_dir: out}}]\n",
        );
        parse(Path::new("recipe.yaml"), &text, &[]).unwrap_or_else(|errors| panic!("{errors}"))
    })
}

/// Appends the paths of the mappings' keys in `value` that are no keys of a recipe, list items written as `[]`.
fn unknown(value: &Value, path: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            // What is below a key with none of its own below it, such as `hf_config_kwargs`, is somebody else's.
            let is_section = path.is_empty()
                || keys().iter().any(|key| key.path.starts_with(&format!("{path}.")));
            for (name, value) in map.iter().filter(|_| is_section) {
                let path = format!("{path}.{name}");
                let path = path.trim_start_matches('.');
                if keys().iter().all(|key| key.path != path || key.affects.is_none()) {
                    out.push(path.to_owned());
                }
                unknown(value, path, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                unknown(item, &format!("{path}[]"), out);
            }
        }
        _ => {}
    }
}

#[test]
fn a_resolved_recipe_has_keys_that_affect_something_and_no_other() {
    let mut found = Vec::new();
    for recipe in recipes() {
        unknown(&recipe.to_json(), "", &mut found);
    }
    let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    // AdamW's epsilon is shown, and nobody can type it; the steps of a warm-up are typed one level up, as
    // `scheduler.num_warmup_steps`.
    let shown_only = ["optimizer.eps", "scheduler.scheduler_specific_kwargs.num_warmup_steps"];
    assert_eq!(found, BTreeSet::from(shown_only));
}
