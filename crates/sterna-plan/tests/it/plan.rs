//! What recipes need, on the shapes that they name.

use std::{fmt::Write as _, fs, path::Path};

use sterna_arch::ModelConfig;
use sterna_plan::{DeviceType, MemoryKind, Plan};
use sterna_recipe::{Override, Recipe, load, parse};

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The recipes that were published with the reference.
fn recipes() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sterna-recipe/tests/fixtures/recipes")
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
    let recipe = load(&recipes().join(name), &[]).unwrap_or_else(|errors| panic!("{errors}"));
    let plan =
        Plan::new(&recipe, &model_of(&recipe), recipe.sequence_parallel_size, DeviceType::Cuda);
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
    // Recipe, tokens on each rank, GiB of a rank on the device and on the host.
    let mut table = String::new();
    let mut names: Vec<_> = fs::read_dir(recipes())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 24);
    for name in names {
        let (_, plan) = published(&name);
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let (device, host) = (gib(plan.memory.device_bytes()), gib(plan.memory.host_bytes()));
        let name = name.trim_end_matches(".yml");
        writeln!(table, "{name:<52}{:>12}{device:>10.1}{host:>10.1}", plan.batch.local_tokens)
            .unwrap();
    }
    insta::assert_snapshot!(table, @r"
    run-h100-sp1-llama-8b-baseline                             36096      16.9     134.6
    run-h100-sp1-llama-8b                                     500224      48.5     256.7
    run-h100-sp1-qwen3-32b                                    230144      41.4     689.7
    run-h100-sp16-llama-70b                                    75008      34.6     157.3
    run-h100-sp16-llama-8b                                    500000      53.2     129.5
    run-h100-sp16-qwen3-32b                                   250000      49.9     183.1
    run-h100-sp32-llama-70b                                   125000      40.8     185.4
    run-h100-sp32-llama-8b-baseline                             1128       6.2       3.7
    run-h100-sp32-llama-8b                                    484376      58.7     122.0
    run-h100-sp32-qwen3-32b                                   218752      46.7     148.8
    run-h100-sp64-llama-70b                                   156252      49.3     207.2
    run-h100-sp64-qwen3-32b                                   234376      55.4     150.7
    run-h100-sp8-llama-70b                                     25024      63.2     131.4
    run-h100-sp8-llama-8b-no-mlp-no-act-offload               137504      49.1      15.0
    run-h100-sp8-llama-8b-no-ulysses-no-liger-no-extras         4000       9.2      15.0
    run-h100-sp8-llama-8b-no-ulysses-yes-liger-no-extras       20000      14.0      15.0
    run-h100-sp8-llama-8b-yes-act-offload                     300000      33.4      88.2
    run-h100-sp8-llama-8b-yes-mlp                             150016      52.8      15.0
    run-h100-sp8-llama-8b                                     475008      48.2     130.9
    run-h100-sp8-qwen3-32b                                    193760      44.0     179.3
    run-h200-sp1-llama-8b-baseline                             65024      25.6     134.6
    run-h200-sp1-llama-8b-liger-offload-tiled-mlp            1200128     107.8     427.6
    run-h200-sp1-llama-8b-liger-offload                       650240      61.2     293.4
    run-h200-sp1-llama-8b-liger                               300032      95.7     134.6
    ");
}

