//! Configs mean what transformers builds from them, and bad ones are refused in words.

use std::path::Path;

use serde_json::{Map, Value, json};
use sterna_arch::{
    Activation, Alternate, Architecture, Attention, Direct, Elementwise, Error, Ffn, Init, Layer,
    ModelConfig, ParamSpec, Qkv, RopeScaling,
};

use crate::golden;

fn parse(config: &Value) -> sterna_arch::Result<ModelConfig> {
    ModelConfig::from_json(&config.to_string(), Path::new("model/config.json"))
}

fn llama() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
    })
}

fn with(key: &str, value: Value) -> Value {
    let mut config = llama();
    config[key] = value;
    config
}

/// The cases of all families.
fn cases() -> Vec<Value> {
    let folder = crate::fixture("configs");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of_file = |path: std::path::PathBuf| {
        let name = format!("configs/{}", path.file_name().unwrap().to_str().unwrap());
        golden(&name)["cases"].as_array().unwrap().clone()
    };
    files.flat_map(of_file).collect()
}

#[test]
fn what_a_config_describes_is_what_transformers_builds() {
    let cases = cases();
    assert!(cases.len() > 100, "{}", cases.len());
    cases.iter().for_each(check);
}

fn check(case: &Value) {
    let name = case["name"].as_str().unwrap();
    let config = parse(&case["config"]).unwrap_or_else(|error| panic!("{name}: {error}"));
    let arch = &config.arch;
    check_experts(name, arch, case);
    check_params(name, arch, case);
    let sizes =
        |key: &str| -> Vec<Option<usize>> { serde_json::from_value(case[key].clone()).unwrap() };
    let windows: Vec<_> = arch
        .layers
        .iter()
        .map(|layer| layer.mixer.attention().and_then(|attention| attention.sliding_window))
        .collect();
    assert_eq!(windows, sizes("sliding_window"), "{name}");
    let is_rotated: Vec<bool> = serde_json::from_value(case["is_rotated"].clone()).unwrap();
    let found: Vec<_> = arch.layers.iter().map(|layer| layer.mixer.rope().is_some()).collect();
    assert_eq!(found, is_rotated, "{name}");
    let layer = &arch.layers[0];
    let multipliers = [
        arch.embed.multiplier,
        layer.residual_multiplier,
        arch.first_attention().scale,
        // The class divides by `logits_scaling`; others have a multiplier, under its own name.
        if case["logit_multiplier"].is_null() { 1.0 / arch.head.logits_multiplier } else { 1.0 },
    ];
    for (found, required) in multipliers.iter().zip(case["multipliers"].as_array().unwrap()) {
        assert_close(name, *found, required.as_f64().unwrap());
    }
    if let Some(multiplier) = case["logit_multiplier"].as_f64() {
        assert_close(name, arch.head.logits_multiplier, multiplier);
    }
    assert_eq!(arch.is_tied(), case["tie_word_embeddings"], "{name}");
    assert_eq!(
        arch.first_attention().head_dim as u64,
        case["head_dim"].as_u64().unwrap(),
        "{name}"
    );
    let eps = case["rms_norm_eps"].as_f64().or(case["norm_eps"].as_f64()).unwrap();
    assert_eq!(arch.head.norm.eps, eps, "{name}");
    let std = case["initializer_range"].as_f64().unwrap();
    let drawn = matches!(arch.embed.weight.init, Init::Normal { std: found, .. } if found == std);
    assert!(drawn, "{name}: {:?}", arch.embed.weight.init);
    let max_len = case["max_position_embeddings"].as_u64().unwrap();
    assert_eq!(config.max_position_embeddings as u64, max_len, "{name}");
    let id = |key: &str| case[key].as_u64().map(|id| id as u32);
    assert_eq!(config.bos_token_id, id("bos_token_id"), "{name}");
    let eos = match &case["eos_token_id"] {
        Value::Array(ids) => ids.iter().map(|id| id.as_u64().unwrap() as u32).collect(),
        _ => Vec::from_iter(id("eos_token_id")),
    };
    assert_eq!(config.eos_token_id, eos, "{name}");
    if case.get("rope").is_some() {
        check_more(name, arch, case);
    } else {
        assert_eq!(arch.ropes[0].theta, case["rope_theta"].as_f64().unwrap(), "{name}");
    }
}

fn attention_of(layer: &Layer) -> &Attention {
    layer.mixer.attention().unwrap()
}

fn assert_close(name: &str, found: f64, required: f64) {
    // Python's `x ** -0.5` rounds once, a root and a quotient twice.
    assert!((found / required - 1.0).abs() < 4e-16, "{name}: {found} and not {required}");
}

fn check_experts(name: &str, arch: &Architecture, case: &Value) {
    let Some(is_sparse) = case["is_sparse"].as_array() else { return };
    assert_eq!(arch.router_aux_loss_coef, case["router_aux_loss_coef"].as_f64(), "{name}");
    for (layer, is_sparse) in arch.layers.iter().zip(is_sparse) {
        let Ffn::Moe(moe) = &layer.ffn else {
            assert_eq!(is_sparse, false, "{name}");
            continue;
        };
        assert_eq!(is_sparse, true, "{name}");
        assert_eq!(moe.experts.len() as u64, case["num_experts"].as_u64().unwrap(), "{name}");
        let num_per_tok = case["num_experts_per_tok"].as_u64().unwrap();
        let router = &moe.router;
        assert_eq!(router.num_experts_per_tok as u64, num_per_tok, "{name}");
        assert_eq!(router.topk_norm.is_some(), case["norm_topk_prob"], "{name}");
        let scale = case["routed_scaling_factor"].as_f64().unwrap_or(1.0);
        assert_eq!(router.scale, scale, "{name}");
        let groups = router.expert_groups.map(|groups| json!([groups.num, groups.num_chosen]));
        assert_eq!(groups.unwrap_or_default(), case["expert_groups"], "{name}");
    }
}

fn check_params(name: &str, arch: &Architecture, case: &Value) {
    let of = |is_trained: bool| {
        let specs = arch.params().filter(|spec| spec.is_trained() == is_trained);
        let mut found: Vec<(String, Vec<usize>)> =
            specs.map(|spec| (spec.name.clone(), spec.shape.clone())).collect();
        found.sort();
        found
    };
    let named = |key: &str| -> Vec<(String, Vec<usize>)> {
        let value = case.get(key).cloned().unwrap_or_else(|| json!([]));
        let mut required: Vec<_> = serde_json::from_value(value).unwrap();
        required.sort();
        required
    };
    assert_eq!(of(true), named("parameters"), "{name}");
    assert_eq!(of(false), named("buffers"), "{name}");
    assert_eq!(arch.num_parameters() as u64, case["num_parameters"].as_u64().unwrap(), "{name}");
}

