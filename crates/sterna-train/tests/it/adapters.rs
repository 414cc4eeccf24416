//! Three steps of AdamW on adapters, against PEFT (`golden/make_adapter_steps.py`): losses, gradient norms and the way of every weight,
//! however the work is cut; what an export and a checkpoint have; and what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sterna_arch::DType;
use sterna_checkpoint::Checkpoint;
use sterna_comm::RankEnv;
use sterna_hf::export::merge;
use sterna_testkit::{TestRank, spawn_ranks};
use sterna_train::{TrainOptions, train};
use tch::Tensor;

use crate::conformance::Recorder;
use crate::equivalence::{assert_same, set};
use crate::families::{
    self, Changes, DELTA, all_kept, check_steps, few_kept, one_process, ranks, tensors, tiled, with,
};
use crate::tiny;

const CASES: [&str; 8] =
    ["delta_net", "dora", "dora_fused", "experts", "fused", "latent", "lora", "patterns"];

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
    check_steps(&name, &recorder, &expected);
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
    let deltas = tensors(&fixtures().join(case).join("final.safetensors"));
    let names = |all: &BTreeMap<String, Tensor>| all.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&last), names(&deltas), "{name}");
    for (tensor, last) in last {
        let in_base = tensor.trim_start_matches("base_model.model.").replace(".base_layer.", ".");
        let before = initial.get(&tensor).or_else(|| base.get(&in_base));
        let way = last - before.unwrap_or_else(|| panic!("{tensor} begins"));
        let expected = &deltas[&tensor];
        let error = (way - expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
        assert!(error <= DELTA, "{name}: {tensor} is off by {error:e}");
    }
}

#[test]
fn a_chat_at_a_time() {
    one_process(CASES, check, "unpacked", &Changes::new());
}

#[test]
fn small_tiles_and_groups_of_heads() {
    one_process(CASES, check, "tiled", &tiled());
}

#[test]
fn everything_or_nothing_kept() {
    one_process(CASES, check, "all kept", &all_kept());
    one_process(CASES, check, "few kept", &few_kept());
}

#[test]
fn two_ranks_with_zero_3_and_packs() {
    ranks(CASES, check, 2, 3, true);
}

#[test]
fn three_ranks_without_zero_and_a_chat_at_a_time() {
    ranks(CASES, check, 3, 0, false);
}

#[test]
fn three_ranks_with_zero_3_and_packs() {
    ranks(CASES, check, 3, 3, true);
}

/// What PEFT's `merge_and_unload` adds to the base.
#[test]
fn a_merged_model_is_pefts() {
    for case in CASES {
        let base = families::fixtures().join(expected(case)["base"].as_str().expect("a name"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (from, to) = (fixtures().join(case), folder.path().join("merged"));
        let (config, files) = merge::open(&from, &base).expect("adapters");
        merge::merge(&base, config, &files, &from, &to, Some(DType::F32)).expect("merged");
        let merged = tensors(&to.join("model.safetensors"));
        let mut moved = tensors(&from.join("merged.safetensors"));
        for (name, before) in tensors(&base.join("model.safetensors")) {
            let way = &merged[&name] - before;
            let Some(expected) = moved.remove(&name) else {
                assert!(way == way.zeros_like(), "{case}: {name} moved");
                continue;
            };
            let error = (&way - &expected).abs().max().double_value(&[]);
            let scale = expected.abs().max().double_value(&[]);
            assert!(error <= 1e-6 * scale.max(1.0), "{case}: {name} is off by {error:e}");
        }
        assert!(moved.is_empty(), "{case}: {moved:?}");
        assert_eq!(families::config_of(&to), families::config_of(&base), "{case}");
    }
}

/// A recipe that begins with adapters of its own, and saves checkpoints and exports.
fn fresh(folder: &Path, changes: &Changes) -> Value {
    let mut recipe = families::recipe("llama", folder);
    let lora = json!({
        "peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_modules": "all-linear", "use_dora": true,
        "modules_to_save": ["lm_head"],
    });
    set(&mut recipe, "model.peft_config", lora);
    recipe["checkpoint"] = json!([
        {"type": "sterna", "output_dir": folder.join("saved"), "auto_resume": true, "save_every_n_steps": 1},
        {"type": "huggingface", "output_dir": folder.join("out"), "save_end_of_training": true},
    ]);
    for (path, value) in changes {
        set(&mut recipe, path, value.clone());
    }
    recipe
}

fn run(folder: &Path, env: &RankEnv, recipe: &Value) -> Recorder {
    let recipe = tiny::load(folder, &format!("recipe-{}", env.rank), recipe);
    let mut recorder = Recorder::default();
    train(&recipe, env, &TrainOptions::default(), &mut recorder).expect("trained");
    recorder
}

fn losses(recorder: &Recorder) -> Vec<f64> {
    recorder.iterations.iter().map(|metrics| metrics.loss).collect()
}

/// The bytes of the adapters of an export.
fn exported(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("adapter_model.safetensors")).expect("adapters")
}

/// New adapters change nothing, in bf16 neither: the first loss is the base's. What is trained of them differs from how it began.
#[test]
fn training_begins_with_the_base() {
    let single = RankEnv::single();
    for dtype in ["fp32", "bf16"] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // It has no biases, which DoRA adds to a product that is rounded.
        let mut base = families::recipe("mistral", folder.path());
        set(&mut base, "model.dtype", json!(dtype));
        let of_base = run(folder.path(), &single, &base);
        for key in ["use_dora", "use_rslora"] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let mut recipe = fresh(folder.path(), &vec![("model.dtype", json!(dtype))]);
            recipe["model"]["name_or_path"] = base["model"]["name_or_path"].clone();
            recipe["model"]["peft_config"]["use_dora"] = json!(false);
            recipe["model"]["peft_config"][key] = json!(true);
            let adapted = run(folder.path(), &single, &recipe);
            let (first, base) = (losses(&adapted)[0], losses(&of_base)[0]);
            // A row's norm over itself is 1 to a rounding of single precision, and a product's is rounded to bf16 once more.
            let bound = if dtype == "fp32" { 1e-6 } else { 1e-4 };
            assert!((first / base - 1.0).abs() < bound, "{key}, {dtype}: {first} and {base}");
            assert!(losses(&adapted)[2] < first, "{key}, {dtype}");
            let export = std::fs::read(adapted.exports[0].join("adapter_model.safetensors"));
            let export = export.expect("adapters");
            let files = safetensors::SafeTensors::deserialize(&export).expect("safetensors");
            for (name, view) in files.tensors() {
                let is_wide = dtype == "fp32" || name.ends_with("lora_magnitude_vector");
                assert_eq!(view.dtype() == safetensors::Dtype::F32, is_wide, "{name}");
            }
        }
    }
}

