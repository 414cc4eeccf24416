//! Published models of every family, by their configs alone: their number of parameters, and what training them takes.

use std::collections::BTreeSet;
use std::{fmt::Write as _, fs, path::Path};

use serde_json::{Map, Value, json};
use sterna_arch::ModelConfig;
use sterna_plan::{DeviceType, Plan};
use sterna_recipe::parse;

/// 32K tokens on four GPUs that share a sequence.
const RECIPE: &str = "\
model: {name_or_path: some/model}
data: {sources: [chats], max_length: 32768, pack_samples: true}
sequence_parallel_size: 4
deepspeed: {zero_optimization: {stage: 3}}
tiled_mlp_compute: true
activation_checkpoint_cpu_offload: true
";

fn models() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/published.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The config as a recipe would use it: several were published with dropouts, which have to be switched off.
fn config(model: &Value) -> ModelConfig {
    let mut config: Map<String, Value> = model["config"].as_object().unwrap().clone();
    for key in ["attention_dropout", "residual_dropout", "embedding_dropout", "hidden_dropout"] {
        config.insert(key.to_owned(), json!(0.0));
    }
    let name = model["model"].as_str().unwrap();
    ModelConfig::from_json(&Value::Object(config).to_string(), Path::new(name))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn parameters_and_bytes_of_published_models() {
    let recipe = parse(Path::new("recipe.yaml"), RECIPE, &[]).unwrap();
    let mut table = String::new();
    for model in models() {
        let mut config = config(&model);
        recipe.group_experts(&mut config);
        let name = model["model"].as_str().unwrap();
        let num_parameters = config.arch.num_parameters();
        // What the hub says of the checkpoint, where that is known.
        if let Some(published) = model["num_parameters"].as_u64() {
            assert_eq!(num_parameters as u64, published, "{name}");
        }
        let plan = Plan::new(&recipe, &config, 4, DeviceType::Cuda)
            .unwrap_or_else(|errors| panic!("{name}: {errors}"));
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let (device, host) = (gib(plan.memory.device_bytes()), gib(plan.memory.host_bytes()));
        let family = config.family.model_type();
        writeln!(table, "{family:<18}{name:<42}{num_parameters:>12}{device:>8.1}{host:>8.1}")
            .unwrap();
    }
    insta::assert_snapshot!(table);
}

#[test]
fn every_family_is_published() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sterna-arch/src/families");
    let name = |entry: fs::DirEntry| entry.path().file_stem().unwrap().to_str().unwrap().to_owned();
    let known: BTreeSet<String> =
        fs::read_dir(folder).unwrap().map(|entry| name(entry.unwrap())).collect();
    let published: BTreeSet<String> = models()
        .iter()
        .map(|model| model["config"]["model_type"].as_str().unwrap().to_owned())
        .collect();
    // Of these no complete config of a text decoder alone was to be found.
    let missing: BTreeSet<String> = known.difference(&published).cloned().collect();
    assert_eq!(
        missing,
        [
            "arcee",
            "gemma4_text",
            "glm4_moe_lite",
            "mistral4",
            "qwen3_5_moe_text",
            "qwen3_5_text",
            "vaultgemma"
        ]
        .map(str::to_owned)
        .into()
    );
}