/// What newer cases note beside: frequencies of each layer, caps and clamps, the activation.
fn check_more(name: &str, arch: &Architecture, case: &Value) {
    for (layer, required) in arch.layers.iter().zip(case["rope"].as_array().unwrap()) {
        let Some(rope_idx) = layer.mixer.rope() else {
            assert!(required.is_null(), "{name}");
            continue;
        };
        let rope = &arch.ropes[rope_idx];
        let frequencies = |key: &str| -> Vec<f32> {
            let list = required[key].as_array().unwrap().iter();
            list.map(|x| x.as_f64().unwrap() as f32).collect()
        };
        let (inv_freq, attention_factor) = rope.inverse_frequencies(1);
        crate::rope::assert_close(&inv_freq, &frequencies("inv_freq"), 16, name);
        let scaling = required["attention_scaling"].as_f64().unwrap();
        assert!((attention_factor - scaling).abs() < 1e-12, "{name}: {attention_factor} {scaling}");
        if required.get("long_inv_freq").is_some() {
            let (inv_freq, _) = rope.inverse_frequencies(usize::MAX >> 12);
            crate::rope::assert_close(&inv_freq, &frequencies("long_inv_freq"), 16, name);
        }
    }
    let attention = arch.first_attention();
    assert_eq!(attention.softcap, case["attn_logit_softcapping"].as_f64(), "{name}");
    assert_eq!(arch.head.softcap, case["final_logit_softcapping"].as_f64(), "{name}");
    let clip_qkv = match &attention.qkv {
        Qkv::Direct(direct) => direct.clip_qkv,
        Qkv::Latent(_) => None,
    };
    assert_eq!(clip_qkv, case["clip_qkv"].as_f64(), "{name}");
    assert_eq!(arch.embed.pad_token_id.map(u64::from), case["pad_token_id"].as_u64(), "{name}");
    let activation = match case["hidden_act"].as_str().unwrap() {
        "silu" => Activation::Elementwise(Elementwise::Silu),
        "gelu" => Activation::Elementwise(Elementwise::Gelu),
        "gelu_pytorch_tanh" => Activation::Elementwise(Elementwise::GeluTanh),
        "relu2" => Activation::Elementwise(Elementwise::Relu2),
        "clamped_swiglu" => {
            let constant = |idx: usize| case["clamp"][idx].as_f64().unwrap();
            Activation::ClampedSwiglu { alpha: constant(0), limit: constant(1) }
        }
        "xielu" => {
            assert!(matches!(activation_of(arch), Activation::Xielu { .. }), "{name}");
            return;
        }
        other => panic!("{name}: {other}"),
    };
    assert_eq!(activation_of(arch), activation, "{name}");
}

fn activation_of(arch: &Architecture) -> Activation {
    match &arch.layers[0].ffn {
        Ffn::Dense(dense) => dense.activation,
        Ffn::Moe(moe) => moe.experts[0].activation,
    }
}

#[test]
fn parameters_of_a_block_come_in_the_order_of_use() {
    let qwen3 = json!({
        "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128, "attention_bias": true,
    });
    let config = parse(&qwen3).unwrap();
    let names: Vec<&str> = config.arch.layers[0]
        .params
        .iter()
        .map(|spec| spec.name.strip_prefix("model.layers.0.").unwrap())
        .collect();
    let required = [
        "input_layernorm.weight",
        "self_attn.q_proj.weight",
        "self_attn.q_proj.bias",
        "self_attn.k_proj.weight",
        "self_attn.k_proj.bias",
        "self_attn.v_proj.weight",
        "self_attn.v_proj.bias",
        "self_attn.q_norm.weight",
        "self_attn.k_norm.weight",
        "self_attn.o_proj.weight",
        "self_attn.o_proj.bias",
        "post_attention_layernorm.weight",
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
        "mlp.down_proj.weight",
    ];
    assert_eq!(names, required);
}

#[test]
fn an_unknown_architecture_is_refused_by_name() {
    let text = parse(&with("model_type", json!("gpt_neox"))).unwrap_err().to_string();
    let said = "`model/config.json`: model_type `gpt_neox` is not supported, required: one of `";
    assert!(text.starts_with(said), "{text}");
    // Every family that has goldens is named.
    for case in cases() {
        let model_type = case["config"]["model_type"].as_str().unwrap();
        assert!(text.contains(&format!("`{model_type}`")), "{model_type} is not in {text}");
    }
}

#[test]
fn a_dropout_that_a_family_has_by_default_has_to_be_switched_off() {
    let config = |dropouts: Value| {
        let mut config = golden("configs/seed_oss.json")["cases"]
            .as_array()
            .unwrap()
            .iter()
            .find(|case| case["name"] == "seed_oss")
            .unwrap()["config"]
            .clone();
        for key in ["attention_dropout", "residual_dropout"] {
            config.as_object_mut().unwrap().remove(key);
        }
        for (key, value) in dropouts.as_object().unwrap() {
            config[key] = value.clone();
        }
        parse(&config)
    };
    let text = config(json!({"attention_dropout": 0})).unwrap_err().to_string();
    let said = "key `residual_dropout` is missing, which is `0.1` in this family, required: `0.0`";
    assert!(text.contains(said), "{text}");
    let text = config(json!({"residual_dropout": 0, "attention_dropout": 0.1})).unwrap_err();
    assert!(text.to_string().contains("key `attention_dropout` is `0.1`"), "{text}");
    assert!(config(json!({"residual_dropout": 0, "attention_dropout": 0})).is_ok());
}

