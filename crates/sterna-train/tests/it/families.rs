//! Three steps of AdamW on chats for a tiny model of every family, against transformers (`golden/make_family_steps.py`): losses, gradient
//! norms and the way of every weight, however the work is cut; and what an export has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sterna_arch::DType;
use sterna_comm::RankEnv;
use sterna_hf::WeightFiles;
use sterna_testkit::{TestRank, spawn_ranks};
use sterna_train::{IterationMetrics, TrainOptions, train};
use tch::{Kind, Tensor};

use crate::conformance::{Recorder, double};
use crate::equivalence::{assert_same, set};
use crate::tiny;

/// Relative.
const LOSS: f64 = 1e-4;
/// Relative to the norm of a tensor's way.
pub(crate) const DELTA: f64 = 2e-3;

/// What asks for the auxiliary loss of routers.
const BALANCED: &str = "model.hf_config_kwargs.output_router_logits";

/// A change to the recipe: keys and values.
pub(crate) type Changes = Vec<(&'static str, Value)>;

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families")
}

/// The `model_type`s that have a fixture.
fn families() -> Vec<String> {
    let entries = std::fs::read_dir(fixtures()).expect("the fixtures");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string());
    let mut names: Vec<String> = names.map(|name| name.expect("a name in UTF-8")).collect();
    names.retain(|name| name != "data");
    names.sort();
    names
}

/// All five chats in each step: one after the other, whose gradients add up.
pub(crate) fn recipe(family: &str, folder: &Path) -> Value {
    let data = fixtures().join("data");
    json!({
        "type": "sft",
        "model": {"name_or_path": fixtures().join(family), "dtype": "fp32"},
        "tokenizer": {"name_or_path": data},
        "data": {
            "sources": [{
                "type": "huggingface_instruct",
                "name_or_path": data.join("chats.jsonl"),
                "split": "train",
                "role_mapping": {"user": "messages.role.user", "assistant": "messages.role.assistant"},
            }],
            "cache_dir": folder.join("cache"),
            "num_proc": 1,
            "max_length": 96,
            "pack_samples": false,
        },
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 5,
        "loss_average": "token",
        "epochs": 3,
        "optimizer": {"type": "cpu_adam", "lr": 3e-3, "betas": [0.9, 0.95], "weight_decay": 0.1},
        "scheduler": {"name": "constant"},
        "deepspeed": {"zero_optimization": {"stage": 0}, "gradient_clipping": 0},
        "train_log_iter_interval": 0,
        "checkpoint": {"type": "huggingface", "output_dir": folder.join("out"), "save_end_of_training": true},
    })
}

/// All chats in one pack.
fn packed() -> Changes {
    vec![
        ("data.pack_samples", json!(true)),
        ("data.packing", json!("global")),
        ("data.max_length", json!(384)),
        ("gradient_accumulation_steps", json!(1)),
    ]
}

/// All chats as often as there are ranks, so that the reference's sampler, which gives each rank as many, need not fill up. Means stay
/// what they are.
fn repeated(folder: &Path, times: usize) -> Changes {
    let chats = std::fs::read_to_string(fixtures().join("data/chats.jsonl")).expect("the chats");
    let path = folder.join("chats.jsonl");
    // Each rank writes the same, and another may be reading.
    let own = folder.join(format!("chats-{}.jsonl", std::process::id()));
    std::fs::write(&own, chats.repeat(times)).expect("written");
    std::fs::rename(&own, &path).expect("renamed");
    let num_chats = chats.lines().count() * times;
    vec![
        ("data.sources.0.name_or_path", json!(path)),
        ("gradient_accumulation_steps", json!(num_chats)),
    ]
}

