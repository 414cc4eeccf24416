//! Which checkpoint a run goes on from, and whether it is one of this run.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sterna_checkpoint::{Checkpoint, list};
use sterna_comm::Group;
use sterna_recipe::{Affects, affects};

use super::{RunIdentity, error_chain};
use crate::error::TrainError;

/// Keys of `config.json` that say nothing of what is computed.
const IDLE_MODEL_KEYS: [&str; 4] =
    ["torch_dtype", "dtype", "transformers_version", "_name_or_path"];

/// Keys of `adapter_config.json` that say where the base is.
const IDLE_ADAPTER_KEYS: [&str; 2] = ["base_model_name_or_path", "revision"];

/// The newest checkpoint in `dir` that is whole and of this run; `None` if there is no checkpoint at all. What is wrong with
/// newer ones is said in the log.
///
/// The ranks share the work of reading every byte.
///
/// # Communication
///
/// An all-gather, and one more for each checkpoint that is looked at. Collective.
///
/// # Errors
///
/// [`TrainError::NoGoodCheckpoint`] if there are checkpoints and none can be used: beginning anew would overwrite them.
/// [`TrainError::CheckpointUnreadable`] if a machine cannot read one.
pub(crate) fn newest(
    dir: &Path,
    world: &Group,
    identity: &RunIdentity,
) -> Result<Option<Checkpoint>, TrainError> {
    // What rank 0 sees, so that all look at the same ones.
    let steps: Vec<u64> = if world.rank() == 0 {
        list(dir)?.iter().map(|listed| listed.step).collect()
    } else {
        Vec::new()
    };
    let text = serde_json::to_vec(&steps).expect("numbers are JSON");
    let of_ranks = world.all_gather_bytes(&text)?;
    let steps: Vec<u64> = serde_json::from_slice(&of_ranks[0]).unwrap_or_default();
    let mut reasons = Vec::new();
    for step in steps {
        let path = sterna_checkpoint::complete(dir, step);
        let found = look_at(&path, step, world, identity);
        let problem = serde_json::to_vec(&found.as_ref().err()).expect("a problem is text");
        let of_ranks = world.all_gather_bytes(&problem)?;
        let mut problems = of_ranks.iter().enumerate().filter_map(|(rank, text)| {
            let problem: Option<Problem> = serde_json::from_slice(text).unwrap_or_default();
            problem.map(|problem| (rank, problem))
        });
        // The first rank's is the same on all.
        match (problems.next(), found) {
            (None, Ok(checkpoint)) => {
                say_differences(&checkpoint, identity, world);
                return Ok(Some(checkpoint));
            }
            (Some((rank, Problem::Machine(reason))), _) => {
                return Err(TrainError::CheckpointUnreadable { dir: path, rank, reason });
            }
            (problem, _) => {
                let reason = match problem {
                    Some((_, Problem::Unfit(reason))) => reason,
                    _ => "a rank did not say what is wrong with it".to_owned(),
                };
                let reason = format!("`{}`: {reason}", path.display());
                if world.rank() == 0 {
                    tracing::warn!("cannot resume from {reason}");
                }
                reasons.push(reason);
            }
        }
    }
    if reasons.is_empty() {
        Ok(None)
    } else {
        Err(TrainError::NoGoodCheckpoint { dir: dir.to_owned(), reasons })
    }
}

/// Why a rank does not take a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
enum Problem {
    /// It is damaged, or of another run: an earlier one may be taken.
    Unfit(String),
    /// This machine could not read it. It may be good: falling back would lose its steps.
    Machine(String),
}

impl From<sterna_checkpoint::Error> for Problem {
    fn from(error: sterna_checkpoint::Error) -> Self {
        let text = error_chain(&error);
        if error.is_damage() { Self::Unfit(text) } else { Self::Machine(text) }
    }
}