#[test]
fn bad_values_name_file_key_found_and_required() {
    let yarn = json!({"rope_type": "yarn", "factor": 2.0, "beta_fast": 1.0, "beta_slow": 8.0});
    let llama3 = json!({
        "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    });
    let by_layer = json!({"full_attention": {"rope_type": "default"}});
    let cases = [
        ("hidden_size", Value::Null, "`hidden_size` is missing"),
        ("hidden_size", json!(-64), "is `-64`, required: a whole number from `1`"),
        ("hidden_size", json!(66), "is `66`, required: a multiple of num_attention_heads `4`"),
        ("hidden_size", json!("64"), "is `\"64\"`"),
        ("num_hidden_layers", json!(1e18), "is `1e+18`"),
        ("num_hidden_layers", json!(100_000), "is `100000`"),
        ("num_key_value_heads", json!(3), "is `3`, required: a divisor of num_attention_heads `4`"),
        ("head_dim", json!(15), "is `15`, required: an even number"),
        ("rms_norm_eps", json!(0), "is `0`, required: a number above `0`"),
        ("hidden_act", json!("tanh"), "is `\"tanh\"`, required: one of `silu`"),
        ("attention_dropout", json!(0.1), "is `0.1`, required: `0.0`"),
        ("quantization_config", json!({"bits": 4}), "is `{\"bits\":4}`, required: absent"),
        ("tie_word_embeddings", json!(1), "is `1`, required: `true` or `false`"),
        ("pad_token_id", json!(128), "is `128`, required: a token id below vocab_size `128`"),
        ("rope_theta", json!(0.5), "is `0.5`, required: a number above `1`"),
        ("partial_rotary_factor", json!(0.5), "is `0.5`, required: `1.0`"),
        ("rope_scaling", json!(2), "key `rope_scaling` is `2`, required: an object"),
        ("rope_scaling", json!({"rope_type": "longrope"}), "key `rope_scaling.factor` is missing"),
        ("rope_scaling", json!({"type": "linear"}), "key `rope_scaling.factor` is missing"),
        ("rope_scaling", json!({"type": "linear", "factor": 0.5}), "at least `1`"),
        (
            "rope_scaling",
            yarn,
            "`rope_scaling.beta_fast` is `1.0`, required: at least beta_slow `8`",
        ),
        ("rope_scaling", llama3, "above low_freq_factor `4`"),
        ("rope_parameters", by_layer, "is given by layer type"),
    ];
    for (key, value, words) in cases {
        let error = parse(&with(key, value)).expect_err(key);
        let message = error.to_string();
        assert!(message.starts_with("`model/config.json`: key `"), "{message}");
        assert!(message.contains(words), "{key}: {message}");
    }
}

#[test]
fn layer_types_have_to_fit() {
    let qwen3 = |layer_types: Value| {
        let mut config = with("layer_types", layer_types);
        config["model_type"] = json!("qwen3");
        parse(&config).unwrap_err().to_string()
    };
    assert!(qwen3(json!(["full_attention"])).contains("is a list of `1`, required: a list of `3`"));
    let chunked = json!(["full_attention", "chunked_attention", "full_attention"]);
    assert!(qwen3(chunked).contains("key `layer_types.1` is `\"chunked_attention\"`"));
}

#[test]
fn a_padding_id_may_count_from_the_end() {
    // As nn.Embedding's padding_idx, which gets the config's number as it is.
    assert_eq!(parse(&with("pad_token_id", json!(-1))).unwrap().arch.embed.pad_token_id, Some(127));
}

#[test]
fn several_end_tokens_are_kept() {
    let config = parse(&with("eos_token_id", json!([2, 7]))).unwrap();
    assert_eq!(config.eos_token_id, [2, 7]);
}

fn overrides(value: &Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

#[test]
fn overrides_replace_keys_and_reach_the_export() {
    let base = parse(&llama()).unwrap();
    let config = base
        .with_overrides(&overrides(&json!({"num_hidden_layers": 2, "use_cache": false})))
        .unwrap();
    assert_ne!(config.num_hidden_layers(), base.num_hidden_layers());
    assert_eq!(config.arch.layers.len(), 2);
    assert_eq!(config.raw["use_cache"], json!(false));
    assert_eq!(base.with_overrides(&Map::new()).unwrap(), base);
}

#[test]
fn a_bad_override_is_named_as_the_recipe_writes_it() {
    let base = parse(&llama()).unwrap();
    let message = |value: Value| base.with_overrides(&overrides(&value)).unwrap_err().to_string();
    let found = message(json!({"num_hidden_layers": 0}));
    assert!(found.contains("key `hf_config_kwargs.num_hidden_layers` is `0`"), "{found}");
    let found = message(json!({"rope_scaling": {"type": "spiral"}}));
    assert!(found.contains("key `hf_config_kwargs.rope_scaling.type` is `\"spiral\"`"), "{found}");
    let found = message(json!({"model_type": "mistral"}));
    assert!(found.contains("`hf_config_kwargs.model_type` is `mistral`"), "{found}");
}

#[test]
fn fewer_layers_take_the_first_layer_types() {
    let mut config =
        with("layer_types", json!(["sliding_attention", "full_attention", "full_attention"]));
    for (key, value) in [("model_type", json!("qwen3")), ("use_sliding_window", json!(true))] {
        config[key] = value;
    }
    let base = parse(&config).unwrap();
    let fewer = base.with_overrides(&overrides(&json!({"num_hidden_layers": 2}))).unwrap();
    let windows = fewer.arch.layers.iter().map(|layer| attention_of(layer).sliding_window);
    assert_eq!(windows.collect::<Vec<_>>(), [Some(4096), None]);
    assert!(base.with_overrides(&overrides(&json!({"num_hidden_layers": 4}))).is_err());
}

#[test]
fn overrides_of_the_old_rope_keys_win_over_the_new_ones() {
    let config =
        with("rope_parameters", json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}));
    let base = parse(&config).unwrap();
    let theta =
        base.with_overrides(&overrides(&json!({"rope_theta": 1e6}))).unwrap().arch.ropes.remove(0);
    assert_eq!((theta.theta, theta.scaling), (1e6, base.arch.ropes[0].scaling.clone()));
    let scaling = json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0}});
    let scaled = base.with_overrides(&overrides(&scaling)).unwrap().arch.ropes.remove(0);
    assert_eq!(
        (scaled.theta, scaled.scaling),
        (5e5, sterna_arch::RopeScaling::Linear { factor: 8.0 })
    );
    let scaling = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}});
    let replaced =
        parse(&with("rope_theta", json!(3e5))).unwrap().with_overrides(&overrides(&scaling));
    assert_eq!(replaced.unwrap().arch.ropes[0].theta, 9.0);
}

