//! Losses and tokens by source.

use std::path::Path;

use serde_json::{Value, json};
use sterna_comm::RankEnv;
use sterna_testkit::{TestRank, spawn_ranks};
use sterna_train::{SourceMetrics, TrainOptions, train};

use crate::conformance::Recorder;
use crate::equivalence::assert_same;
use crate::tiny;

/// A run over rows of the chats as sources and as evaluation sources, by slices.
fn run(folder: &Path, env: &RankEnv, eval_slices: &[&str]) -> Recorder {
    let mut recipe = tiny::recipe(folder);
    let source = recipe["data"]["sources"][0].clone();
    let sources = |slices: &[&str]| -> Value {
        let of_slice = |slice: &&str| {
            let mut source = source.clone();
            source["split"] = json!(format!("train[{slice}]"));
            source
        };
        slices.iter().map(of_slice).collect()
    };
    recipe["data"]["sources"] = sources(&[":25", "25:30"]);
    recipe["data"]["eval_sources"] = sources(eval_slices);
    recipe["data"]["train_eval_split"] = json!([1.0, 0.0]);
    recipe["loss_average"] = json!("token");
    recipe["gradient_accumulation_steps"] = json!(2);
    // Of one rank: 1.
    recipe["sequence_parallel_size"] = json!(env.world_size);
    let name = format!("{}-{}", eval_slices.len(), env.rank);
    let recipe = tiny::load(folder, &name, &recipe);
    let mut recorder = Recorder::default();
    train(&recipe, env, &TrainOptions::default(), &mut recorder).expect("trained");
    recorder
}

fn losses(sources: &[SourceMetrics]) -> Vec<f64> {
    sources.iter().map(|source| source.loss.expect("it has labels")).collect()
}

/// The loss of a source is what evaluating it alone gives; those of a step add up to the step's.
#[test]
fn the_loss_of_a_source_is_its_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let env = RankEnv::single();
    let both = run(folder.path(), &env, &["30:37", "37:"]);
    let (first, second) =
        (run(folder.path(), &env, &["30:37"]), run(folder.path(), &env, &["37:"]));
    for (eval_idx, eval) in both.evals.iter().enumerate() {
        let alone = [first.evals[eval_idx].loss, second.evals[eval_idx].loss];
        assert_same("an evaluation", &losses(&eval.sources), &alone);
        assert!((alone[0] / alone[1] - 1.0).abs() > 1e-3, "losses that differ: {alone:?}");
    }
    assert!(first.evals[0].sources.is_empty(), "a source that is alone is not told apart");
    let mut seen = [0, 0];
    for step in &both.iterations {
        let sources = &step.sources;
        assert_eq!(sources.len(), 2);
        assert_eq!(sources.iter().map(|source| source.num_tokens).sum::<u64>(), step.num_tokens);
        let num_labels: u64 = sources.iter().map(|source| source.num_valid_tokens).sum();
        assert_eq!(num_labels, step.num_valid_tokens);
        let sum = |source: &SourceMetrics| {
            source.loss.map_or(0.0, |loss| loss * source.num_valid_tokens as f64)
        };
        let mean = sources.iter().map(sum).sum::<f64>() / num_labels as f64;
        assert!((mean / step.loss - 1.0).abs() < 1e-9, "{mean} of {}", step.loss);
        for (seen, source) in seen.iter_mut().zip(sources) {
            *seen += source.num_tokens;
        }
    }
    assert!(seen[0] > seen[1] && seen[1] > 0, "25 rows and 5: {seen:?}");
}

#[test]
fn losses_of_sources_on_two_ranks_are_those_of_one() {
    spawn_ranks(2, |rank: &TestRank| {
        let env = RankEnv::from_env().expect("the environment of a rank");
        let own = rank.folder.join(env.rank.to_string());
        let figures = |env: &RankEnv| -> (Vec<f64>, Vec<u64>) {
            let recorder = run(&own, env, &["30:37", "37:"]);
            let of_steps = recorder.iterations.iter().map(|step| &step.sources);
            let all = of_steps.chain(recorder.evals.iter().map(|eval| &eval.sources));
            let all: Vec<&SourceMetrics> = all.flatten().collect();
            let counts = |source: &&SourceMetrics| [source.num_tokens, source.num_valid_tokens];
            let losses = all.iter().filter_map(|source| source.loss).collect();
            (losses, all.iter().flat_map(counts).collect())
        };
        let (alone, together) = (figures(&RankEnv::single()), figures(&env));
        assert_same("sources", &together.0, &alone.0);
        assert_eq!(together.1, alone.1);
    });
}
