//! Every batch that the reference handed to its ranks, from its own recipe.
//!
//! `shared/conformance/data` of the project holds what arctic-training 0.8.0 computed; the files here are those, without spaces.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sterna_data::{MicroBatches, prepare, write_rank_jsonl};
use sterna_hf::Tokenizer;
use sterna_mesh::Mesh;
use sterna_recipe::Recipe;

use crate::support::{real_inputs, recipe_from_json};

/// Writes what rank `rank` gets and reads it back.
fn rank_lines(
    recipe: &Recipe,
    datasets: &sterna_data::Datasets,
    tokenizer: &Tokenizer,
    world_size: usize,
    rank: usize,
    steps: usize,
) -> Vec<Value> {
    let sp_size = recipe.sequence_parallel_size;
    let mesh = Mesh::new(rank, world_size, sp_size).expect("it divides");
    let micro_batches =
        MicroBatches::new(&datasets.train, recipe, mesh, 8192, tokenizer.pad_token_id());
    let mut out = Vec::new();
    let name = Path::new("rank.jsonl");
    write_rank_jsonl(&mut out, name, micro_batches.take(steps), sp_size, rank % sp_size).unwrap();
    let lines = String::from_utf8(out).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn check(name: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/fixtures/conformance-{name}.json"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let inputs = real_inputs();
    let cache = tempfile::tempdir().unwrap();
    let mut recipe = golden["recipe"].clone();
    recipe["data"]["sources"][0]["name_or_path"] =
        inputs.join("dialogues-english").to_str().unwrap().into();
    recipe["data"]["label_mask"] = "reference".into();
    recipe["data"]["cache_dir"] = cache.path().to_str().unwrap().into();
    let recipe = recipe_from_json(&recipe);
    let tokenizer = Tokenizer::from_dir(&inputs.join("SmolLM2-135M-Instruct")).unwrap();
    let world_size = golden["world_size"].as_u64().unwrap() as usize;

    let datasets = prepare(&recipe, 8192, &tokenizer, world_size, &mut |_| ()).unwrap();
    let ranks = golden["ranks"].as_array().unwrap();
    assert_eq!(ranks.len(), world_size);
    for (rank, golden) in ranks.iter().enumerate() {
        let golden = golden.as_array().unwrap();
        let lines = rank_lines(&recipe, &datasets, &tokenizer, world_size, rank, golden.len());
        assert_eq!(lines.len(), golden.len());
        for (step, (line, golden)) in lines.iter().zip(golden).enumerate() {
            let keys = |value: &Value| {
                let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
                keys.sort();
                keys
            };
            assert_eq!(keys(line), keys(golden), "{name}: rank {rank}, micro-batch {step}");
            for key in keys(golden) {
                assert_eq!(
                    line[&key], golden[&key],
                    "{name}: rank {rank}, micro-batch {step}, `{key}`"
                );
            }
        }
    }
}

#[test]
fn packed_with_one_process() {
    check("packed-1proc");
}

#[test]
fn packed_with_four_processes() {
    check("packed-4proc");
}

#[test]
fn two_sequence_parallel_ranks() {
    check("sp2");
}

#[test]
fn unmasked_with_another_multiple() {
    check("unmasked-div64");
}

#[test]
fn two_data_parallel_ranks() {
    check("unpacked-dp2");
}

#[test]
fn unpacked() {
    check("unpacked");
}