#[test]
fn files_that_are_missing_or_broken_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = ModelConfig::from_dir(dir.path()).unwrap_err();
    assert!(matches!(error, Error::MissingFile { .. }), "{error:?}");
    assert!(error.to_string().contains("config.json"), "{error}");
    std::fs::write(dir.path().join("config.json"), "{\"model_type\": ").unwrap();
    assert!(matches!(ModelConfig::from_dir(dir.path()).unwrap_err(), Error::Json { .. }));
    std::fs::write(dir.path().join("config.json"), [0xff, 0xfe]).unwrap();
    assert!(matches!(ModelConfig::from_dir(dir.path()).unwrap_err(), Error::Read { .. }));
}

/// A small config of a family, with keys of its own.
fn small(model_type: &str, keys: &Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128, "pad_token_id": null,
        "max_position_embeddings": 128, "hidden_size_per_layer_input": 0,
    });
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn small_arch(model_type: &str, keys: &Value) -> Architecture {
    parse(&small(model_type, keys)).unwrap_or_else(|error| panic!("{error}")).arch
}

#[test]
fn layers_that_turn_alone_with_a_window_do_not_turn_without_one() {
    let full = json!({"layer_types": vec!["full_attention"; 4], "sliding_window": 8});
    for model_type in ["cohere2", "exaone4"] {
        let arch = small_arch(model_type, &full);
        assert!(arch.layers.iter().all(|layer| layer.mixer.rope().is_none()), "{model_type}");
    }
    // Windows switched off: all turn.
    let arch = small_arch("exaone4", &json!({"sliding_window": null}));
    assert!(arch.layers.iter().all(|layer| layer.mixer.rope().is_some()));
}

#[test]
fn a_pattern_counts_where_the_class_reads_it() {
    let windows = |model_type: &str| -> Vec<bool> {
        let arch = small_arch(model_type, &json!({"sliding_window_pattern": 3}));
        arch.layers.iter().map(|layer| attention_of(layer).sliding_window.is_some()).collect()
    };
    assert_eq!(windows("gemma3_text"), [true, true, false, true]);
    assert_eq!(windows("gemma2"), [true, false, true, false]);
    assert_eq!(windows("olmo3"), [true, true, true, false]);
}

#[test]
fn a_null_rope_means_what_its_spelling_means() {
    // The class's own scaling, in the new spelling; none, in the old one.
    let scaling = |keys: Value| small_arch("apertus", &keys).ropes[0].scaling.clone();
    let own = scaling(json!({}));
    assert!(matches!(own, RopeScaling::Llama3 { .. }), "{own:?}");
    assert_eq!(scaling(json!({"rope_parameters": null})), own);
    assert_eq!(scaling(json!({"rope_scaling": null})), RopeScaling::Default);
    for key in ["rope_parameters", "rope_scaling"] {
        let ropes = small_arch("gemma4_text", &json!({"global_head_dim": 32, key: null})).ropes;
        assert_eq!(ropes.iter().map(|rope| rope.dim).collect::<Vec<_>>(), [32, 16], "{key}");
    }
}

#[test]
fn the_old_spelling_of_rope_wins_over_the_new_one() {
    let both = |new: Value| {
        let keys =
            json!({"rope_parameters": new, "rope_scaling": {"rope_type": "linear", "factor": 2.0}});
        small_arch("llama", &keys).ropes.remove(0)
    };
    for new in [json!({"rope_type": "default", "rope_theta": 500.0}), json!({})] {
        assert_eq!(both(new).scaling, RopeScaling::Linear { factor: 2.0 });
    }
}

#[test]
fn the_type_of_a_rope_has_an_old_key_and_a_new_one() {
    // Whichever of transformers 4.57 and 5.24 can read one of these at all, reads this.
    let linear = RopeScaling::Linear { factor: 4.0 };
    for (model_type, keys) in [
        ("llama", json!({"type": "linear", "rope_type": "linear"})),
        ("llama", json!({"rope_type": "linear"})),
        ("llama", json!({"type": "linear"})),
        ("granite", json!({"type": "linear"})),
        ("olmo2", json!({"rope_type": "linear"})),
        ("llama", json!({"type": "linear", "rope_type": null})),
        ("llama", json!({"type": null, "rope_type": "linear"})),
    ] {
        for key in ["rope_scaling", "rope_parameters"] {
            let mut scaling = keys.clone();
            scaling["factor"] = json!(4.0);
            let found = small_arch(model_type, &json!({key: scaling})).ropes[0].scaling.clone();
            assert_eq!(found, linear, "{model_type} {keys}");
        }
    }
    let refused = |model_type: &str, scaling: Value| {
        let keys = json!({"rope_scaling": scaling});
        parse(&small(model_type, &keys)).expect_err(model_type).to_string()
    };
    // Transformers 4.57 takes `type` in llama and `rope_type` in mistral; 5.24 takes `rope_type` in both.
    for model_type in ["llama", "mistral"] {
        for (old, new) in [("linear", "default"), ("default", "linear"), ("su", "longrope")] {
            let found = refused(model_type, json!({"type": old, "rope_type": new, "factor": 4.0}));
            let said = format!(
                "key `rope_scaling.rope_type` is `{new}`, beside a `type` of `{old}`, required: one of the two"
            );
            assert!(found.contains(&said), "{found}");
        }
    }
    let found = refused("llama", json!({"factor": 4.0}));
    assert!(found.contains("key `rope_scaling.rope_type` is missing beside a `factor`"), "{found}");
    for model_type in ["gemma3_text", "olmo3"] {
        let found = refused(model_type, json!({"type": "linear", "factor": 4.0}));
        let said = "key `rope_scaling.type` is `\"linear\"`, required: given as `rope_type`";
        assert!(found.contains(said), "{found}");
        let scaling = json!({"rope_scaling": {"rope_type": "linear", "factor": 4.0}});
        assert_eq!(small_arch(model_type, &scaling).ropes[0].scaling, linear);
    }
    for rope_type in ["su", "mrope"] {
        let found = refused("llama", json!({"type": rope_type, "factor": 4.0}));
        let said = format!("key `rope_scaling.type` is `\"{rope_type}\"`, required: `default`");
        assert!(found.contains(&said), "{found}");
    }
    let alpha = json!({"rope_scaling": {"type": "dynamic", "factor": 4.0, "alpha": 1000.0}});
    let scaling = &small_arch("llama", &alpha).ropes[0].scaling;
    let dynamic = RopeScaling::Dynamic { factor: 4.0, max_position_embeddings: 128 };
    assert_eq!(*scaling, dynamic);
}

