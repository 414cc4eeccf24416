//! The recipes of the folder `recipes`, on a tiny model.

use std::path::{Path, PathBuf};

use crate::workspace::Workspace;

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes")
}

/// Runs a recipe as it stands but for its model, and where data is not in the repository for the data, and returns what it printed.
fn run(name: &str, more: &[&str]) -> (Workspace, String) {
    let workspace = Workspace::new();
    for file in ["data/preferences.jsonl", "data/texts.jsonl"] {
        let text = std::fs::read_to_string(recipes().join(file)).expect("the data");
        let to = workspace.path("recipes").join(file);
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("made");
        std::fs::write(to, text).expect("written");
    }
    workspace.write(name, &std::fs::read_to_string(recipes().join(name)).expect("a recipe"));
    let mut args = vec!["train", name, "--set", "model.name_or_path=model"];
    args.extend(more.iter().flat_map(|change| ["--set", change]));
    let output = workspace.run(&args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{name}: {stderr}");
    (workspace, stderr)
}

#[test]
fn adapters_are_trained_and_merged() {
    let (workspace, stderr) = run("lora.yaml", &["data.sources=[chats]", "data.max_length=256"]);
    assert!(stderr.contains("of them trained"), "{stderr}");
    let losses: Vec<f64> = workspace
        .rows(".sterna/lora/metrics.jsonl")
        .iter()
        .filter_map(|row| row["loss/eval"].as_f64())
        .collect();
    assert!(losses.len() == 2 && losses[1] < losses[0], "{losses:?}");
    for file in ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"] {
        assert!(workspace.path(".sterna/lora/adapters").join(file).is_file(), "{file}");
    }
    let output = workspace.run(&["export", "model", "--dtype", "bf16", "--out", "base"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |folder: &str, name: &str| std::fs::read(workspace.path(folder).join(name));
    for from in ["adapters", "checkpoint-10"] {
        let (from, out) = (format!(".sterna/lora/{from}"), format!("merged-{from}"));
        let args = ["export", &from, "--merge", "--dtype", "bf16", "--out", &out];
        let output = workspace.run(&args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let weights = |folder: &str| read(folder, "model.safetensors").expect("weights");
        assert!(weights(&out) != weights("base"), "{from}");
        assert!(read(&out, "tokenizer.json").is_ok(), "{from}");
    }
}

#[test]
fn two_ranks_train_on_preferences() {
    let (workspace, _) = run("dpo.yaml", &[]);
    let rows = workspace.rows(".sterna/dpo/metrics.jsonl");
    assert_eq!(rows.len(), 4);
    assert!((rows[0]["loss"].as_f64().expect("a loss") - 2_f64.ln()).abs() < 1e-3, "{rows:?}");
    assert!(workspace.path(".sterna/dpo/tuned/model.safetensors").is_file());
}

#[test]
fn texts_are_trained_on() {
    let (workspace, _) = run("causal.yaml", &[]);
    assert_eq!(workspace.rows(".sterna/causal/metrics.jsonl").len(), 4);
    assert!(workspace.path(".sterna/causal/tuned/model.safetensors").is_file());
}
