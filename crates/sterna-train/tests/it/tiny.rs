//! A tiny model with a tokenizer and chats, so that a whole run takes a second.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};
use sterna_testkit::{tiny_config, tiny_model};

/// Writes a model, a tokenizer of single characters and chats into `folder`, and returns a recipe over them: fp32,
/// packed to 96 tokens.
pub(crate) fn recipe(folder: &Path) -> Value {
    let model = folder.join("model");
    if !model.join("config.json").exists() {
        fs::create_dir_all(&model).expect("made");
        let mut config = tiny_config("llama");
        // As the smallest real models: the head is the embedding, and padding is a row without gradient.
        config["tie_word_embeddings"] = json!(true);
        config["pad_token_id"] = json!(2);
        // Segments of two blocks, and one of one.
        config["num_hidden_layers"] = json!(5);
        tiny_model(&model, &config, 7);
        write_tokenizer(&model, (' '..='~').chain(['\n']));
        write_chats(&folder.join("chats.jsonl"));
    }
    json!({
        "type": "sft",
        "model": {"name_or_path": model, "dtype": "fp32"},
        "data": {
            "sources": [{
                "type": "huggingface_instruct",
                "name_or_path": folder.join("chats.jsonl"),
                "split": "train",
                "role_mapping": {"user": "messages.role.user", "assistant": "messages.role.assistant"},
            }],
            "cache_dir": folder.join("cache"),
            "num_proc": 1,
            "max_length": 96,
            "div_length": 32,
            "pack_samples": true,
            "train_eval_split": [0.8, 0.2],
        },
        "optimizer": {"type": "cpu_adam", "lr": 3e-3},
        "scheduler": {"name": "constant"},
        "deepspeed": {"zero_optimization": {"stage": 0}},
        "train_log_iter_interval": 0,
        "exit_iteration": 4,
        "eval_interval": 2,
    })
}

/// Writes a config with experts, balanced routers and a tokenizer into `folder`, for random weights: 128 elements in each of the three
/// weights of an expert.
pub(crate) fn write_experts(folder: &Path, num_experts: usize) {
    let config = json!({
        "model_type": "mixtral", "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 128, "num_local_experts": num_experts, "num_experts_per_tok": 2,
        "max_position_embeddings": 512, "output_router_logits": true,
    });
    write_config(folder, &config);
}

/// Writes a config whose layers have two buffers each, and a tokenizer, into `folder`, for random weights.
pub(crate) fn write_buffers(folder: &Path) {
    let config = json!({
        "model_type": "apertus", "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 128, "max_position_embeddings": 512, "hidden_act": "xielu",
    });
    write_config(folder, &config);
}

/// Writes a config of two delta nets and a layer with attention, and a tokenizer, into `folder`, for random weights.
pub(crate) fn write_delta_nets(folder: &Path) {
    let config = json!({
        "model_type": "qwen3_5_text", "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 128, "max_position_embeddings": 512, "full_attention_interval": 3,
        "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 6, "linear_value_head_dim": 4,
        "rms_norm_eps": 1e-2,
    });
    write_config(folder, &config);
}

fn write_config(folder: &Path, config: &Value) {
    fs::create_dir_all(folder).expect("made");
    write_tokenizer(folder, (' '..='~').chain(['\n']));
    fs::write(folder.join("config.json"), config.to_string()).expect("written");
}

/// Saves `recipe` and loads it as a user would.
pub(crate) fn load(folder: &Path, name: &str, recipe: &Value) -> sterna_recipe::Recipe {
    let path: PathBuf = folder.join(format!("{name}.yaml"));
    fs::write(&path, recipe.to_string()).expect("written");
    sterna_recipe::load(&path, &[]).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// One token for each of these characters.
pub(crate) fn write_tokenizer(folder: &Path, characters: impl Iterator<Item = char>) {
    let specials = ["<|im_start|>", "<|im_end|>", "<unk>"];
    let characters = characters.map(String::from);
    let vocabulary: Map<String, Value> = specials
        .iter()
        .map(|&text| text.to_owned())
        .chain(characters)
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    let added: Vec<Value> = specials
        .iter()
        .enumerate()
        .map(|(id, text)| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": false},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<unk>",
        "chat_template": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
                          + '<|im_end|>' + '\n' }}{% endfor %}",
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("written");
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).expect("written");
}

/// Chats of different lengths, none longer than 96 tokens.
fn write_chats(path: &Path) {
    let rows: Vec<String> = (0..40_u32)
        .map(|i| {
            let question = "why? ".repeat(1 + (i % 4) as usize);
            let answer = format!("{} is {}", i, i * i % 17);
            json!({"messages": [{"role": "user", "content": question.trim()}, {"role": "assistant", "content": answer}]})
                .to_string()
        })
        .collect();
    fs::write(path, rows.join("\n")).expect("written");
}