#[test]
fn longrope_has_old_names_where_it_is_the_only_scaling() {
    let scaling = |model_type: &str, names: &Value| {
        let mut scaling =
            json!({"factor": 2.0, "short_factor": vec![1.0; 8], "long_factor": vec![2.0; 8]});
        for (key, value) in names.as_object().unwrap() {
            scaling[key] = value.clone();
        }
        let keys = json!({"rope_scaling": scaling, "original_max_position_embeddings": 64});
        parse(&small(model_type, &keys)).map(|config| config.arch.ropes[0].scaling.clone())
    };
    let longrope = scaling("phi3", &json!({"rope_type": "longrope"})).unwrap();
    assert!(matches!(longrope, RopeScaling::LongRope { .. }), "{longrope:?}");
    // The last is what transformers 5 writes of an old file.
    for names in [
        json!({"type": "longrope"}),
        json!({"type": "su"}),
        json!({"type": "yarn"}),
        json!({"rope_type": "su"}),
        json!({"type": "yarn", "rope_type": "longrope"}),
    ] {
        assert_eq!(scaling("phi3", &names).unwrap(), longrope, "{names}");
    }
    let found = scaling("phi3", &json!({"rope_type": "linear"})).unwrap_err().to_string();
    let said = "`\"linear\"`, required: `default` or `longrope`: this family has no other";
    assert!(found.contains(said), "{found}");
    // Elsewhere a list that yarn does not read changes nothing.
    let yarn = scaling("llama", &json!({"type": "yarn"})).unwrap();
    assert!(matches!(yarn, RopeScaling::Yarn { .. }), "{yarn:?}");
}

#[test]
fn the_length_of_pretraining_at_the_top_counts() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32, "rope_theta": 1e4,
    });
    let keys = json!({"rope_parameters": llama3, "original_max_position_embeddings": 64});
    let RopeScaling::Llama3 { original_max_position_embeddings, .. } =
        small_arch("llama", &keys).ropes.remove(0).scaling
    else {
        panic!("another scaling")
    };
    assert_eq!(original_max_position_embeddings, 64);
    // A factor that is given counts, too.
    let longrope = json!({
        "rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 32,
        "short_factor": vec![1.0; 8], "long_factor": vec![2.0; 8],
    });
    let rope = small_arch("phi3", &json!({"rope_parameters": longrope})).ropes.remove(0);
    let RopeScaling::LongRope { attention_factor, .. } = rope.scaling else { panic!("another") };
    assert!((attention_factor - 1.0954).abs() < 1e-4, "{attention_factor}");
}

#[test]
fn null_is_off_for_a_flag() {
    let biases =
        |value: Value| small_arch("glm", &json!({"attention_bias": value})).num_parameters();
    assert_eq!(biases(Value::Null), biases(json!(false)));
    assert!(!small_arch("gemma", &json!({"tie_word_embeddings": null})).is_tied());
}

#[test]
fn what_other_versions_would_do_is_refused_by_name() {
    let by_type = json!({"full_attention": {"rope_theta": 1e6}, "sliding_attention": {}});
    let of_layers = json!({"0": {"head_dim": 8}});
    let unequal = json!({"1": {"head_dim": 32}, "3": {"head_dim": 64}});
    let types =
        json!(["sliding_attention", "full_attention", "sliding_attention", "full_attention"]);
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    for (model_type, keys, words) in [
        ("gemma3_text", json!({"rope_parameters": linear}), "a section for each layer type"),
        (
            "gemma3_text",
            json!({"rope_parameters": by_type}),
            "sliding_attention.rope_theta` is missing",
        ),
        ("nemotron", json!({"rope_scaling": linear}), "transformers 5 does not"),
        (
            "gemma",
            json!({"use_bidirectional_attention": true}),
            "attention to tokens that come later",
        ),
        (
            "smollm3",
            json!({"layer_types": types, "sliding_window": 8}),
            "key `layer_types.0` is `\"sliding_attention\"`, required: `full_attention` without use_sliding_window",
        ),
        ("llama", json!({"is_causal": false}), "attention to tokens that come later"),
        (
            "qwen3",
            json!({"is_causal": null}),
            "key `is_causal` is `null`, required: absent or `true`",
        ),
        ("llama", json!({"per_layer_config": of_layers}), "no layers of different sizes"),
        ("gemma4_text", json!({"per_layer_config": of_layers}), "only layers without a window"),
        (
            "gemma4_text",
            json!({"per_layer_config": unequal, "layer_types": types}),
            "as in the first layer",
        ),
        ("gemma4_text", json!({"hidden_size_per_layer_input": 256}), "no embeddings of each layer"),
        ("stablelm", json!({"partial_rotary_factor": 0.2}), "a part of head_dim `16` that is even"),
        (
            "phi3",
            json!({"original_max_position_embeddings": 1, "rope_scaling": {"type": "longrope"}}),
            "at least `2` tokens",
        ),
        ("llama", json!({"num_attention_heads": 20_000_000}), "a whole number from `1`"),
        (
            "ministral3",
            json!({"rope_parameters": {"rope_type": "default"}}),
            "llama_4_scaling_beta` is missing",
        ),
    ] {
        let error = parse(&small(model_type, &keys)).expect_err(model_type).to_string();
        assert!(error.contains(words), "{model_type}: {error}");
    }
    let mut without_pad = small("phi3", &json!({}));
    without_pad.as_object_mut().unwrap().remove("pad_token_id");
    let error = parse(&without_pad).unwrap_err().to_string();
    assert!(error.contains("missing, which is `32000` in this family"), "{error}");
}

#[test]
fn heads_of_stablelm_fill_the_hidden_size() {
    // Transformers' attention has heads of 16 whatever `head_dim` says, and its rotary embedding has the angles of `head_dim`.
    for value in [json!(16), Value::Null] {
        let arch = small_arch("stablelm", &json!({"head_dim": value}));
        assert_eq!(arch.first_attention().head_dim, 16);
    }
    let refused = |keys: Value| parse(&small("stablelm", &keys)).unwrap_err().to_string();
    let found = refused(json!({"head_dim": 32}));
    let said = "key `head_dim` is `32`, required: `16`, hidden_size `64` over num_attention_heads `4`: heads of this family fill it";
    assert!(found.contains(said), "{found}");
    let found = refused(json!({"num_attention_heads": 3, "num_key_value_heads": 3}));
    assert!(
        found.contains("`hidden_size` is `64`, required: a multiple of num_attention_heads `3`"),
        "{found}"
    );
}

