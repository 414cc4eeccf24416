//! Recipes that people have, and what they mean.

use std::path::Path;

use sterna_recipe::{
    AttnImplementation, DType, Packing, Recipe, RolePath, Schedule, ZeroStage, load,
};

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn recipe(name: &str) -> Recipe {
    load(&fixture("recipes").join(name), &[]).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn a_published_recipe_means_what_it_says() {
    let recipe = recipe("run-h100-sp8-llama-8b-yes-mlp.yml");
    assert_eq!(recipe.sequence_parallel_size, 8);
    assert_eq!((recipe.exit_iteration, recipe.min_iterations), (4, 4));
    assert!(recipe.tiled_mlp_compute && !recipe.activation_checkpoint_cpu_offload);
    assert_eq!(recipe.model.name_or_path, "meta-llama/Llama-3.1-8B-Instruct");
    assert_eq!(recipe.tokenizer.name_or_path, recipe.model.name_or_path);
    assert_eq!(recipe.model.attn_implementation, AttnImplementation::Sdpa);
    assert_eq!(recipe.model.dtype, DType::BF16);
    assert_eq!(recipe.deepspeed.zero_stage, ZeroStage::Three);
    assert_eq!(recipe.deepspeed.reduce_dtype, DType::BF16);
    assert!(recipe.deepspeed.offload_optimizer && !recipe.deepspeed.offload_param);
    assert!((recipe.deepspeed.gradient_clipping - 1.0).abs() < f64::EPSILON);
    assert!((recipe.optimizer.learning_rate - 1e-5).abs() < f64::EPSILON);
    assert_eq!(recipe.scheduler.schedule, Schedule::Linear);
    assert_eq!(recipe.data.max_length, Some(1_200_000));
    assert_eq!(recipe.data.packing, Packing::Reference);
    let source = &recipe.data.sources[0];
    assert_eq!(
        (source.name_or_path.as_str(), source.split.as_str()),
        ("HuggingFaceH4/ultrachat_200k", "train_sft")
    );
    let user =
        RolePath::Items { array: "messages".into(), field: "role".into(), value: "user".into() };
    assert_eq!(source.role_mapping[0], ("user".to_owned(), user));
}
