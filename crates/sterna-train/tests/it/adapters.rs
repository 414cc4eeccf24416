//! Three steps of AdamW on adapters, against PEFT (`golden/make_adapter_steps.py`): losses, gradient norms and the way of every weight,
//! however the work is cut; what an export and a checkpoint have; and what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sterna_comm::RankEnv;
use sterna_hf::WeightFiles;
use sterna_testkit::{TestRank, spawn_ranks};
use sterna_train::{TrainOptions, train};
use tch::{Kind, Tensor};

use crate::conformance::Recorder;
use crate::equivalence::set;
use crate::families::{self, Changes, DELTA, LOSS, deltas, packed, repeated, with};
use crate::tiny;

const CASES: [&str; 7] =
    ["dora", "dora_fused", "experts", "fused", "latent", "lora", "patterns"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adapters")
}

fn expected(case: &str) -> Value {
    let text = std::fs::read_to_string(fixtures().join(case).join("expected.json"));
    serde_json::from_str(&text.expect("a file")).expect("valid JSON")
}

/// A recipe that trains the adapters of a case.
fn recipe(case: &str, folder: &Path) -> Value {
    let expected = expected(case);
    let mut recipe = families::recipe(expected["base"].as_str().expect("a name"), folder);
    set(&mut recipe, "model.adapter_name_or_path", json!(fixtures().join(case)));
    recipe
}

/// Every tensor of a safetensors file, in double precision.
fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let files = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let double = |view: &safetensors::tensor::TensorView<'_>| {
        let shape: Vec<i64> = view.shape().iter().map(|size| *size as i64).collect();
        let kind = match view.dtype() {
            safetensors::Dtype::BF16 => Kind::BFloat16,
            _ => Kind::Float,
        };
        Tensor::from_data_size(view.data(), &shape, kind).to_kind(Kind::Double)
    };
    files.tensors().iter().map(|(name, view)| (name.clone(), double(view))).collect()
}

/// Trains the adapters of a case, and compares every step and every tensor.
fn check(case: &str, folder: &Path, env: &RankEnv, name: &str, changes: &Changes) {
    let name = format!("{case}, {name}");
    let mut recipe = recipe(case, folder);
    for (path, value) in changes {
        set(&mut recipe, path, value.clone());
    }
    let recipe = tiny::load(folder, &format!("recipe-{}", env.rank), &recipe);
    let mut recorder = Recorder::default();
    train(&recipe, env, &TrainOptions::default(), &mut recorder)
        .unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let expected = expected(case);
    assert_eq!(recorder.iterations.len(), 3, "{name}");
    for (step, metrics) in recorder.iterations.iter().enumerate() {
        for (what, actual, key) in
            [("loss", metrics.loss, "losses"), ("norm", metrics.grad_norm, "grad_norms")]
        {
            let expected = expected[key][step].as_f64().expect("a number");
            let relative = (actual / expected - 1.0).abs();
            assert!(relative <= LOSS, "{name}: {what} {actual} against {expected}");
        }
    }
    if env.rank == 0 {
        check_export(&name, case, &expected, &recorder.exports[0]);
    }
}

/// Compares the way of each weight.
fn check_export(name: &str, case: &str, expected: &Value, export: &Path) {
    let base = families::fixtures().join(expected["base"].as_str().expect("a name"));
    let base = tensors(&base.join("model.safetensors"));
    let initial = tensors(&fixtures().join(case).join("adapter_model.safetensors"));
    let last = tensors(&export.join("adapter_model.safetensors"));
    let deltas = deltas(&fixtures().join(case).join("final.safetensors"));
    let names = |all: &BTreeMap<String, Tensor>| all.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&last), names(&deltas), "{name}");
    for (tensor, last) in last {
        let in_base = tensor.trim_start_matches("base_model.model.").replace(".base_layer.", ".");
        let before = initial.get(&tensor).or_else(|| base.get(&in_base));
        let way = (last - before.unwrap_or_else(|| panic!("{tensor} begins"))).flatten(0, -1);
        let expected = &deltas[&tensor];
        let error = (way - expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
        assert!(error <= DELTA, "{name}: {tensor} is off by {error:e}");
    }
}

fn one_process(name: &str, changes: &Changes) {
    for case in CASES {
        let folder = tempfile::tempdir().expect("a temporary folder");
        check(case, folder.path(), &RankEnv::single(), name, changes);
    }
}

fn ranks(world_size: usize, stage: u8, is_packed: bool) {
    let sp = [
        ("sequence_parallel_size", json!(world_size)),
        ("deepspeed.zero_optimization.stage", json!(stage)),
        ("memory.expert_group_bytes", json!(1)),
    ];
    for case in CASES {
        spawn_ranks(world_size, |rank: &TestRank| {
            let env = RankEnv::from_env().expect("the environment of a rank");
            let mut changes = with(repeated(&rank.folder, world_size), &sp);
            if is_packed {
                let packs = ("gradient_accumulation_steps", json!(world_size));
                changes = with(with(changes, &packed()), &[packs]);
            }
            check(case, &rank.folder, &env, "ranks", &changes);
        });
    }
}

#[test]
fn a_chat_at_a_time() {
    one_process("unpacked", &Changes::new());
}

#[test]
fn small_tiles_and_groups_of_heads() {
    let small = json!({
        "tile_bytes": 4096, "attention_head_groups": 2, "attention_query_tile": 50, "expert_group_bytes": 8192,
    });
    one_process("tiled", &with(packed(), &[("memory", small), ("tiled_mlp_compute", json!(true))]));
}

#[test]
fn everything_or_nothing_kept() {
    let all = ("model.disable_activation_checkpoint", json!(true));
    one_process("all kept", &with(packed(), &[all]));
    let few = json!({"keep_inputs_every": 2, "keep_attention": false, "inputs_on": "host"});
    one_process("few kept", &with(packed(), &[("memory", few)]));
}

#[test]
fn two_ranks_with_zero_3_and_packs() {
    ranks(2, 3, true);
}

#[test]
fn three_ranks_without_zero_and_a_chat_at_a_time() {
    ranks(3, 0, false);
}

#[test]
fn three_ranks_with_zero_3_and_packs() {
    ranks(3, 3, true);
}
