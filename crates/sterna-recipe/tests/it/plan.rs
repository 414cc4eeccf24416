//! What recipes need, on the shapes that they name.

use std::{fs, path::Path};

use sterna_hf::ModelConfig;
use sterna_recipe::{Override, Plan, Recipe, load, parse};

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn model(name: &str) -> ModelConfig {
    let path = fixtures().join("models").join(format!("{name}.json"));
    ModelConfig::from_json(&fs::read_to_string(&path).unwrap(), &path).unwrap()
}

/// The config of the model that a published recipe names.
fn model_of(recipe: &Recipe) -> ModelConfig {
    match recipe.model.name_or_path.as_str() {
        "meta-llama/Llama-3.1-8B-Instruct" => model("llama-3.1-8b"),
        "meta-llama/Llama-3.1-70B-Instruct" => model("llama-3.1-70b"),
        "Qwen/Qwen3-32B" => model("qwen3-32b"),
        other => panic!("no config for {other}"),
    }
}

fn published(name: &str) -> (Recipe, Plan) {
    let recipe = load(&fixtures().join("recipes").join(name), &[])
        .unwrap_or_else(|errors| panic!("{errors}"));
    let plan = Plan::new(&recipe, &model_of(&recipe), recipe.sequence_parallel_size);
    (recipe, plan.unwrap_or_else(|errors| panic!("{errors}")))
}

fn recipe(text: &str, overrides: &[&str]) -> Recipe {
    let overrides: Vec<Override> = overrides.iter().map(|text| text.parse().unwrap()).collect();
    parse(Path::new("recipe.yaml"), text, &overrides).unwrap_or_else(|errors| panic!("{errors}"))
}

const SMALL: &str = "\
model: {name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct}
data: {sources: [chats], max_length: 2048, pack_samples: true}
";

