//! Multimodal checkpoints: their text decoder is trained, and everything else comes out of the export as it went in.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sterna_comm::RankEnv;
use sterna_hf::WeightFiles;
use sterna_train::{TrainOptions, train};

use crate::conformance::Recorder;
use crate::tiny;

fn wrappers() -> Vec<PathBuf> {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../sterna-model/tests/fixtures/wrappers");
    let entries = std::fs::read_dir(folder).expect("the fixtures");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

fn recipe(model: &Path, folder: &Path) -> Value {
    // The vocabulary of the fixtures has 64 rows: digits and letters enough for these.
    let chats = [("ask", "yes 12"), ("say no", "no 7"), ("and", "3 or 4")];
    let rows = chats.map(|(user, assistant)| {
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        json!({"messages": [message("user", user), message("assistant", assistant)]}).to_string()
    });
    std::fs::write(folder.join("chats.jsonl"), rows.join("\n")).expect("written");
    let characters = ('a'..='z').chain('0'..='9').chain([' ', '\n']);
    tiny::write_tokenizer(folder, characters);
    json!({
        "type": "sft",
        "model": {"name_or_path": model, "dtype": "bf16"},
        "tokenizer": {"name_or_path": folder},
        "data": {
            "sources": [{
                "type": "huggingface_instruct",
                "name_or_path": folder.join("chats.jsonl"),
                "split": "train",
                "role_mapping": {"user": "messages.role.user", "assistant": "messages.role.assistant"},
            }],
            "cache_dir": folder.join("cache"),
            "num_proc": 1,
            "max_length": 64,
        },
        "epochs": 2,
        "optimizer": {"type": "cpu_adam", "lr": 1e-2},
        "scheduler": {"name": "constant"},
        "deepspeed": {"zero_optimization": {"stage": 3}},
        "train_log_iter_interval": 0,
        "checkpoint": {"type": "huggingface", "output_dir": folder.join("out"), "save_end_of_training": true},
    })
}

#[test]
fn a_decoder_is_trained_and_its_towers_are_carried() {
    for model in wrappers() {
        let name = model.file_name().expect("a name").to_string_lossy().into_owned();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let recipe = recipe(&model, folder.path());
        let recipe = tiny::load(folder.path(), "recipe", &recipe);
        let mut recorder = Recorder::default();
        train(&recipe, &RankEnv::single(), &TrainOptions::default(), &mut recorder)
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let losses: Vec<f64> = recorder.iterations.iter().map(|metrics| metrics.loss).collect();
        assert!(losses[losses.len() - 1] < losses[0], "{name}: {losses:?}");

        let before = WeightFiles::open(&model).expect("readable");
        let after = WeightFiles::open(&recorder.exports[0]).expect("readable");
        let (mut num_trained, mut num_carried) = (0, 0);
        assert!(before.names().eq(after.names()), "{name}");
        for tensor in before.names() {
            let view = |files: &WeightFiles| {
                let view = files.tensor(tensor).expect("the tensor");
                (view.dtype, view.bytes().to_vec(), view.shape)
            };
            let is_tower = ["vision", "visual", "multi_modal", "embed_vision"];
            if is_tower.iter().any(|part| tensor.contains(part)) {
                assert_eq!(view(&before), view(&after), "{name}: {tensor}");
                num_carried += 1;
            } else if view(&before) != view(&after) {
                num_trained += 1;
            }
        }
        assert!(num_trained > 15 && num_carried > 5, "{name}: {num_trained}, {num_carried}");
        let config = |folder: &Path| -> Value {
            let text = std::fs::read_to_string(folder.join("config.json")).expect("a config");
            let mut config: Value = serde_json::from_str(&text).expect("valid JSON");
            // Under the name that the file has for it.
            for key in ["dtype", "torch_dtype"] {
                config.as_object_mut().expect("an object").remove(key);
            }
            config
        };
        assert_eq!(config(&recorder.exports[0]), config(&model), "{name}");
    }
}

#[test]
fn random_weights_have_no_towers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut recipe = recipe(&wrappers()[0], folder.path());
    recipe["model"]["random_weights"] = json!(true);
    let recipe = tiny::load(folder.path(), "recipe", &recipe);
    let options = TrainOptions::default();
    let error = train(&recipe, &RankEnv::single(), &options, &mut Recorder::default());
    let message = error.expect_err("towers are missing").to_string();
    assert!(message.contains("which has other towers beside its text decoder"), "{message}");
}