/// The reference model of preferences is the base without the adapters that the run begins with: it is as training their sum with the
/// base, beside the base.
#[test]
fn preferences_are_compared_with_the_base() {
    let case = "lora";
    let base = families::fixtures().join(expected(case)["base"].as_str().expect("a name"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let merged = folder.path().join("merged");
    let (config, files) = merge::open(&fixtures().join(case), &base).expect("adapters");
    merge::merge(&base, config, &files, &fixtures().join(case), &merged, Some(DType::F32))
        .expect("merged");
    let message = |role: &str, text: &str| json!([{"role": role, "content": text}]);
    let pairs: Vec<String> = [("Yes.", "No, no."), ("Two", "a few?"), ("in Oslo", "nowhere")]
        .iter()
        .map(|(chosen, rejected)| {
            let prompt = message("user", "Is it so?");
            let (chosen, rejected) = (message("assistant", chosen), message("assistant", rejected));
            json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}).to_string()
        })
        .collect();
    let path = folder.path().join("pairs.jsonl");
    std::fs::write(&path, pairs.join("\n")).expect("written");
    let first = |model: Value| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut recipe = recipe(case, folder.path());
        recipe["type"] = json!("dpo");
        recipe["model"] = model;
        recipe["ref_model"] = json!({"name_or_path": base});
        recipe["data"]["sources"] = json!([path]);
        recipe["gradient_accumulation_steps"] = json!(3);
        let recorder = run(folder.path(), &RankEnv::single(), &recipe);
        recorder.iterations[0].loss
    };
    let adapted = first(
        json!({"name_or_path": base, "dtype": "fp32", "adapter_name_or_path": fixtures().join(case)}),
    );
    let whole = first(json!({"name_or_path": merged, "dtype": "fp32"}));
    assert!((adapted / whole - 1.0).abs() < 1e-5, "{adapted} and {whole}");
    assert!((adapted - 2_f64.ln()).abs() > 1e-3, "the reference has the adapters: {adapted}");
}

