//! Recipes and `--set`.

use std::path::Path;
use std::sync::LazyLock;

use sterna_arch::ModelConfig;
use sterna_plan::{DeviceType, Plan};
use sterna_recipe::Override;

use super::{Target, crates, files, read, text};

pub(super) const RECIPE: Target = Target {
    name: "recipe",
    dictionary: DICTIONARY,
    memory: 3,
    seeds: || files("sterna-recipe/tests/fixtures/recipes", ".yml"),
    run: run_recipe,
};

pub(super) const OVERRIDE: Target = Target {
    name: "override",
    dictionary: DICTIONARY,
    memory: 3,
    seeds: || {
        [
            "seed=7",
            "data.sources=[a/b:train]",
            "deepspeed.zero_optimization={stage: 3}",
            "data.max_length=3.8M",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    },
    run: |input, _| match text(input).parse::<Override>() {
        Ok(set) => parse("model: {name_or_path: a}\ndata: {sources: [a/b]}\n", &[set]),
        Err(err) => super::answer(&err),
    },
};

const DICTIONARY: &[&str] = &[
    "&a",
    "*a",
    "<<: *a",
    "!!str",
    "!!python/object/apply:os.system",
    "|\n  ",
    ">-\n",
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    "? ",
    "- ",
    "{a: &b [*b]}",
    "0x1f",
    "0o17",
    "1_000",
    "3.8M",
    "1K",
    ".inf",
    ".nan",
    "~",
    "yes",
    "2026-01-01",
    "60:30",
    "train_iters",
    "epochs",
    "seed",
    "sequence_parallel_size",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "data",
    "sources",
    "role_mapping",
    "model",
    "dtype",
    "deepspeed",
    "zero_optimization",
    "stage",
    "optimizer",
    "learning_rate",
    "betas",
    "scheduler",
    "warmup_ratio",
    "checkpoint",
    "output_dir",
    "logger",
    "memory",
    "tile_bytes",
    "keep_attention",
    "auto",
    "none",
    "offload_optimizer",
    "huggingface_instruct",
    "type",
    "sft",
    ":train[:10%]",
];

fn run_recipe(input: &[u8], _: &Path) -> String {
    parse(&text(input), &[])
}

fn parse(text: &str, overrides: &[Override]) -> String {
    static MODEL: LazyLock<ModelConfig> = LazyLock::new(|| {
        let path = crates().join("sterna-plan/tests/fixtures/models/llama-3.1-8b.json");
        let text = read(&path);
        ModelConfig::from_json(&super::text(&text), &path).expect("it is a test's own config")
    });
    let recipe = match sterna_recipe::parse(Path::new("recipe.yaml"), text, overrides) {
        Ok(recipe) => recipe,
        Err(errors) => return format!("refused: {errors}"),
    };
    let _ = recipe.to_json().to_string();
    match Plan::new(&recipe, &MODEL, 8, DeviceType::Cpu) {
        Ok(plan) => format!(
            "planned, {} notes, {} bytes",
            plan.notes.len(),
            format!("{plan}{}", plan.to_json()).len()
        ),
        Err(errors) => format!("read, not planned: {errors}"),
    }
}