#[test]
fn heads_of_helium_fill_the_hidden_size() {
    let refused = |config: &Value| parse(config).unwrap_err().to_string();
    let required = "required: `16`, hidden_size `64` over num_attention_heads `4`";
    let found = refused(&small("helium", &json!({"head_dim": 8})));
    assert!(found.contains(&format!("key `head_dim` is `8`, {required}")), "{found}");
    let mut without = small("helium", &json!({}));
    without.as_object_mut().unwrap().remove("head_dim");
    let said = format!("key `head_dim` is missing, which is `128` in this family, {required}");
    let found = refused(&without);
    assert!(found.contains(&said), "{found}");
    without["hidden_size"] = json!(512);
    assert_eq!(parse(&without).unwrap().arch.first_attention().head_dim, 128);
    // Other families have an output projection of any width.
    assert_eq!(small_arch("llama", &json!({"head_dim": 8})).first_attention().head_dim, 8);
}

#[test]
fn what_experts_would_do_otherwise_is_refused_by_name() {
    for (model_type, keys, words) in [
        ("olmoe", json!({"clip_qkv": 8.0}), "key `clip_qkv` is `8.0`, required: `null`"),
        ("qwen2_moe", json!({"use_sliding_window": true}), "key `use_sliding_window` is `true`"),
        ("ernie4_5_moe", json!({"use_bias": true}), "key `use_bias` is `true`"),
        (
            "hunyuan_v1_moe",
            json!({"num_experts": 4, "moe_topk": [1, 2, 1]}),
            "key `moe_topk` is `[1,2,1]`, required: one number for all layers",
        ),
        ("hunyuan_v1_moe", json!({"num_experts": 2, "moe_topk": 3}), "at most the `2` experts"),
        ("glm4_moe", json!({"n_group": 3, "topk_group": 2}), "a divisor of the `128` experts"),
        ("glm4_moe", json!({"n_group": 2, "topk_group": 3}), "key `topk_group` is `3`"),
        (
            "glm4_moe",
            json!({"n_group": 32, "topk_group": 1}),
            "required: groups that have the `8` experts of a token",
        ),
        ("minimax_m2", json!({"router_jitter_noise": 0.1}), "key `router_jitter_noise` is `0.1`"),
        (
            "glm4_moe",
            json!({"output_router_logits": true}),
            "key `output_router_logits` is `true`, required: `false`: routers of this family",
        ),
    ] {
        let error = parse(&small(model_type, &keys)).expect_err(model_type).to_string();
        assert!(error.contains(words), "{model_type}: {error}");
    }
}

#[test]
fn what_latents_would_do_otherwise_is_refused_by_name() {
    let yarn = json!({"rope_type": "default", "factor": 4.0, "mscale_all_dim": 1.0});
    for (model_type, keys, words) in [
        ("deepseek_v3", json!({"num_key_value_heads": 2}), "key `num_key_value_heads` is `2`"),
        ("deepseek_v3", json!({"qk_rope_head_dim": 7}), "key `qk_rope_head_dim` is `7`"),
        ("deepseek_v3", json!({"qk_nope_head_dim": 7}), "key `qk_nope_head_dim` is `7`"),
        ("deepseek_v3", json!({"v_head_dim": 194}), "required: at most qk_nope_head_dim"),
        (
            "deepseek_v3",
            json!({"head_dim": 16}),
            "key `head_dim` is `16`, required: missing, or `64`",
        ),
        ("deepseek_v3", json!({"qk_head_dim": 16}), "key `qk_head_dim` is `16`"),
        ("deepseek_v3", json!({"rope_scaling": yarn}), "key `rope_scaling.mscale_all_dim` is `1`"),
        ("deepseek_v2", json!({"mlp_bias": true}), "key `mlp_bias` is `true`"),
        ("deepseek_v2", json!({"norm_topk_prob": true}), "key `norm_topk_prob` is `true`"),
        ("deepseek_v2", json!({"topk_method": "noaux_tc"}), "key `topk_method` is `\"noaux_tc\"`"),
        ("glm4_moe_lite", json!({"n_group": 2}), "key `n_group` is `2`"),
        (
            "glm4_moe_lite",
            json!({"first_k_dense_replace": 0}),
            "key `first_k_dense_replace` is `0`",
        ),
        ("glm4_moe_lite", json!({"mlp_layer_types": ["dense"]}), "key `mlp_layer_types` is"),
    ] {
        let mut config =
            small(model_type, &json!({"num_key_value_heads": 4, "num_experts_per_tok": 2}));
        config.as_object_mut().unwrap().remove("head_dim");
        for (key, value) in keys.as_object().unwrap() {
            config[key] = value.clone();
        }
        let error = parse(&config).expect_err(model_type).to_string();
        assert!(error.contains(words), "{model_type}: {error}");
    }
}

#[test]
fn layers_with_experts_may_be_listed() {
    let keys = |types: Value| json!({"num_key_value_heads": 4, "head_dim": null, "num_hidden_layers": 3, "mlp_layer_types": types});
    let sparse = |types: Value| -> Vec<bool> {
        let arch = small_arch("glm4_moe_lite", &keys(types));
        arch.layers.iter().map(|layer| matches!(layer.ffn, Ffn::Moe(_))).collect()
    };
    assert_eq!(sparse(json!(["sparse", "dense", "sparse"])), [true, false, true]);
    assert_eq!(sparse(Value::Null), [false, true, true]);
}

#[test]
fn a_rotary_dim_counts_where_the_class_reads_it() {
    let dim = |model_type: &str, keys: &Value| small_arch(model_type, keys).ropes[0].dim;
    let keys = json!({"head_dim": 16, "rotary_dim": 8, "num_local_experts": 8});
    assert_eq!(dim("minimax_m2", &keys), 8);
    assert_eq!(dim("llama", &keys), 16);
    let keys = json!({"head_dim": 16, "rotary_dim": 8, "partial_rotary_factor": 0.25, "num_local_experts": 8});
    assert_eq!(dim("minimax_m2", &keys), 4);
}

