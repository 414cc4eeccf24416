//! Whether all ranks read the same recipe, model and data.
//!
//! Another data file on one host would otherwise train on a mixture of sequences without a word, and another key leave the ranks waiting
//! for each other. Which keys have to agree follows from their rows in `sterna-recipe`; one without a row has to.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sterna_arch::ModelConfig;
use sterna_comm::Comm;
use sterna_data::Datasets;
use sterna_recipe::{Affects, Recipe, affects};

use crate::error::TrainError;

/// At most so many keys are named.
const MOST_NAMED: usize = 4;

/// Makes sure that all ranks have the same.
///
/// # Communication
///
/// One all-gather of all keys and values, a few KB. Collective.
///
/// # Errors
///
/// [`TrainError::RanksDisagree`] with the ranks and the keys that differ from those of rank 0.
pub(super) fn check(
    recipe: &Recipe,
    comm: &Comm,
    config: &ModelConfig,
    datasets: &Datasets,
) -> Result<(), TrainError> {
    let mut facts = BTreeMap::new();
    flatten(&recipe.to_json(), "", &mut facts);
    facts.retain(|key, _| must_agree(key));
    flatten(&Value::Object(config.raw.clone()), "config.json: ", &mut facts);
    if let Some(lora) = &config.lora {
        flatten(&Value::Object(lora.raw.clone()), "adapter_config.json: ", &mut facts);
    }
    facts.insert("version of sterna".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    facts.insert("training data".to_owned(), datasets.fingerprint.clone());
    let eval = datasets.eval.as_ref().map(sterna_data::Dataset::fingerprint);
    facts.insert("evaluation data".to_owned(), eval.unwrap_or_default());
    let text = serde_json::to_vec(&facts).unwrap_or_default();
    let texts = comm.world().all_gather_bytes(&text)?;
    let ranks: Vec<usize> = (0..texts.len()).filter(|&rank| texts[rank] != texts[0]).collect();
    if ranks.is_empty() {
        return Ok(());
    }
    let of_ranks: Vec<BTreeMap<String, String>> =
        texts.iter().map(|text| serde_json::from_slice(text).unwrap_or_default()).collect();
    Err(TrainError::RanksDisagree { ranks, differences: differences(&of_ranks) })
}

/// The leaves of a JSON value by their dotted keys.
fn flatten(value: &Value, key: &str, facts: &mut BTreeMap<String, String>) {
    let joined = |name: &str| match key {
        "" => name.to_owned(),
        _ if key.ends_with(": ") => format!("{key}{name}"),
        _ => format!("{key}.{name}"),
    };
    match value {
        Value::Object(map) if !map.is_empty() || key.is_empty() => {
            map.iter().for_each(|(name, value)| flatten(value, &joined(name), facts));
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            for (i, value) in list.iter().enumerate() {
                flatten(value, &joined(&i.to_string()), facts);
            }
        }
        _ => {
            facts.insert(key.to_owned(), value.to_string());
        }
    }
}

fn must_agree(key: &str) -> bool {
    affects(key).is_none_or(Affects::must_agree)
}

/// The first keys in which a rank differs from rank 0, each with both values.
fn differences(of_ranks: &[BTreeMap<String, String>]) -> String {
    let Some((first, others)) = of_ranks.split_first() else { return String::new() };
    let mut named = Vec::new();
    let mut num_more = 0;
    let keys: BTreeSet<&String> = of_ranks.iter().flat_map(|it| it.keys()).collect();
    for key in keys {
        let differs = |other: &&BTreeMap<String, String>| other.get(key) != first.get(key);
        let Some(rank) = others.iter().position(|other| differs(&other)) else { continue };
        if named.len() == MOST_NAMED {
            num_more += 1;
            continue;
        }
        let shown = |of_rank: &BTreeMap<String, String>| {
            of_rank.get(key).map_or_else(|| "missing".to_owned(), |value| format!("`{value}`"))
        };
        let (found, required) = (shown(&others[rank]), shown(first));
        named.push(format!("`{key}` is {found} on rank `{}` and {required} on rank `0`", rank + 1));
    }
    if num_more > 0 {
        named.push(format!("and {num_more} more"));
    }
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn facts(value: &Value) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::new();
        flatten(value, "", &mut facts);
        facts.retain(|key, _| must_agree(key));
        facts
    }

    #[test]
    fn folders_and_what_is_printed_may_differ_and_nothing_else() {
        let recipe = |dir: &str, div_length: u64| {
            json!({
                "data": {"sources": [{"name_or_path": dir}], "cache_dir": dir, "div_length": div_length},
                "logger": {"level": dir}, "memory": {"disk_dir": dir, "inputs_on": "host"},
                "checkpoint": [{"type": "sterna", "output_dir": dir, "auto_resume": true}],
                "kill_switch_path": dir, "min_iterations": 0,
            })
        };
        assert_eq!(facts(&recipe("/a", 64)), facts(&recipe("/b", 64)));
        let found = differences(&[facts(&recipe("/a", 64)), facts(&recipe("/b", 32))]);
        assert_eq!(found, "`data.div_length` is `32` on rank `1` and `64` on rank `0`");
        let keys: Vec<String> = facts(&recipe("/a", 64)).into_keys().collect();
        let required = [
            "checkpoint.0.auto_resume",
            "checkpoint.0.type",
            "data.div_length",
            "memory.inputs_on",
            "min_iterations",
        ];
        assert_eq!(keys, required);
    }

    #[test]
    fn a_key_that_one_rank_lacks_is_named_and_many_are_counted() {
        let of = |value: Value| facts(&value);
        let found = differences(&[of(json!({"a": 1})), of(json!({"a": 1})), of(json!({}))]);
        assert_eq!(found, "`a` is missing on rank `2` and `1` on rank `0`");
        let many = |number: u64| {
            let keys = (0..7).map(|i| (format!("k{i}"), json!(number)));
            of(Value::Object(keys.collect()))
        };
        assert!(
            differences(&[many(0), many(1)])
                .ends_with("`k3` is `1` on rank `1` and `0` on rank `0`, and 3 more")
        );
    }
}