pub(crate) fn with(mut changes: Changes, more: &[(&'static str, Value)]) -> Changes {
    changes.extend_from_slice(more);
    changes
}

/// Trains, and compares every step and every tensor.
fn check(family: &str, folder: &Path, env: &RankEnv, name: &str, changes: &Changes) {
    let name = format!("{family}, {name}");
    let mut recipe = recipe(family, folder);
    for (path, value) in changes {
        set(&mut recipe, path, value.clone());
    }
    let recipe = tiny::load(folder, &format!("recipe-{}", env.rank), &recipe);
    let mut recorder = Recorder::default();
    train(&recipe, env, &TrainOptions::default(), &mut recorder)
        .unwrap_or_else(|error| panic!("{name}: {error:?}"));

    let expected = std::fs::read_to_string(fixtures().join(family).join("expected.json"));
    let expected: Value = serde_json::from_str(&expected.expect("a file")).expect("valid JSON");
    let is_balanced = changes.iter().any(|(key, _)| *key == BALANCED);
    check_steps(&name, &recorder, if is_balanced { &expected["balanced"] } else { &expected });
    if env.rank == 0 && !is_balanced {
        check_export(&name, family, &expected, &recorder.exports[0]);
    }
}

/// Compares losses and gradient norms of the three steps.
pub(crate) fn check_steps(name: &str, recorder: &Recorder, steps: &Value) {
    let close = |what: &str, actual: f64, expected: &Value| {
        let expected = expected.as_f64().expect("a number");
        let relative = (actual / expected - 1.0).abs();
        assert!(relative <= LOSS, "{name}: {what} {actual} against {expected}");
    };
    assert_eq!(recorder.iterations.len(), 3, "{name}");
    for (step, metrics) in recorder.iterations.iter().enumerate() {
        close("loss", metrics.loss, &steps["losses"][step]);
        close("gradient norm", metrics.grad_norm, &steps["grad_norms"][step]);
    }
}

/// Compares the way of each weight, and what the export has beside.
fn check_export(name: &str, family: &str, expected: &Value, export: &Path) {
    let model = fixtures().join(family);
    let initial = WeightFiles::open(&model).expect("readable");
    let last = WeightFiles::open(export).expect("readable");
    let names =
        |files: &WeightFiles| -> BTreeSet<String> { files.names().map(str::to_owned).collect() };
    assert_eq!(names(&last), names(&initial), "{name}");
    let deltas = tensors(&model.join("final.safetensors"));
    let is_noise = |tensor: &str| {
        expected["noisy"].as_array().expect("a list").iter().any(|noisy| noisy == tensor)
    };
    for tensor in names(&initial) {
        let way = double(&last, &tensor) - double(&initial, &tensor);
        let Some(expected) = deltas.get(&tensor) else {
            // A buffer stays as it is.
            assert!(way == way.zeros_like(), "{name}: {tensor} moved");
            continue;
        };
        let error = (way - expected.flatten(0, -1)).norm().double_value(&[]);
        let error = error / expected.norm().double_value(&[]).max(f64::MIN_POSITIVE);
        assert!(error <= DELTA || is_noise(&tensor), "{name}: {tensor} is off by {error:e}");
    }
    assert_eq!(config_of(export), config_of(&model), "{name}");
}

/// The config of a folder, without the dtype of the tensors, which an export has in fp32.
pub(crate) fn config_of(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("config.json")).expect("a config");
    let mut config: Value = serde_json::from_str(&text).expect("valid JSON");
    for key in ["dtype", "torch_dtype"] {
        config.as_object_mut().expect("an object").remove(key);
    }
    config
}

/// A checkpoint has biases that no bf16 holds: rounded, they would choose other experts. A bf16 model keeps and exports them.
#[test]
fn biases_that_choose_experts_stay_in_single_precision() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (from, model) = (fixtures().join("glm4_moe"), folder.path().join("model"));
    std::fs::create_dir(&model).expect("made");
    std::fs::copy(from.join("config.json"), model.join("config.json")).expect("copied");
    let bytes = std::fs::read(from.join("model.safetensors")).expect("the weights");
    let files = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let is_bias = |name: &str| name.ends_with("e_score_correction_bias");
    let biases = [0.1_f32, 0.2, 0.3, -0.1, 0.05, 0.01, 0.7, -0.3].map(f32::to_le_bytes).concat();
    let tensors = files.tensors().into_iter().map(|(name, view)| {
        let bias = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![8], &biases);
        let view = if is_bias(&name) { bias.expect("eight numbers") } else { view };
        (name, view)
    });
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    safetensors::serialize_to_file(tensors, metadata, &model.join("model.safetensors"))
        .expect("written");

    let mut recipe = recipe("glm4_moe", folder.path());
    set(&mut recipe, "model.name_or_path", json!(model));
    set(&mut recipe, "model.dtype", json!("bf16"));
    let recipe = tiny::load(folder.path(), "recipe", &recipe);
    let mut recorder = Recorder::default();
    train(&recipe, &RankEnv::single(), &TrainOptions::default(), &mut recorder).expect("trained");
    let export = WeightFiles::open(&recorder.exports[0]).expect("readable");
    for name in export.names() {
        let view = export.tensor(name).expect("a tensor");
        assert_eq!(view.dtype == DType::F32, is_bias(name), "{name}");
        assert!(!is_bias(name) || *view.bytes() == biases, "{name}");
    }
    assert!(export.names().any(is_bias));
}

/// Every tensor of a safetensors file, in double precision.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
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

/// Trains what a name stands for as recipe and changes say, and compares it: the folder of the run, the rank, what is changed, in words
/// and as keys.
pub(crate) type Check = fn(&str, &Path, &RankEnv, &str, &Changes);