#[test]
fn all_published_recipes_are_accepted() {
    let mut table = String::new();
    let mut names: Vec<_> = fs::read_dir(fixtures().join("recipes"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 24);
    for name in names {
        let (_, plan) = published(&name);
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let (device, host) = (gib(plan.memory.device_bytes()), gib(plan.memory.host_bytes()));
        table += &format!(
            "{:<52}{:>12}{device:>10.1}{host:>10.1}\n",
            name.trim_end_matches(".yml"),
            plan.batch.local_tokens
        );
    }
    insta::assert_snapshot!(table, @r"
    run-h100-sp1-llama-8b-baseline                             36096      20.9     134.6
    run-h100-sp1-llama-8b                                     500224      40.1     256.7
    run-h100-sp1-qwen3-32b                                    230144      35.1     689.7
    run-h100-sp16-llama-70b                                    75008      34.0     157.3
    run-h100-sp16-llama-8b                                    500000      52.5     129.5
    run-h100-sp16-qwen3-32b                                   250000      50.6     183.1
    run-h100-sp32-llama-70b                                   125000      40.2     185.4
    run-h100-sp32-llama-8b-baseline                             1128       6.3       3.7
    run-h100-sp32-llama-8b                                    484376      58.0     122.0
    run-h100-sp32-qwen3-32b                                   218752      47.4     148.8
    run-h100-sp64-llama-70b                                   156252      48.7     207.2
    run-h100-sp64-qwen3-32b                                   234376      56.2     150.7
    run-h100-sp8-llama-70b                                     25024      64.2     131.4
    run-h100-sp8-llama-8b-no-mlp-no-act-offload               137504      71.7      15.0
    run-h100-sp8-llama-8b-no-ulysses-no-liger-no-extras         4000       8.8      15.0
    run-h100-sp8-llama-8b-no-ulysses-yes-liger-no-extras       20000      15.7      15.0
    run-h100-sp8-llama-8b-yes-act-offload                     300000      76.0      88.2
    run-h100-sp8-llama-8b-yes-mlp                             150016      56.8      15.0
    run-h100-sp8-llama-8b                                     475008      47.5     130.9
    run-h100-sp8-qwen3-32b                                    193760      44.5     179.3
    run-h200-sp1-llama-8b-baseline                             65024      34.3     134.6
    run-h200-sp1-llama-8b-liger-offload-tiled-mlp            1200128      88.3     427.6
    run-h200-sp1-llama-8b-liger-offload                       650240     145.8     293.4
    run-h200-sp1-llama-8b-liger                               300032     142.8     134.6
    ");
}

#[test]
fn a_plan_reads_well() {
    let (_, plan) = published("run-h100-sp32-llama-8b.yml");
    insta::assert_snapshot!(plan.to_string(), @r"
    model  meta-llama/Llama-3.1-8B-Instruct: llama, 8.03 B parameters in 32 blocks, bfloat16
    ranks  32 = 1 data-parallel x 32 sequence-parallel
    heads  32 query, 8 kv, 128 wide; each rank has 1 query and 1 kv
    zero   stage 3: weights, gradients, optimizer state sharded over 32 ranks; gradients add up in float32 and travel in bfloat16
    batch  1 row of up to 15_500_032 tokens, 484_376 on each rank; 1 micro-batch a step, up to 15_500_000 tokens
    tiles  projections 13_056 tokens, MLP 3_328 tokens, loss 2_048 tokens
    kept   the input of each block, and the output of its attention when there is room; on the host
    steps  1 epoch, of data repeated to at least 300 optimizer steps, stopped after 300 optimizer steps

    units                  count      parameters    shard elements
      embedding                1     525_336_576        16_416_768
      block                   32     218_112_000         6_816_000
      norm and head            1     525_340_672        16_416_896

    memory of a rank                      device              host
      weights                         478.64 MiB                 -
      gathered weights                  1.38 GiB                 -
      gradients                                -        957.28 MiB
      gradients of a unit               2.77 GiB                 -
      optimizer state                          -          2.80 GiB
      kept activations                         -        118.26 GiB
      attention of a block             37.07 GiB                 -
      residual stream                  14.78 GiB                 -
      tile scratch                      1.50 GiB                 -
      in all                           57.97 GiB        122.00 GiB
      + attention outputs                      -        120.10 GiB

    notes
      data.dl_num_workers
        batches are put together in the training process, ahead of need
      model.type
        its fused kernels are what every model runs on here
      model.attn_implementation
        every name means the same exact attention here; a flash name makes metrics count each document
      optimizer.type
        the step runs where `offload_optimizer` puts the optimizer state, whatever the name
      data.pack_samples
        it is off, so a sequence is one sample, however short: with chats, nothing comes near 15_500_000
        tokens; `pack_samples: true` with `packing: global` fills sequences
      data.max_length
        15_500_000 is beyond the model's 131_072: the model has not been trained at such positions;
        `hf_config_kwargs: {rope_scaling: ..}` can stretch them
      activation_checkpoint_cpu_offload
        on a CPU this is a move within host memory: it saves nothing there
      deepspeed.zero_optimization.offload_optimizer
        on a CPU this is a move within host memory: it saves nothing there
    ");
}

#[test]
fn a_small_plan_reads_well() {
    let overrides = [
        "sequence_parallel_size=3",
        "tiled_mlp_compute=on",
        "deepspeed.zero_optimization.stage=3",
        "train_iters=10",
    ];
    let plan = Plan::new(&recipe(SMALL, &overrides), &model("smollm2-135m"), 3).unwrap();
    insta::assert_snapshot!(plan.to_string(), @r"
    model  HuggingFaceTB/SmolLM2-135M-Instruct: llama, 134.52 M parameters in 30 blocks, bfloat16
    ranks  3 = 1 data-parallel x 3 sequence-parallel
    heads  9 query, 3 kv, 64 wide; each rank has 3 query and 1 kv
    zero   stage 3: weights, gradients, optimizer state sharded over 3 ranks; gradients add up in float32 and travel in float32
    batch  1 row of up to 2_049 tokens, 683 on each rank; 1 micro-batch a step, up to 2_048 tokens
    tiles  projections whole, MLP whole, loss whole
    kept   the input of each block, and the output of its attention when there is room
    steps  10 optimizer steps

    units                  count      parameters    shard elements
      embedding                1      28_311_552         9_437_184
      block                   30       3_540_096         1_180_032
      norm                     1             576               192

    memory of a rank                      device              host
      weights                          85.52 MiB                 -
      gathered weights                 60.75 MiB                 -
      gradients                       171.04 MiB                 -
      gradients of a unit             121.50 MiB                 -
      optimizer state                 513.13 MiB                 -
      kept activations                 22.51 MiB                 -
      attention of a block              5.55 MiB                 -
      residual stream                   3.00 MiB                 -
      tile scratch                    119.53 MiB                 -
      in all                            1.08 GiB                 -
      + attention outputs              23.21 MiB                 -
    ");
}