/// Checkpoints have adapters alone. A run that is saved and resumed, on as many ranks and on others, is the whole run; exports of a
/// checkpoint are those of the run.
#[test]
fn a_resumed_run_is_the_whole_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let single = RankEnv::single();
    let whole_dir = folder.path().join("whole");
    std::fs::create_dir(&whole_dir).expect("made");
    let whole = run(&whole_dir, &single, &fresh(&whole_dir, &Changes::new()));
    let parts = folder.path().join("parts");
    std::fs::create_dir(&parts).expect("made");
    let first = run(&parts, &single, &fresh(&parts, &vec![("exit_iteration", json!(2))]));
    let second = run(&parts, &single, &fresh(&parts, &Changes::new()));
    assert_eq!(second.resumed.as_ref().map(|(_, step)| *step), Some(2));
    assert_eq!([losses(&first), losses(&second)].concat(), losses(&whole));
    let of_whole = exported(&whole.exports[0]);
    assert!(exported(&second.exports[0]) == of_whole);

    let saved = parts.join("saved/checkpoint-3");
    let checkpoint = Checkpoint::open(&saved).expect("whole");
    let names = checkpoint.manifest.parameters.iter().map(|place| &place.name[..]);
    let names: Vec<&str> = names.filter(|name| !name.contains(".lora_")).collect();
    assert_eq!(names, ["lm_head.weight"]);
    let out = parts.join("from-checkpoint");
    sterna_checkpoint::export(&checkpoint, &out, DType::F32).expect("exported");
    assert!(exported(&out) == of_whole);
    let config = |dir: &Path| std::fs::read(dir.join("adapter_config.json")).expect("a config");
    assert_eq!(config(&out), config(&whole.exports[0]));

    let base = families::fixtures().join("llama");
    let [merged, again] = ["merged", "again"].map(|name| parts.join(name));
    sterna_checkpoint::merge(&checkpoint, &base, &merged, DType::F32).expect("merged");
    let (config, files) = merge::open(&out, &base).expect("adapters");
    merge::merge(&base, config, &files, &out, &again, Some(DType::F32)).expect("merged");
    let weights = |dir: &Path| std::fs::read(dir.join("model.safetensors")).expect("weights");
    assert!(weights(&merged) == weights(&again));
}

/// What one process saved goes on on two that share everything.
#[test]
fn two_ranks_go_on_as_one() {
    spawn_ranks(2, |rank: &TestRank| {
        let (single, env) = (RankEnv::single(), RankEnv::from_env().expect("a rank's environment"));
        let alone = tempfile::tempdir().expect("a temporary folder");
        let whole = run(alone.path(), &single, &fresh(alone.path(), &Changes::new()));
        if env.rank == 0 {
            run(&rank.folder, &single, &fresh(&rank.folder, &vec![("exit_iteration", json!(2))]));
        }
        let shared: Changes = vec![
            ("sequence_parallel_size", json!(2)),
            ("deepspeed.zero_optimization.stage", json!(3)),
        ];
        // The other rank waits for the first, which begins when its own run has ended.
        let changes = with(shared, &[("gradient_accumulation_steps", json!(5))]);
        let last = run(&rank.folder, &env, &fresh(&rank.folder, &changes));
        assert_eq!(last.resumed.as_ref().map(|(_, step)| *step), Some(2));
        assert_same("the last step", &losses(&last), &losses(&whole)[2..]);
    });
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let refused = |changes: &Changes, words: &[&str]| {
        let mut recipe = families::recipe("llama", folder.path());
        for (path, value) in changes {
            set(&mut recipe, path, value.clone());
        }
        let recipe = tiny::load(folder.path(), "refused", &recipe);
        let mut recorder = Recorder::default();
        let error = train(&recipe, &RankEnv::single(), &TrainOptions::default(), &mut recorder);
        let text = error.expect_err("refused").to_string();
        for word in words {
            assert!(text.contains(word), "{text}");
        }
    };
    let lora = |key: &str, value: Value| -> Changes {
        let mut lora = json!({"peft_type": "LORA", "target_modules": ["q_proj"]});
        lora[key] = value;
        vec![("model.peft_config", lora)]
    };
    refused(&lora("target_modules", json!(["query"])), &["`query`", "`q_proj`", "`down_proj`"]);
    refused(&lora("target_modules", json!(".*dense")), &["`.*dense`", "`q_proj`"]);
    refused(&lora("modules_to_save", json!(["heads"])), &["`heads`", "`lm_head`"]);
    refused(&lora("layers_to_transform", json!([2])), &["`2`", "0 to 1"]);
    refused(&lora("modules_to_save", json!(["self_attn"])), &["target_modules", "modules_to_save"]);
    let other: Changes = vec![("model.adapter_name_or_path", json!(fixtures().join("experts")))];
    refused(&other, &["q_proj.lora_B", "[16, 2]", "[32, 2]"]);
    // A checkpoint of other adapters, or of none.
    let saved: Changes = vec![("exit_iteration", json!(1))];
    run(folder.path(), &RankEnv::single(), &fresh(folder.path(), &saved));
    let again = |changes: &Changes, word: &str| {
        let recipe = fresh(folder.path(), changes);
        let recipe = tiny::load(folder.path(), "again", &recipe);
        let mut recorder = Recorder::default();
        let error = train(&recipe, &RankEnv::single(), &TrainOptions::default(), &mut recorder);
        let text = error.expect_err("refused").to_string();
        assert!(text.contains(word), "{text}");
    };
    again(&vec![("model.peft_config.lora_alpha", json!(6))], "lora_alpha");
    again(&vec![("model.peft_config", Value::Null)], "without adapters");
    let none: Changes =
        vec![("model.adapter_name_or_path", json!(families::fixtures().join("llama")))];
    refused(&none, &["adapter_config.json"]);
}