/// Opens a checkpoint, checks this rank's share of its files and whether it is of this run.
fn look_at(
    path: &Path,
    step: u64,
    world: &Group,
    identity: &RunIdentity,
) -> Result<Checkpoint, Problem> {
    let checkpoint = Checkpoint::open(path)?;
    let files = checkpoint.manifest.files.iter();
    for file in files.skip(world.rank()).step_by(world.size()) {
        checkpoint.verify_file(file)?;
    }
    if checkpoint.manifest.step != step {
        let found = checkpoint.manifest.step;
        return Err(Problem::Unfit(format!("it is a copy of the checkpoint of step `{found}`")));
    }
    let manifest = &checkpoint.manifest;
    let compare = |there: &Map<String, Value>, here: &Map<String, Value>, idle: &[&str]| {
        let [there, here] = [there, here].map(|keys| {
            let mut keys = flattened(&Value::Object(keys.clone()));
            keys.retain(|key, _| !idle.contains(&key.as_str()));
            keys
        });
        differences(&there, &here).into_iter().next()
    };
    if let Some(difference) = compare(&manifest.model, &identity.model, &IDLE_MODEL_KEYS) {
        return Err(Problem::Unfit(format!("it is of another recipe: the model's {difference}")));
    }
    match (&manifest.adapter, &identity.adapter) {
        (None, None) => {}
        (Some(there), Some(here)) => {
            if let Some(difference) = compare(there, here, &IDLE_ADAPTER_KEYS) {
                return Err(Problem::Unfit(format!("it is of other adapters: {difference}")));
            }
        }
        (there, _) => {
            let (with, without) = ("with adapters", "without adapters");
            let (there, here) = if there.is_some() { (with, without) } else { (without, with) };
            return Err(Problem::Unfit(format!("it is of a run {there}, and this one is {here}")));
        }
    }
    if let (Some(there), Some(here)) = (&manifest.base, &identity.base)
        && there != here
    {
        let text = "it is of another base: the weights of `model.name_or_path` changed since";
        return Err(Problem::Unfit(text.to_owned()));
    }
    if manifest.data != identity.data {
        let text = "it is of another recipe, or its data changed since: the samples or their order are not the same";
        return Err(Problem::Unfit(text.to_owned()));
    }
    Ok(checkpoint)
}

/// Says what a resumed run does otherwise than the one that wrote the checkpoint.
fn say_differences(checkpoint: &Checkpoint, identity: &RunIdentity, world: &Group) {
    let manifest = &checkpoint.manifest;
    let mut changes = differences(&telling(&manifest.recipe), &telling(&identity.recipe));
    let (there, here) = (manifest.world_size, world.size());
    if there != here {
        changes.push(format!("number of ranks was `{there}` and is `{here}`"));
    }
    if world.rank() == 0 && !changes.is_empty() {
        tracing::warn!(
            "resuming `{}` with changes: {}",
            checkpoint.dir.display(),
            changes.join("; ")
        );
    }
}

/// The keys of a recipe that are told with their values when they changed.
fn telling(recipe: &Value) -> BTreeMap<String, Value> {
    let mut keys = flattened(recipe);
    keys.retain(|key, _| affects(key).is_some_and(Affects::is_told_on_resume));
    keys
}

/// Each key where the two differ, with both values.
fn differences(there: &BTreeMap<String, Value>, here: &BTreeMap<String, Value>) -> Vec<String> {
    let show = |value: Option<&Value>| {
        value.map_or_else(|| "not given".to_owned(), |value| format!("`{value}`"))
    };
    let keys: std::collections::BTreeSet<_> = there.keys().chain(here.keys()).collect();
    keys.into_iter()
        .filter(|key| there.get(*key) != here.get(*key))
        .map(|key| format!("`{key}` was {} and is {}", show(there.get(key)), show(here.get(key))))
        .collect()
}

/// The leaves of `value` with their dotted paths.
fn flattened(value: &Value) -> BTreeMap<String, Value> {
    fn walk(prefix: &str, value: &Value, leaves: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (key, value) in map {
                    let path =
                        if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                    walk(&path, value, leaves);
                }
            }
            leaf => {
                leaves.insert(prefix.to_owned(), leaf.clone());
            }
        }
    }
    let mut leaves = BTreeMap::new();
    walk("", value, &mut leaves);
    leaves
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_changes_numbers_is_told_and_nothing_else() {
        let recipe = json!({
            "model": {"name_or_path": "/a", "dtype": "bfloat16", "save_name": "a"},
            "data": {"sources": [{"name_or_path": "/a"}], "seed": 1, "max_length": 64},
            "optimizer": {"betas": [0.9, 0.999]},
            "deepspeed": {
                "zero_optimization": {"stage": 2},
                "seq_parallel_communication_data_type": "float32",
                "data_types": {"grad_accum_dtype": "float32"},
            },
            "memory": {"inputs_on": "host", "moments_dtype": "float32"},
            "checkpoint": [{"type": "sterna", "output_dir": "/a"}],
            "sequence_parallel_size": 2, "exit_iteration": 3, "seed": 42,
        });
        let keys: Vec<String> = telling(&recipe).into_keys().collect();
        let required = [
            "data.max_length",
            "deepspeed.data_types.grad_accum_dtype",
            "deepspeed.seq_parallel_communication_data_type",
            "memory.moments_dtype",
            "model.dtype",
            "model.name_or_path",
            "optimizer.betas",
            "seed",
            "sequence_parallel_size",
        ];
        assert_eq!(keys, required);
    }

    #[test]
    fn differences_name_keys_with_both_values() {
        let there = flattened(&json!({"a": {"b": 1, "c": [1]}, "d": {}}));
        let here = flattened(&json!({"a": {"b": 2, "c": [1]}, "e": null}));
        assert_eq!(
            differences(&there, &here),
            [
                "`a.b` was `1` and is `2`",
                "`d` was `{}` and is not given",
                "`e` was not given and is `null`"
            ]
        );
    }
}