#[test]
fn a_plan_reads_well() {
    let (_, plan) = published("run-h100-sp32-llama-8b.yml");
    insta::assert_snapshot!(plan.to_string(), @r"
    model  meta-llama/Llama-3.1-8B-Instruct: llama, 8.03 B parameters in 32 blocks, bfloat16
    ranks  32 = 1 data-parallel x 32 sequence-parallel, each on a GPU
    heads  32 query, 8 kv, 128 wide; each rank has 1 query and 1 kv
    zero   stage 3: weights, gradients, optimizer state sharded over 32 ranks; gradients add up in float32 and travel in bfloat16
    batch  1 row of up to 15_500_000 tokens padded to 15_500_032, 484_376 on each rank; 1 micro-batch a step, up to 15_500_000 tokens
    tiles  projections 26_112 tokens, MLP 6_656 tokens, loss 4_096 tokens
    attn   all heads and tokens at once
    kept   the input of each block on the host, the output of attention where there is room on the host
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
      attention of a block             29.68 GiB                 -
      residual stream                  22.40 GiB                 -
      tile scratch                      2.02 GiB                 -
      in all                           58.72 GiB        122.00 GiB
      + attention outputs                      -        120.10 GiB

    notes
      data.dl_num_workers
        batches are put together in the training process, which reads them from the cache
      model.type
        its fused kernels are what every model runs on here
      model.attn_implementation
        every name means exact attention; on a GPU `flash_attention_2` is that kernel and no other, and
        the other names are the fastest; a flash name makes metrics count each document
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
    let plan =
        Plan::new(&recipe(SMALL, &overrides), &model("smollm2-135m"), 3, DeviceType::Cpu).unwrap();
    insta::assert_snapshot!(plan.to_string(), @r"
    model  HuggingFaceTB/SmolLM2-135M-Instruct: llama, 134.52 M parameters in 30 blocks, bfloat16
    ranks  3 = 1 data-parallel x 3 sequence-parallel, on the CPU
    heads  9 query, 3 kv, 64 wide; each rank has 3 query and 1 kv
    zero   stage 3: weights, gradients, optimizer state sharded over 3 ranks; gradients add up in float32 and travel in float32
    batch  1 row of up to 2_048 tokens padded to 2_049, 683 on each rank; 1 micro-batch a step, up to 2_048 tokens
    tiles  projections whole, MLP whole, loss whole
    attn   all heads and tokens at once
    kept   the input of each block, the output of attention where there is room
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
      attention of a block              4.05 MiB                 -
      residual stream                   1.67 MiB                 -
      tile scratch                    119.53 MiB                 -
      in all                            1.07 GiB                 -
      + attention outputs              23.21 MiB                 -
    ");
}

/// The errors of planning the small recipe.
fn plan_errors(overrides: &[&str], world_size: usize) -> String {
    Plan::new(&recipe(SMALL, overrides), &model("smollm2-135m"), world_size, DeviceType::Cpu)
        .unwrap_err()
        .to_string()
}

#[test]
fn what_the_ranks_cannot_do_is_said() {
    insta::assert_snapshot!(plan_errors(&["sequence_parallel_size=10"], 12), @r"
    error: `sequence_parallel_size` `10` does not divide the `12` ranks of this run, required: a number of ranks that is a multiple of it
     --> --set
      |
      | sequence_parallel_size=10
      |                        ^^
      = hint: start 20 ranks, or set `sequence_parallel_size` to a divisor of 12

    error: wrong head split: `sequence_parallel_size` `10` is larger than num_attention_heads `9`, required: at most 9, so that each rank has a head
     --> --set
      |
      | sequence_parallel_size=10
      |                        ^^
      = hint: ranks beyond that can be data-parallel: keep the number of ranks and lower `sequence_parallel_size`

    2 errors in `recipe.yaml`
    ");
    insta::assert_snapshot!(plan_errors(&["sequence_parallel_size=2", "deepspeed.train_batch_size=8"], 8), @r"
    error: `deepspeed.train_batch_size` is `8` and a step has `4` rows, required: micro_batch_size * gradient_accumulation_steps * ranks / sequence_parallel_size
     --> --set
      |
      | deepspeed.train_batch_size=8
      |                            ^
      = hint: remove it: the recipe's own keys decide

    1 error in `recipe.yaml`
    ");
    let padding = ["data.pad_to=max_length", "data.div_length=13"];
    let unset = SMALL.replace("max_length: 2048, ", "");
    let errors = Plan::new(&recipe(&unset, &padding), &model("smollm2-135m"), 1, DeviceType::Cpu)
        .unwrap_err()
        .to_string();
    insta::assert_snapshot!(errors, @r"
    error: `data.pad_to` is `max_length`, and the model's max_position_embeddings `8192` is no multiple of `data.div_length` `13`, required: a multiple
     --> --set
      |
      | data.div_length=13
      |                 ^^
      = hint: remove `div_length` or set `data.max_length` to 8190

    1 error in `recipe.yaml`
    ");
}

/// The keys that a plan has notes about.
fn noted(overrides: &[&str], world_size: usize) -> Vec<String> {
    let plan =
        Plan::new(&recipe(SMALL, overrides), &model("smollm2-135m"), world_size, DeviceType::Cpu)
            .unwrap();
    plan.notes.into_iter().map(|note| note.key_path).collect()
}

#[test]
fn combinations_that_surprise_have_notes() {
    assert_eq!(noted(&[], 1), [""; 0]);
    assert_eq!(noted(&["data.max_length=2M"], 1), ["data.packing", "data.max_length"]);
    assert_eq!(noted(&["data.max_length=2M", "data.packing=global"], 1), ["data.max_length"]);
    assert_eq!(
        noted(&["data.max_length=100K", "data.pack_samples=false"], 1),
        ["data.pack_samples", "data.max_length"]
    );
    assert_eq!(
        noted(&["activation_checkpoint_cpu_offload=true"], 1),
        ["activation_checkpoint_cpu_offload"]
    );
    assert_eq!(
        noted(&["model.disable_activation_checkpoint=true"], 1),
        ["model.disable_activation_checkpoint"]
    );
    assert_eq!(
        noted(&["model.hf_config_kwargs={num_hidden_layers: 2}"], 1),
        ["model.hf_config_kwargs.num_hidden_layers"]
    );
}

#[test]
fn only_another_number_of_layers_gives_the_weights_up() {
    let unchanged = model("smollm2-135m");
    let changes_depth =
        |overrides: &[&str]| recipe(SMALL, overrides).model.changes_depth(&unchanged);
    assert!(!changes_depth(&[]));
    assert!(!changes_depth(&["model.hf_config_kwargs={num_hidden_layers: 30, rope_theta: 5}"]));
    assert!(changes_depth(&["model.hf_config_kwargs={num_hidden_layers: 2}"]));
}

/// Bytes of a kind, device and host together.
fn bytes(plan: &Plan, kind: MemoryKind) -> u64 {
    plan.memory
        .rows
        .iter()
        .filter(|row| row.kind == kind)
        .map(|row| row.device_bytes + row.host_bytes)
        .sum()
}

#[test]
fn bytes_follow_from_the_shapes() {
    // 8,030,261,248 parameters on one rank: 2 bytes of weights, 4 of gradients, 12 of masters and moments; 18 in all.
    let (_, plan) = published("run-h100-sp1-llama-8b-baseline.yml");
    let num_parameters = 8_030_261_248;
    assert_eq!(plan.model.num_parameters as u64, num_parameters);
    assert_eq!(bytes(&plan, MemoryKind::Weights), 2 * num_parameters);
    assert_eq!(bytes(&plan, MemoryKind::Gradients), 4 * num_parameters);
    assert_eq!(bytes(&plan, MemoryKind::Optimizer), 12 * num_parameters);
    assert_eq!(plan.memory.host_bytes(), 18 * num_parameters, "the recipe moves all of them");
    // Kept inputs at 3.8M tokens on 8 ranks take 475k * 4096 * 2 * 32 = 116 GiB a rank.
    let (_, plan) = published("run-h100-sp8-llama-8b.yml");
    assert_eq!(bytes(&plan, MemoryKind::KeptActivations), 475_008 * 4096 * 2 * 32);
}

#[test]
fn stages_shard_what_they_say() {
    let plan = |stage: u8, dtype: &str| {
        let overrides =
            [format!("deepspeed.zero_optimization.stage={stage}"), format!("model.dtype={dtype}")];
        let overrides: Vec<_> = overrides.iter().map(String::as_str).collect();
        Plan::new(&recipe(SMALL, &overrides), &model("smollm2-135m"), 4, DeviceType::Cpu).unwrap()
    };
    let kinds = [MemoryKind::Weights, MemoryKind::Gradients, MemoryKind::Optimizer];
    let of = |stage, dtype| kinds.map(|kind| bytes(&plan(stage, dtype), kind));
    // All tensors of this model are multiples of 64 * 4 elements, so shards are quarters.
    let n = 134_515_008;
    assert_eq!(of(0, "bf16"), [2 * n, 4 * n, 12 * n]);
    assert_eq!(of(1, "bf16"), [2 * n, 4 * n, 3 * n]);
    assert_eq!(of(2, "bf16"), [2 * n, n, 3 * n]);
    assert_eq!(of(3, "bf16"), [n / 2, n, 3 * n]);
    // An fp32 model is its own master.
    assert_eq!(of(0, "fp32"), [4 * n, 4 * n, 8 * n]);
}

#[test]
fn a_plan_as_json_has_its_numbers() {
    let plan = Plan::new(
        &recipe(SMALL, &["sequence_parallel_size=2"]),
        &model("smollm2-135m"),
        4,
        DeviceType::Cpu,
    )
    .unwrap();
    let json = plan.to_json();
    assert_eq!(json["mesh"], serde_json::json!({"world_size": 4, "sp_size": 2, "dp_size": 2}));
    assert_eq!(json["heads"][1], serde_json::json!({"q": [5, 9], "kv": [1, 3]}));
    assert_eq!(json["memory"]["device_bytes"], plan.memory.device_bytes());
    let rows = json["memory"]["rows"].as_array().unwrap();
    assert_eq!(
        rows.iter().map(|row| row["device_bytes"].as_u64().unwrap()).sum::<u64>(),
        plan.memory.device_bytes()
    );
}

#[test]
fn products_in_fp32_take_a_block_once_more_and_the_operands_of_a_call() {
    let model = model("llama-3.1-8b");
    let bytes = |length: usize| {
        let recipe = recipe(SMALL, &[&format!("data.max_length={length}")]);
        let plan = Plan::new(&recipe, &model, 1, DeviceType::Cpu)
            .unwrap_or_else(|errors| panic!("{errors}"));
        let is_widened = |plan: &Plan| {
            let mut rows = plan.memory.rows.iter();
            rows.find(|row| row.kind == MemoryKind::WidenedProducts).map(|row| row.device_bytes)
        };
        assert_eq!(is_widened(&plan), None);
        is_widened(&plan.with_widened_products(&model)).unwrap()
    };
    // 32 query heads on 8 kv heads of 128; q, o, their gradients, d_k and d_v at query width, k and v.
    let block = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336 + 2 * 4096;
    let of_all_heads = (6 * 32 + 2 * 8) * 128;
    let of_one_kv_head = (6 * 4 + 2) * 128;
    assert_eq!(bytes(2048), 4 * (block + 2048 * of_all_heads));
    assert_eq!(bytes(8192), 4 * (block + 8192 * of_all_heads));
    // Twice as many at once would be heads one after the other.
    assert_eq!(bytes(16_384), 4 * (block + 8192 * of_all_heads));
    assert_eq!(bytes(131_072), 4 * (block + 131_072 * of_one_kv_head));
}
