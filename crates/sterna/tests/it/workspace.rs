//! A folder with all that a recipe names: a tiny model with a tokenizer, chats, and recipes; and the binary run in it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Map, Value, json};
use sterna_testkit::{tiny_config, tiny_model};
use tempfile::TempDir;

/// A recipe that fits the model and the chats of a [`Workspace`]: 2 steps on one rank.
pub(crate) const RECIPE: &str = "\
type: sft
model:
  name_or_path: model
  dtype: fp32
  save_name: tuned
data:
  sources:
    - type: huggingface_instruct
      name_or_path: chats
      role_mapping: {user: messages.role.user, assistant: messages.role.assistant}
  max_length: 256
  pack_samples: true
  num_proc: 1
  cache_dir: cache
deepspeed:
  zero_optimization: {stage: 3}
optimizer: {type: cpu_adam, learning_rate: 1e-3}
scheduler: {name: constant, warmup_ratio: 0}
train_iters: 2
train_log_metrics_path: metrics.jsonl
checkpoint: {type: huggingface, output_dir: out, save_end_of_training: true}
";

/// A temporary folder in which `sterna` runs.
pub(crate) struct Workspace {
    folder: TempDir,
}

impl Workspace {
    /// With `model/`, `chats/train.jsonl` and [`RECIPE`] as `recipe.yaml`.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let workspace = Self { folder };
        let mut config = tiny_config("llama");
        config["vocab_size"] = json!(SPECIAL_TOKENS.len() + 256);
        tiny_model(&workspace.path("model"), &config, 1);
        write_tokenizer(&workspace.path("model"));
        fs::create_dir(workspace.path("chats")).unwrap();
        fs::write(workspace.path("chats/train.jsonl"), chats()).unwrap();
        workspace.write("recipe.yaml", RECIPE);
        workspace
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Rows of a JSONL file.
    pub(crate) fn rows(&self, name: &str) -> Vec<Value> {
        self.read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// `sterna ARGS`, with nothing of the caller's environment but what a program needs.
    pub(crate) fn sterna(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sterna"));
        command.args(args).current_dir(self.folder.path()).env_clear();
        command.envs([("HF_HUB_OFFLINE", "1"), ("OMP_NUM_THREADS", "1"), ("HOME", "/nonexistent")]);
        // As on a machine without a GPU, of which a rank on each would be the default.
        command.env("CUDA_VISIBLE_DEVICES", "");
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `sterna ARGS` to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.sterna(args).output().unwrap()
    }

    /// Runs `sterna ARGS` to its end and shows everything it did, with what differs from run to run replaced.
    pub(crate) fn show(&self, args: &[&str]) -> String {
        show(&self.run(args), self.folder.path())
    }
}

/// Exit status, stdout and stderr as one text.
pub(crate) fn show(output: &Output, folder: &Path) -> String {
    let mut text = format!("exit status: {}\n", output.status.code().unwrap_or(-1));
    for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        let stream = String::from_utf8_lossy(bytes).replace(&folder.display().to_string(), "[DIR]");
        writeln!(text, "----- {name} -----\n{}", stream.trim_end()).unwrap();
    }
    text
}

const SPECIAL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
                             + '<|im_end|>' + '\n' }}{% endfor %}";

/// A byte-level tokenizer without merges: one token a byte.
fn write_tokenizer(folder: &Path) {
    let flags = json!({"single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let added: Vec<Value> = SPECIAL_TOKENS
        .iter()
        .enumerate()
        .map(|(id, content)| {
            let mut token = flags.clone();
            token["id"] = json!(id);
            token["content"] = json!(content);
            token
        })
        .collect();
    let specials = SPECIAL_TOKENS.iter().map(|token| (*token).to_owned());
    let vocab: Map<String, Value> = specials
        .chain(byte_characters())
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({
        "tokenizer_class": "GPT2Tokenizer", "chat_template": CHAT_TEMPLATE, "model_max_length": 512,
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
    });
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// The printable character that byte-level tokenizers write for each byte, in the order of bytes.
fn byte_characters() -> impl Iterator<Item = String> {
    let is_printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut num_others = 0;
    (0..256).map(move |byte| {
        let code = if is_printable(byte) {
            byte
        } else {
            num_others += 1;
            255 + num_others
        };
        char::from_u32(code).unwrap().to_string()
    })
}

/// 40 short chats, all different.
fn chats() -> String {
    (0..40).fold(String::new(), |mut text, i| {
        let chat = json!({"messages": [
            {"role": "user", "content": format!("What is {i} plus {i}?")},
            {"role": "assistant", "content": format!("It is {}.", 2 * i)},
        ]});
        writeln!(text, "{chat}").unwrap();
        text
    })
}