#[test]
fn routers_are_balanced_where_a_config_says_so() {
    let of = |model_type: &str, keys: &Value| {
        let mut config = small(model_type, keys);
        for key in ["num_experts", "num_local_experts"] {
            config[key] = json!(4);
        }
        config["num_experts_per_tok"] = json!(2);
        parse(&config).map(|config| config.arch.router_aux_loss_coef)
    };
    for model_type in ["mixtral", "qwen2_moe", "qwen3_moe"] {
        for (keys, coef) in [
            (json!({}), None),
            (json!({"router_aux_loss_coef": 0.5}), None),
            (json!({"output_router_logits": false, "router_aux_loss_coef": 0.5}), None),
            (json!({"output_router_logits": true}), Some(0.001)),
            (json!({"output_router_logits": true, "router_aux_loss_coef": 0.5}), Some(0.5)),
            (json!({"output_router_logits": true, "router_aux_loss_coef": 0.0}), None),
            (json!({"output_router_logits": true, "router_aux_loss_coef": 0}), None),
        ] {
            assert_eq!(of(model_type, &keys).unwrap(), coef, "{model_type} {keys}");
        }
        let null = json!({"output_router_logits": true, "router_aux_loss_coef": null});
        let error = of(model_type, &null).unwrap_err().to_string();
        assert!(error.contains("key `router_aux_loss_coef` is `null`"), "{error}");
    }
    let dense = |keys: &Value| {
        let mut keys = keys.clone();
        keys["output_router_logits"] = json!(true);
        of("qwen3_moe", &keys).unwrap()
    };
    assert_eq!(dense(&json!({"mlp_only_layers": [0, 1, 2, 3]})), None);
    assert_eq!(dense(&json!({"decoder_sparse_step": 5})), None);
    assert_eq!(dense(&json!({"mlp_only_layers": [0, 1, 2]})), Some(0.001));
    // A class without experts has no router.
    assert_eq!(of("llama", &json!({"output_router_logits": true})).unwrap(), None);
}

#[test]
fn an_override_of_rope_is_never_hidden() {
    let nested = json!({
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    });
    let gemma3 = parse(&small("gemma3_text", &json!({"rope_parameters": nested}))).unwrap();
    let error = gemma3.with_overrides(&overrides(&json!({"rope_theta": 5.0}))).unwrap_err();
    assert!(error.to_string().contains("`hf_config_kwargs.rope_theta`"), "{error}");
    let partial = json!({"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 1e4});
    let glm = parse(&small("glm", &json!({"rope_parameters": partial}))).unwrap();
    let dim = |keys: Value| glm.with_overrides(&overrides(&keys)).unwrap().arch.ropes[0].dim;
    assert_eq!(dim(json!({})), 8);
    assert_eq!(dim(json!({"partial_rotary_factor": 1.0})), 16);
    assert_eq!(dim(json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}})), 8);
}

/// An export has the config that a checkpoint came with.
#[test]
fn overrides_of_other_keys_leave_a_rotary_section_as_it_is() {
    let config = json!({
        "model_type": "qwen3_5_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
    });
    let with = |overrides: Value| {
        let config =
            parse(&config).unwrap().with_overrides(overrides.as_object().unwrap()).unwrap();
        (config.raw.get("rope_parameters").cloned(), config.arch.ropes[0].dim)
    };
    assert_eq!(with(json!({"rms_norm_eps": 1e-3})), (config.get("rope_parameters").cloned(), 8));
    assert_eq!(with(json!({"partial_rotary_factor": 0.25})).1, 4);
    assert_eq!(with(json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}})).1, 8);
}

#[test]
fn delta_nets_and_gated_attention_take_turns() {
    let of = |overrides: &Value| small_arch("qwen3_5_text", overrides);
    let is_delta_net = |arch: &Architecture| -> Vec<bool> {
        arch.layers.iter().map(|layer| layer.mixer.delta_net().is_some()).collect()
    };
    let arch = of(&json!({}));
    assert_eq!(is_delta_net(&arch), [true, true, true, false]);
    assert_eq!(
        is_delta_net(&of(&json!({"full_attention_interval": 2}))),
        [true, false, true, false]
    );
    let types = json!(["full_attention", "linear_attention", "linear_attention", "full_attention"]);
    assert_eq!(is_delta_net(&of(&json!({"layer_types": types}))), [false, true, true, false]);

    let names = |layer: &Layer| -> Vec<(String, Vec<usize>, bool)> {
        let of = |spec: &ParamSpec| {
            let name = spec.name.splitn(4, '.').last().unwrap().to_owned();
            (name, spec.shape.clone(), spec.is_decayed)
        };
        layer.params.iter().map(of).collect()
    };
    // Sixteen key heads and 32 value heads of 128 in a model 64 wide; which are decayed is the reference's rule by names.
    let required = [
        ("input_layernorm.weight", vec![64], false),
        ("linear_attn.in_proj_qkv.weight", vec![8192, 64], true),
        ("linear_attn.in_proj_z.weight", vec![4096, 64], true),
        ("linear_attn.in_proj_b.weight", vec![32, 64], true),
        ("linear_attn.in_proj_a.weight", vec![32, 64], true),
        ("linear_attn.conv1d.weight", vec![8192, 1, 4], true),
        ("linear_attn.dt_bias", vec![32], false),
        ("linear_attn.A_log", vec![32], true),
        ("linear_attn.norm.weight", vec![128], false),
        ("linear_attn.out_proj.weight", vec![64, 4096], true),
    ];
    let required = required.map(|(name, shape, is_decayed)| (name.to_owned(), shape, is_decayed));
    assert_eq!(names(&arch.layers[0])[..10], required);
    let attention = attention_of(&arch.layers[3]);
    assert_eq!(names(&arch.layers[3])[1].1, [2 * 4 * 16, 64]);
    let gate = attention.gate.as_ref().unwrap();
    let Qkv::Direct(Direct { q, .. }) = &attention.qkv else { panic!("no latents") };
    assert_eq!((gate.weight, gate.rows.clone()), (q.weight, 0..4 * 16));
    let alternate = |offset| Some(Alternate { len: 16, stride: 32, offset });
    assert_eq!((q.alternate, gate.alternate), (alternate(0), alternate(16)));
    assert_eq!(arch.ropes[0].dim, 4);

    let refused = |overrides: Value| {
        let mut config = json!({
            "model_type": "qwen3_5_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128,
        });
        config.as_object_mut().unwrap().extend(overrides.as_object().unwrap().clone());
        parse(&config).unwrap_err().to_string()
    };
    for (overrides, required) in [
        (json!({"linear_num_value_heads": 24}), "a multiple of linear_num_key_heads `16`"),
        (json!({"layer_types": vec!["linear_attention"; 4]}), "a layer with `full_attention`"),
        (json!({"full_attention_interval": 5}), "a layer with `full_attention`"),
        (
            json!({"layer_types": vec!["sliding_attention"; 4]}),
            "`linear_attention` or `full_attention`",
        ),
        (json!({"hidden_act": "gelu"}), "convolutions of this family"),
    ] {
        let text = refused(overrides);
        assert!(text.contains(required), "{text}");
    }
}