pub(crate) fn one_process(
    names: impl IntoIterator<Item: AsRef<str>>,
    check: Check,
    words: &str,
    changes: &Changes,
) {
    for name in names {
        let folder = tempfile::tempdir().expect("a temporary folder");
        check(name.as_ref(), folder.path(), &RankEnv::single(), words, changes);
    }
}

/// Everything on so many ranks of a sequence; a training joins its ranks anew.
pub(crate) fn ranks(
    names: impl IntoIterator<Item: AsRef<str>>,
    check: Check,
    world_size: usize,
    stage: u8,
    is_packed: bool,
) {
    let sp = [
        ("sequence_parallel_size", json!(world_size)),
        ("deepspeed.zero_optimization.stage", json!(stage)),
        // Each expert is gathered and reduced by itself.
        ("memory.expert_group_bytes", json!(1)),
    ];
    for name in names {
        spawn_ranks(world_size, |rank: &TestRank| {
            let env = RankEnv::from_env().expect("the environment of a rank");
            let mut changes = with(repeated(&rank.folder, world_size), &sp);
            if is_packed {
                // As many packs as ranks.
                let packs = ("gradient_accumulation_steps", json!(world_size));
                changes = with(with(changes, &packed()), &[packs]);
            }
            check(name.as_ref(), &rank.folder, &env, "ranks", &changes);
        });
    }
}

/// Packs in small tiles, groups of heads and of experts.
pub(crate) fn tiled() -> Changes {
    let small = json!({
        "tile_bytes": 4096, "attention_head_groups": 2, "attention_query_tile": 50, "expert_group_bytes": 8192,
    });
    with(packed(), &[("memory", small), ("tiled_mlp_compute", json!(true))])
}

/// Packs of which blocks keep everything.
pub(crate) fn all_kept() -> Changes {
    with(packed(), &[("model.disable_activation_checkpoint", json!(true))])
}

/// Packs of which blocks keep every other input, on the host.
pub(crate) fn few_kept() -> Changes {
    let few = json!({"keep_inputs_every": 2, "keep_attention": false, "inputs_on": "host"});
    with(packed(), &[("memory", few)])
}

#[test]
fn every_family_has_steps() {
    let known = std::fs::read_dir(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../sterna-arch/src/families"),
    );
    let known: BTreeSet<String> = known
        .expect("the families")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned())
        .collect();
    // Some have several models.
    let model_type = |folder: String| {
        let config = std::fs::read_to_string(fixtures().join(folder).join("config.json"));
        let config: Value = serde_json::from_str(&config.expect("a file")).expect("valid JSON");
        config["model_type"].as_str().expect("a name").to_owned()
    };
    let found: BTreeSet<String> = families().into_iter().map(model_type).collect();
    assert_eq!(found, known);
}

#[test]
fn a_chat_at_a_time() {
    one_process(families(), check, "unpacked", &Changes::new());
}

#[test]
fn all_chats_in_a_pack() {
    one_process(families(), check, "packed", &packed());
}

#[test]
fn small_tiles_and_groups_of_heads() {
    one_process(families(), check, "tiled", &tiled());
}

#[test]
fn everything_or_nothing_kept() {
    one_process(families(), check, "all kept", &all_kept());
    one_process(families(), check, "few kept", &few_kept());
}

#[test]
fn two_ranks_without_zero_and_a_chat_at_a_time() {
    ranks(families(), check, 2, 0, false);
}

#[test]
fn two_ranks_with_zero_3_and_packs() {
    ranks(families(), check, 2, 3, true);
}

#[test]
fn three_ranks_without_zero_and_packs() {
    ranks(families(), check, 3, 0, true);
}

#[test]
fn three_ranks_with_zero_3_and_packs() {
    ranks(families(), check, 3, 3, true);
}

/// A training whose routers are balanced.
fn balanced() -> Changes {
    vec![(BALANCED, json!(true)), ("model.hf_config_kwargs.router_aux_loss_coef", json!(0.2))]
}

/// A chat is a micro-batch, whose routers are balanced over all ranks that share it; `div_length` 256 leaves the second rank none of
/// its tokens.
#[test]
fn routers_are_balanced() {
    let balanced = |world_size: usize| -> Changes {
        let few = ("memory.keep_inputs_every", json!(world_size));
        with(balanced(), &[few, ("sequence_parallel_size", json!(world_size))])
    };
    for family in ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let single = RankEnv::single();
        check(family, folder.path(), &single, "balanced", &balanced(1));
        let all = [("model.disable_activation_checkpoint", json!(true))];
        check(family, folder.path(), &single, "all kept", &with(balanced(1), &all));
        let few = [("memory", json!({"keep_inputs_every": 2, "keep_attention": false}))];
        check(family, folder.path(), &single, "few kept", &with(balanced(1), &few));
        for div_length in [1, 256] {
            spawn_ranks(2, |rank: &TestRank| {
                let env = RankEnv::from_env().expect("the environment of a rank");
                let changes = with(repeated(&rank.folder, 2), &balanced(2));
                let changes = with(changes, &[("data.div_length", json!(div_length))]);
                check(family, &rank.folder, &env, "balanced", &changes);
            });
        }
    }
}

