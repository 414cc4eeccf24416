//! Recipes that people have, and what they mean.

use std::path::Path;

use serde_json::json;
use sterna_recipe::{
    AttnImplementation, CheckpointKind, DType, DpoLoss, LabelMask, LossAverage, Override, Packing,
    Place, Ramp, Recipe, RolePath, RowFormat, Sampling, Schedule, ZeroStage, load, parse,
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
    assert_eq!(recipe.memory.optimizer_on, Place::Host);
    assert!(!recipe.deepspeed.offload_param);
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

const SMALL: &str = "\
model: {name_or_path: folder}
data: {sources: [chats]}
";

/// The small recipe with keys set, each value read as YAML.
fn with(overrides: &[&str]) -> Recipe {
    let overrides: Vec<Override> = overrides.iter().map(|text| text.parse().unwrap()).collect();
    parse(Path::new("recipe.yaml"), SMALL, &overrides).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The errors of the small recipe with keys set.
fn errors(overrides: &[&str]) -> String {
    let overrides: Vec<Override> = overrides.iter().map(|text| text.parse().unwrap()).collect();
    parse(Path::new("recipe.yaml"), SMALL, &overrides)
        .map_or_else(|errors| errors.to_string(), |_| String::new())
}

#[test]
#[expect(clippy::too_many_lines, reason = "there are that many keys")]
fn defaults_are_the_references() {
    insta::assert_snapshot!(format!("{:#}", with(&[]).to_json()), @r#"
    {
      "type": "sft",
      "model": {
        "name_or_path": "folder",
        "dtype": "bfloat16",
        "attn_implementation": "sdpa",
        "disable_activation_checkpoint": false,
        "hf_config_kwargs": {},
        "random_weights": false,
        "save_name": null,
        "peft_config": null,
        "adapter_name_or_path": null
      },
      "tokenizer": {
        "name_or_path": "folder"
      },
      "data": {
        "type": "sft",
        "sources": [
          {
            "type": "huggingface_instruct",
            "name_or_path": "chats",
            "split": "train",
            "kwargs": {},
            "format": null,
            "role_mapping": {},
            "unmapped_roles": "refuse",
            "messages_key": null,
            "tools_key": null,
            "text_key": null,
            "content_key": null,
            "sample_ratio": null,
            "sample_count": null,
            "sample_seed": 42,
            "epochs": 1.0,
            "weight": null
          }
        ],
        "eval_sources": [],
        "train_eval_split": [
          1.0,
          0.0
        ],
        "max_length": null,
        "packing": "reference",
        "label_mask": "exact",
        "num_proc": 16,
        "seed": 42,
        "cache_dir": "/tmp/",
        "fail_on_missing_cache": false,
        "div_length": 256,
        "mask_inputs": true,
        "always_max_length": false,
        "pad_to": "div_length",
        "filter_samples": true,
        "excess_length": "drop",
        "stopping_strategy": "first_exhausted",
        "pack_samples": false,
        "drop_last": false,
        "fuse_positions_prob": 0.0,
        "repeat_to_pack_max_length": false,
        "ignore_empty_think": false,
        "train_on": "all",
        "chat_template_kwargs": {},
        "control_tokens": "warn"
      },
      "optimizer": {
        "learning_rate": 0.0005,
        "weight_decay": 0.1,
        "betas": [
          0.9,
          0.999
        ],
        "eps": 1e-8
      },
      "scheduler": {
        "name": "linear",
        "warmup_ratio": 0.1,
        "scheduler_specific_kwargs": {}
      },
      "deepspeed": {
        "zero_optimization": {
          "stage": 2,
          "offload_optimizer": {
            "device": "none"
          },
          "offload_param": {
            "device": "none"
          }
        },
        "gradient_clipping": 1.0,
        "seq_parallel_communication_data_type": "float32",
        "data_types": {
          "grad_accum_dtype": "float32"
        }
      },
      "memory": {
        "keep_inputs_every": 1,
        "keep_attention": "auto",
        "inputs_on": "device",
        "attention_on": "device",
        "attention_head_groups": 1,
        "attention_query_tile": 0,
        "tile_bytes": null,
        "expert_group_bytes": 268435456,
        "optimizer_on": "device",
        "gradients_on": "device",
        "moments_dtype": "float32",
        "disk_dir": null,
        "timeline_dir": null,
        "timeline_steps": 3
      },
      "logger": {
        "output_dir": null,
        "level": null,
        "print_output_ranks": [
          0
        ],
        "file_output_ranks": "*"
      },
      "checkpoint": [],
      "micro_batch_size": 1,
      "gradient_accumulation_steps": 1,
      "sequence_parallel_size": 1,
      "loss_average": "micro_batch",
      "on_nonfinite": "stop",
      "activation_checkpoint_cpu_offload": false,
      "tiled_mlp_compute": true,
      "epochs": 1,
      "train_iters": 0,
      "exit_iteration": 0,
      "exit_iteration_this_run": 0,
      "min_iterations": 0,
      "overfit_first_batch": false,
      "kill_switch_path": "/tmp/at_kill_switch",
      "seed": 42,
      "eval_interval": 0,
      "eval_on_start": false,
      "train_log_iter_interval": 1,
      "train_log_metrics_path": "train-log-metrics.jsonl"
    }
    "#);
    assert!(with(&[]).notes.is_empty());
}

#[test]
fn a_resolved_value_is_shown_as_it_is_typed() {
    let shown = |set: &str, at: &str| with(&[set]).to_json().pointer(at).unwrap().to_string();
    for (typed, expected) in [("auto", r#""auto""#), ("true", "true"), ("0", "false"), ("3", "3")] {
        let set = format!("memory.keep_attention={typed}");
        assert_eq!(shown(&set, "/memory/keep_attention"), expected);
    }
    assert_eq!(shown("logger.print_output_ranks=[0, 3]", "/logger/print_output_ranks"), "[0,3]");
    // Of several words for one value, the first.
    assert_eq!(shown("logger.level=FATAL", "/logger/level"), r#""CRITICAL""#);
    let entry = "checkpoint={type: deepspeed, output_dir: out}";
    assert_eq!(shown(entry, "/checkpoint/0/type"), r#""sterna""#);
    // What `memory` says shows in the reference's key too.
    let places = "/deepspeed/zero_optimization/offload_optimizer";
    assert_eq!(shown("memory.optimizer_on=host", places), r#"{"device":"cpu"}"#);
    let source =
        "data.sources[0]={name_or_path: chats, sample_count: 7, role_mapping: {b: x.y.z, a: t}}";
    insta::assert_snapshot!(shown(source, "/data/sources/0"), @r#"{"type":"huggingface_instruct","name_or_path":"chats","split":"train","kwargs":{},"format":null,"role_mapping":{"b":"x.y.z","a":"t"},"unmapped_roles":"refuse","messages_key":null,"tools_key":null,"text_key":null,"content_key":null,"sample_ratio":null,"sample_count":7,"sample_seed":42,"epochs":1.0,"weight":null}"#);
    insta::assert_snapshot!(shown("scheduler={name: inverse_sqrt}", "/scheduler"), @r#"{"name":"inverse_sqrt","warmup_ratio":0.1,"scheduler_specific_kwargs":{"timescale":null}}"#);
}

#[test]
fn every_name_of_a_dtype_is_known() {
    // The table of ArcticTraining's tests/config/test_model_config.py; fp16 is known and refused.
    for name in ["bf16", "bfloat16", "bfloat", "torch.bfloat16"] {
        assert_eq!(with(&[&format!("model.dtype={name}")]).model.dtype, DType::BF16);
    }
    for name in ["fp32", "float32", "float", "torch.float32"] {
        assert_eq!(with(&[&format!("model.dtype={name}")]).model.dtype, DType::F32);
    }
    for name in ["fp16", "float16", "half", "torch.float16"] {
        assert!(errors(&[&format!("model.dtype={name}")]).contains("loss scaling"), "{name}");
    }
}

#[test]
fn human_integers_are_the_references() {
    // What pydantic made of each text as a HumanInt of arctic-training (golden/make_scalars.py).
    let path = fixture("human_numbers.json");
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut num_integers = 0;
    for (text, answer) in golden["numbers"].as_object().unwrap() {
        let set = format!("train_iters={}", serde_json::to_string(text).unwrap());
        // Zero and more is what this key takes; beyond 2^47 no count of steps is meant.
        match answer[1].as_i64().filter(|n| (0..1 << 47).contains(n)) {
            Some(expected) => {
                assert_eq!(with(&[&set]).train_iters as i64, expected, "{text}");
                num_integers += 1;
            }
            None => assert!(errors(&[&set]).contains("train_iters"), "{text}: {answer}"),
        }
    }
    assert!(num_integers > 100, "{num_integers}");
}

#[test]
fn human_numbers_work_without_quotes() {
    let recipe = with(&[
        "train_iters=1_200",
        "optimizer.lr=5e-4",
        "data.max_length=3.8M",
        "scheduler.warmup_ratio=3%",
    ]);
    assert_eq!((recipe.train_iters, recipe.data.max_length), (1200, Some(3_800_000)));
    assert!((recipe.optimizer.learning_rate - 5e-4).abs() < f64::EPSILON);
    assert!((recipe.scheduler.warmup_ratio - 0.03).abs() < f64::EPSILON);
    assert_eq!(with(&["data.max_length=64Ki"]).data.max_length, Some(65_536));
    assert_eq!(with(&["epochs=010"]).epochs, 8);
    assert_eq!(with(&["train_iters=1:30"]).train_iters, 90);
}

#[test]
fn sources_have_a_short_form() {
    let name_and_split = |text: &str| {
        let source = with(&[&format!("data.sources[0]={text}")]).data.sources.remove(0);
        (source.name_or_path, source.split)
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(name_and_split("chats"), pair("chats", "train"));
    assert_eq!(name_and_split("org/chats:test"), pair("org/chats", "test"));
    assert_eq!(name_and_split("\"chats:train[10:20]\""), pair("chats", "train[10:20]"));
    assert_eq!(name_and_split("chats:a+b"), pair("chats", "a+b"));
    // Known data sets map the plain names of splits, keep slices, and leave their own names alone.
    let ultrachat = "HuggingFaceH4/ultrachat_200k";
    assert_eq!(name_and_split(ultrachat), pair(ultrachat, "train_sft"));
    assert_eq!(
        name_and_split(&format!("{ultrachat}:train[:10%]")),
        pair(ultrachat, "train_sft[:10%]")
    );
    assert_eq!(name_and_split(&format!("{ultrachat}:test_sft")), pair(ultrachat, "test_sft"));
}

#[test]
fn evaluation_sources_default_to_the_split_eval() {
    let recipe = with(&[
        "data.eval_sources=[chats, {name_or_path: HuggingFaceH4/ultrachat_200k}]",
        "eval_interval=1",
    ]);
    let splits: Vec<_> =
        recipe.data.eval_sources.iter().map(|source| source.split.as_str()).collect();
    assert_eq!(splits, ["eval", "test_sft"]);
}

#[test]
fn a_split_mapping_of_the_recipe_wins() {
    let set = "data.sources[0]={name_or_path: HuggingFaceH4/ultrachat_200k, split_mapping: {train: train_gen}}";
    assert_eq!(with(&[set]).data.sources[0].split, "train_gen");
}

#[test]
fn roles_of_known_data_sets_are_filled_in() {
    let roles = |name: &str| {
        let source = with(&[&format!("data.sources[0]={name}")]).data.sources.remove(0);
        source.role_mapping.iter().map(|(role, path)| format!("{role}={path}")).collect::<Vec<_>>()
    };
    assert!(roles("chats").is_empty(), "the columns say what the rows are");
    assert_eq!(
        roles("Open-Orca/OpenOrca:train"),
        ["system=system_prompt", "user=question", "assistant=response"]
    );
    assert_eq!(
        roles("Open-Orca/SlimOrca"),
        [
            "system=conversations.from.system",
            "user=conversations.from.human",
            "assistant=conversations.from.gpt"
        ]
    );
    let set =
        "data.sources[0]={name_or_path: Open-Orca/OpenOrca, role_mapping: {assistant: a, user: b}}";
    let kept: Vec<_> =
        with(&[set]).data.sources[0].role_mapping.iter().map(|(role, _)| role.clone()).collect();
    assert_eq!(kept, ["assistant", "user"], "the order of a turn is the order of the keys");
}

#[test]
fn sampling_is_a_fraction_or_a_count() {
    let sample = |keys: &str| {
        with(&[&format!("data.sources[0]={{name_or_path: chats, {keys}}}")]).data.sources[0].sample
    };
    assert_eq!(sample("sample_ratio: 0.25"), Sampling::Ratio(0.25));
    assert_eq!(sample("sample_count: 10"), Sampling::Count(10));
    assert_eq!(sample("sample_count: null"), Sampling::All);
}

#[test]
fn a_checkpoint_may_stand_without_a_list() {
    let recipe = with(&["checkpoint={type: huggingface, output_dir: out, save_every_n_steps: 1K}"]);
    assert_eq!(recipe.checkpoint.len(), 1);
    assert_eq!(
        (recipe.checkpoint[0].kind, recipe.checkpoint[0].save_every_n_steps),
        (CheckpointKind::HuggingFace, 1000)
    );
    let off = with(&["checkpoint=[{type: deepspeed, output_dir: out, enabled: no}]"]);
    assert!(off.checkpoint.is_empty());
}

#[test]
fn what_is_off_is_accepted() {
    let recipe = with(&[
        "wandb={enable: false, project: mine}",
        "model.peft_config=null",
        "mem_profiler=null",
        "expert_parallel_size=1",
        "arctic_moe=auto",
        "deepspeed.fp16={enabled: false, loss_scale: 0}",
        "deepspeed.torch_autocast={enabled: false}",
        "deepspeed.zero_optimization={stage: 3, offload_optimizer: {device: none, ratio: 1.0}, offload_param: null}",
        "deepspeed.bfloat16={enabled: true, bf16_optimizer_states: false}",
        "deepspeed.train_micro_batch_size_per_gpu=auto",
    ]);
    assert_eq!(recipe.memory.optimizer_on, Place::Device);
    assert!(!recipe.deepspeed.offload_param);
    let noted: Vec<_> = recipe.notes.iter().map(|note| note.key_path.as_str()).collect();
    assert_eq!(noted, ["wandb.project", "arctic_moe"]);
}

#[test]
fn what_changes_nothing_is_noted() {
    let recipe = with(&[
        "deepspeed.zero_optimization={stage: 3, reduce_bucket_size: 5e8, overlap_comm: true}",
        "deepspeed.steps_per_print=10",
        "data.drop_last=true",
        "deepspeed.seq_parallel_communication_data_type=bf16",
    ]);
    let noted: Vec<_> = recipe.notes.iter().map(|note| note.key_path.as_str()).collect();
    for key in [
        "deepspeed.zero_optimization.reduce_bucket_size",
        "deepspeed.zero_optimization.overlap_comm",
        "deepspeed.steps_per_print",
        "data.drop_last",
        "deepspeed.seq_parallel_communication_data_type",
    ] {
        assert!(noted.contains(&key), "{key} in {noted:?}");
    }
    assert_eq!(
        recipe.deepspeed.reduce_dtype,
        DType::F32,
        "the format is for sequence-parallel runs"
    );
}

#[test]
fn stages_have_two_defaults() {
    assert_eq!(with(&[]).deepspeed.zero_stage, ZeroStage::Two, "the reference's");
    let zero = with(&["deepspeed.zero_optimization={}"]).deepspeed.zero_stage;
    assert_eq!(zero, ZeroStage::Zero, "DeepSpeed's, once the section is there");
}

#[test]
fn our_own_keys_are_there() {
    let recipe = with(&[
        "data.label_mask=reference",
        "data.packing=global",
        "data.pack_samples=on",
        "loss_average=token",
        "model.random_weights=true",
    ]);
    assert_eq!(
        (recipe.data.label_mask, recipe.data.packing),
        (LabelMask::Reference, Packing::Global)
    );
    assert_eq!(recipe.loss_average, LossAverage::Token);
    assert!(recipe.model.random_weights);
}

#[test]
fn texts_have_defaults_of_their_own() {
    let recipe = with(&["type=causal"]);
    let shown = recipe.to_json();
    let data = &shown["data"];
    assert_eq!((&shown["type"], &data["type"]), (&"causal".into(), &"causal".into()));
    assert_eq!(data["sources"][0]["type"], "huggingface_causal");
    assert_eq!((&data["pack_samples"], &data["div_length"]), (&true.into(), &1.into()));
    assert!(recipe.data.is_sliced(), "the reference's packing");
    let recipe = with(&[
        "type=causal",
        "data.packing=global",
        "data.sources[0]={name_or_path: a, column: b}",
    ]);
    assert!(!recipe.data.is_sliced());
    let data = &recipe.to_json()["data"];
    assert_eq!((&data["excess_length"], &data["filter_samples"]), (&"split".into(), &true.into()));
    assert_eq!(data["sources"][0]["text_key"], "b");
}

#[test]
fn preferences_have_keys_of_their_own() {
    let shown = with(&["type=dpo"]).to_json();
    assert_eq!((&shown["ref_model"], &shown["beta"]), (&"folder".into(), &0.1.into()));
    assert_eq!(shown["label_smoothing"], 0.0);
    assert_eq!((&shown["loss_type"], &shown["loss_weights"]), (&json!(["sigmoid"]), &json!([1.0])));
    let data = &shown["data"];
    assert_eq!((&data["packing"], &data["pack_samples"]), (&"global".into(), &false.into()));
    let source = &data["sources"][0];
    assert_eq!((&source["type"], &source["format"]), (&"huggingface".into(), &"preference".into()));
    let recipe = with(&["type=dpo", "ref_model={name_or_path: other}", "loss_type=apo_zero"]);
    assert_eq!(recipe.dpo.as_ref().and_then(|dpo| dpo.ref_model.as_deref()), Some("other"));
    assert_eq!(recipe.data.row_length(512), 1024);
    let free = with(&["type=dpo", "loss_type=[simpo, sft]"]).to_json();
    assert_eq!((&free["ref_model"], &free["simpo_gamma"]), (&json!(null), &json!(0.5)));
    let kto = with(&["type=dpo", "loss_type=kto", "data.pack_samples=true"]);
    assert_eq!(kto.data.sources[0].format, Some(RowFormat::UnpairedPreference));
    let losses = |set: &[&str]| -> Vec<_> {
        with(&[&["type=dpo"], set].concat()).dpo.expect("of `dpo`").losses().collect()
    };
    let both = [DpoLoss::Sigmoid, DpoLoss::Sft];
    assert_eq!(losses(&["loss_type=[sigmoid, sft]"]), both.map(|loss| (loss, 1.0)));
    let weighted = losses(&["loss_type=[sigmoid, sft]", "loss_weights=[1, 10%]"]);
    assert_eq!(weighted, [(DpoLoss::Sigmoid, 1.0), (DpoLoss::Sft, 0.1)]);
    assert!(with(&[]).to_json().get("beta").is_none());
}

#[test]
fn keys_about_rows_are_shown_as_they_are_typed() {
    let recipe = with(&[
        "data.sources[0]={name_or_path: chats, messages_key: turns, tools_key: functions, unmapped_roles: drop}",
        "data.sources[1]={name_or_path: books, format: text, text_key: body}",
        "data.sources[2]={name_or_path: rows, format: sharegpt}",
        "data.train_on=marked",
        "data.excess_length=split",
        "data.control_tokens=plain_text",
        "data.chat_template_kwargs={enable_thinking: false, effort: {level: 3}}",
    ]);
    assert!(recipe.notes.is_empty(), "{:?}", recipe.notes);
    let shown = recipe.to_json();
    let data = &shown["data"];
    let keys = ["format", "messages_key", "tools_key", "text_key", "unmapped_roles"];
    let of_source = |i: usize| keys.map(|key| data["sources"][i][key].to_string()).join(" ");
    assert_eq!(of_source(0), r#"null "turns" "functions" null "drop""#);
    assert_eq!(of_source(1), r#""text" null null "body" "refuse""#);
    assert_eq!(of_source(2), r#""messages" null null null "refuse""#);
    assert_eq!((&data["train_on"], &data["excess_length"]), (&"marked".into(), &"split".into()));
    assert_eq!(data["control_tokens"], "plain_text");
    assert_eq!(
        data["chat_template_kwargs"],
        serde_json::json!({"enable_thinking": false, "effort": {"level": 3}})
    );
}

#[test]
fn keys_about_rows_replace_the_roles_of_known_data_sets() {
    for key in ["format: messages", "messages_key: messages", "text_key: text"] {
        let set = format!("data.sources[0]={{name_or_path: Open-Orca/SlimOrca, {key}}}");
        assert!(with(&[&set]).data.sources[0].role_mapping.is_empty(), "{key}");
    }
    let set = "data.sources[0]={name_or_path: Open-Orca/SlimOrca, format: null, tools_key: tools}";
    assert_eq!(with(&[set]).data.sources[0].role_mapping.len(), 3);
}

#[test]
fn every_curve_takes_its_arguments() {
    let schedule = |section: &str| {
        with(&[&format!("scheduler={section}"), "optimizer.lr=1e-3"]).scheduler.schedule
    };
    let kwargs = |name: &str, kwargs: &str| {
        schedule(&format!("{{name: {name}, scheduler_specific_kwargs: {{{kwargs}}}}}"))
    };
    assert_eq!(kwargs("linear", ""), Schedule::Linear);
    assert_eq!(kwargs("cosine", "num_cycles: 1"), Schedule::Cosine { num_cycles: 1.0 });
    assert_eq!(
        kwargs("cosine_with_restarts", "num_cycles: 3"),
        Schedule::CosineWithRestarts { num_cycles: 3 }
    );
    assert_eq!(kwargs("polynomial", "power: 2"), Schedule::Polynomial { lr_end: 1e-7, power: 2.0 });
    assert_eq!(kwargs("constant", ""), Schedule::Constant);
    assert_eq!(kwargs("constant_with_warmup", ""), Schedule::ConstantWithWarmup);
    assert_eq!(kwargs("inverse_sqrt", ""), Schedule::InverseSqrt { timescale: None });
    let with_min = Schedule::CosineWithMinLr { num_cycles: 0.5, min_lr_rate: 0.1 };
    assert_eq!(kwargs("cosine_with_min_lr", "min_lr: 1e-4"), with_min);
    assert_eq!(kwargs("cosine_with_min_lr", "min_lr_rate: 10%"), with_min);
    assert_eq!(
        kwargs("cosine_warmup_with_min_lr", "min_lr_rate: 0.1, warmup_lr_rate: 0.2"),
        Schedule::CosineWarmupWithMinLr {
            num_cycles: 0.5,
            min_lr_rate: 0.1,
            warmup_lr_rate: Some(0.2)
        }
    );
    let decay = |num_warmup_steps, decay_type| Schedule::WarmupStableDecay {
        num_warmup_steps,
        num_stable_steps: None,
        num_decay_steps: 10,
        warmup_type: Ramp::Linear,
        decay_type,
        min_lr_ratio: 0.0,
        num_cycles: 0.5,
    };
    assert_eq!(
        kwargs("warmup_stable_decay", "num_decay_steps: 10, decay_type: 1-sqrt"),
        decay(None, Ramp::OneMinusSqrt)
    );
    assert_eq!(
        schedule("{type: wds, num_warmup_steps: 5, num_decay_steps: 10}"),
        decay(Some(5), Ramp::Cosine)
    );
}

#[test]
fn errors_of_overrides_show_the_override() {
    let said = errors(&[
        "micro_batch_size=0",
        "data.souces=[x]",
        "optimizer.lr=fast",
        "data.sources[0].split=train",
    ]);
    insta::assert_snapshot!(said, @r"
    error: `micro_batch_size` is `0`, required: an integer of at least 1
     --> --set
      |
      | micro_batch_size=0
      |                  ^

    error: unknown key `data.souces`
     --> --set
      |
      | data.souces=[x]
      | ^^^^^^^^^^^
      = hint: did you mean `sources`?

    error: `optimizer.learning_rate` is `fast`, required: a number of at least 0, such as `1e-5` or `0.1`
     --> --set
      |
      | optimizer.lr=fast
      |              ^^^^

    error: `split` is set below `chats`, required: a mapping there: set the whole value instead
     --> --set
      |
      | data.sources[0].split=train
      | ^^^^^^^^^^^^^^^^^^^^^

    4 errors in `recipe.yaml`
    ");
}

#[test]
fn recipes_of_this_repository_are_accepted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut num_recipes = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            load(&path, &[]).unwrap_or_else(|errors| panic!("{errors}"));
            num_recipes += 1;
        }
    }
    assert!(num_recipes > 0);
}

#[test]
fn a_key_is_found_by_its_path_or_the_one_above() {
    let recipe = recipe("run-h100-sp8-llama-8b.yml");
    let line = |key: &str| recipe.source.locate(key).map(|span| span.line);
    assert_eq!(line("sequence_parallel_size"), Some(7));
    assert_eq!(line("data.sources[0].split"), line("data.sources[0]").map(|line| line + 2));
    assert_eq!(line("data.sources[0].sample_seed"), line("data.sources[0]"));
    assert_eq!(line("seed"), None);
}