#[test]
fn only_experts_of_four_bits_are_read_and_only_where_a_family_has_them() {
    let small = |model_type: &str, method: &str| {
        parse(&json!({
            "model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128, "num_local_experts": 4,
            "quantization_config": {"quant_method": method, "modules_to_not_convert": ["lm_head"]},
        }))
    };
    let config = small("gpt_oss", "mxfp4").unwrap();
    let names: Vec<&str> =
        config.arch.layers[0].params.iter().map(|spec| spec.name.as_str()).collect();
    assert!(names.contains(&"model.layers.0.mlp.experts.gate_up_proj"), "{names:?}");
    let text = small("gpt_oss", "fp8").unwrap_err().to_string();
    assert!(text.contains("required: absent, or of quant_method `mxfp4`"), "{text}");
    let text = small("mixtral", "mxfp4").unwrap_err().to_string();
    assert!(text.contains("required: absent: training needs weights in float"), "{text}");
}

/// The text decoder of Gemma 4 26B-A4B, whose parameters transformers 5.24 counts.
#[test]
fn experts_beside_an_mlp_have_norms_of_their_own() {
    let layer_types = ["sliding_attention"; 5].iter().chain(&["full_attention"]);
    let layer_types: Vec<&str> = layer_types.copied().cycle().take(30).collect();
    let mut config = json!({
        "model_type": "gemma4_text", "attention_k_eq_v": true, "enable_moe_block": true, "final_logit_softcapping": 30.0,
        "global_head_dim": 512, "head_dim": 256, "hidden_size": 2816, "hidden_size_per_layer_input": 0,
        "intermediate_size": 2112, "layer_types": layer_types, "max_position_embeddings": 262_144,
        "moe_intermediate_size": 704, "num_attention_heads": 16, "num_experts": 128, "num_global_key_value_heads": 2,
        "num_hidden_layers": 30, "num_key_value_heads": 8, "num_kv_shared_layers": 0, "sliding_window": 1024,
        "tie_word_embeddings": true, "top_k_experts": 8, "vocab_size": 262_144,
    });
    let arch = parse(&config).unwrap().arch;
    assert_eq!(arch.num_parameters(), 25_233_141_760);
    let Ffn::Moe(moe) = &arch.layers[0].ffn else { panic!("experts") };
    let name = |param_idx: usize| {
        let name = &arch.layers[0].params[param_idx].name;
        name.strip_prefix("model.layers.0.").unwrap().strip_suffix(".weight").unwrap()
    };
    let (norms, shared) = (moe.norms.unwrap(), moe.shared.as_ref().unwrap());
    let norms = [norms.input, norms.output, shared.output_norm.unwrap()];
    let required = [
        "pre_feedforward_layernorm_2",
        "post_feedforward_layernorm_2",
        "post_feedforward_layernorm_1",
    ];
    assert_eq!(norms.map(|norm| name(norm.weight.unwrap())), required);
    assert_eq!((moe.router.num_experts_per_tok, shared.mlp.intermediate_size), (8, 2112));

    config.as_object_mut().unwrap().remove("num_experts");
    let text = parse(&config).unwrap_err().to_string();
    assert!(text.contains("a number of experts beside enable_moe_block `true`"), "{text}");
}

/// Its `head_dim` and `partial_rotary_factor` are of whole heads, as transformers writes them.
#[test]
fn latents_may_count_whole_heads() {
    let text = |keys: &Value| {
        let mut config = json!({
            "model_type": "mistral4", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 128, "q_lora_rank": 24, "kv_lora_rank": 20,
            "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        });
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        config
    };
    // Nothing said: the scaling of its class, and the magnitude that this has.
    let arch = parse(&text(&json!({}))).unwrap().arch;
    assert_eq!(arch.ropes[0].dim, 4);
    let magnitude = 0.1 * 128_f64.ln() + 1.0;
    let scale = arch.first_attention().scale * 12_f64.sqrt();
    assert!((scale - magnitude * magnitude).abs() < 1e-12, "{scale}");
    let rope = |partial: f64| {
        json!({"head_dim": 12, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.1, "partial_rotary_factor": partial,
        }})
    };
    let config = json!({"model_type": "mistral3", "text_config": text(&rope(4.0 / 12.0))});
    let arch = parse(&config).unwrap().arch;
    assert_eq!((arch.ropes[0].dim, arch.first_attention().scale), (4, 1.0 / 12_f64.sqrt()));
    let error = parse(&text(&rope(0.5))).unwrap_err().to_string();
    assert!(error.contains("required: absent, or what makes `4` of heads of `12`"), "{error}");
    let error = parse(&text(&json!({"head_dim": 4}))).unwrap_err().to_string();
    assert!(error.contains("required: missing, or `12`"), "{error}");
}

#[test]
fn queries_gates_and_norms_of_the_newest_families() {
    let arch = small_arch("ministral3", &json!({}));
    let scale = arch.ropes[0].query_scale.unwrap();
    assert_eq!((scale.beta, scale.original_max_position_embeddings), (0.1, 16_384));
    let muse = small_arch("muse_glimmer_text", &json!({}));
    let layer = &muse.layers[0];
    assert_eq!(layer.pre_ffn_norm.unwrap().eps, 1e-5);
    assert_eq!(layer.post_ffn_norm.unwrap().eps, 1e-8);
    assert!((attention_of(layer).scale - 3.87 / 4.0).abs() < 1e-15);
    let is_full = |layer: &Layer| attention_of(layer).sliding_window.is_none();
    assert_eq!(muse.layers.iter().map(is_full).collect::<Vec<_>>(), [false, false, false, true]);
    let init = |model_type: &str| small_arch(model_type, &json!({})).layers[0].params[0].init;
    assert_eq!(init("gemma"), Init::Constant(0.0));
    assert_eq!(init("nemotron"), Init::Constant(1.0));
}