/// Losses, norms of gradients and loads of experts with balanced routers.
fn balanced_steps(folder: &Path, env: &RankEnv, changes: &Changes) -> Vec<f64> {
    let mut recipe = recipe("qwen3_moe", folder);
    for (path, value) in with(balanced(), changes) {
        set(&mut recipe, path, value);
    }
    let recipe = tiny::load(folder, &format!("recipe-{}", env.rank), &recipe);
    let mut recorder = Recorder::default();
    train(&recipe, env, &TrainOptions::default(), &mut recorder).expect("trained");
    let of_step = |step: &IterationMetrics| {
        let load = step.moe_load_max_over_mean.expect("of a model with experts");
        assert!((1.0..=5.0).contains(&load), "{load}, of five experts");
        [step.loss, step.grad_norm, load]
    };
    recorder.iterations.iter().flat_map(of_step).collect()
}

/// Rows of unequal lengths have padding, a pack has none.
#[test]
fn routers_are_balanced_over_the_tokens_of_all_rows() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let single = RankEnv::single();
    let rows = [("micro_batch_size", json!(5)), ("gradient_accumulation_steps", json!(1))];
    assert_same(
        "rows and a pack",
        &balanced_steps(folder.path(), &single, &rows.into()),
        &balanced_steps(folder.path(), &single, &packed()),
    );
}

/// An evaluation's loss is that of the labels alone.
#[test]
fn routers_are_not_balanced_in_an_evaluation() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let loss = |changes: Changes| {
        let still: Changes = vec![
            ("data.train_eval_split", json!([0.5, 0.5])),
            ("eval_interval", json!(1)),
            ("train_iters", json!(1)),
            ("optimizer.lr", json!(0.0)),
        ];
        let mut recipe = recipe("qwen3_moe", folder.path());
        for (path, value) in with(still, &changes) {
            set(&mut recipe, path, value);
        }
        let recipe = tiny::load(folder.path(), "evaluated", &recipe);
        let mut recorder = Recorder::default();
        train(&recipe, &RankEnv::single(), &TrainOptions::default(), &mut recorder)
            .expect("trained");
        (recorder.iterations[0].loss, recorder.evals[0].loss)
    };
    let (plain, balanced) = (loss(Changes::new()), loss(balanced()));
    assert!(balanced.0 > plain.0, "the step's loss has it: {balanced:?} and {plain:?}");
    assert_eq!(balanced.1.to_bits(), plain.1.to_bits(), "{balanced:?} and {plain:?}");
}

/// The same chat four times, for which the order does not matter; `rows` of them in a micro-batch.
fn same_chats(folder: &Path, rows: usize) -> Changes {
    let chats = std::fs::read_to_string(fixtures().join("data/chats.jsonl")).expect("chats");
    let first = chats.lines().next().expect("a chat");
    let own = folder.join(format!("chats-{}.jsonl", std::process::id()));
    std::fs::write(&own, format!("{first}\n").repeat(4)).expect("written");
    let path = folder.join("chats.jsonl");
    std::fs::rename(&own, &path).expect("renamed");
    vec![
        ("data.sources.0.name_or_path", json!(path)),
        ("data.div_length", json!(1)),
        ("micro_batch_size", json!(rows)),
        ("gradient_accumulation_steps", json!(4 / rows)),
    ]
}

/// One process against two ranks, which have `changes`.
fn two_ranks_balance_as_one(rows: usize, changes: &Changes, average: &str) {
    let average = [("loss_average", json!(average))];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let alone = with(same_chats(folder.path(), rows), &average);
    let expected = balanced_steps(folder.path(), &RankEnv::single(), &alone);
    spawn_ranks(2, |rank: &TestRank| {
        let env = RankEnv::from_env().expect("the environment of a rank");
        let together = with(with(same_chats(&rank.folder, rows), &average), changes);
        assert_same("two ranks", &balanced_steps(&rank.folder, &env, &together), &expected);
    });
}

/// The padding of each row's end is on the second rank.
#[test]
fn routers_are_balanced_over_rows_on_two_ranks() {
    two_ranks_balance_as_one(2, &vec![("sequence_parallel_size", json!(2))], "token");
}

#[test]
fn routers_are_balanced_on_two_data_parallel_ranks() {
    let half = vec![("gradient_accumulation_steps", json!(2))];
    for average in ["token", "micro_batch"] {
        two_ranks_balance_as_one(1, &half, average);
    }
}
