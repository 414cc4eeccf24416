//! Exports: what transformers reads, in files of the right size, or nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use sterna_arch::DType;
use sterna_hf::export::{MAX_SHARD_BYTES, check_destination, rewrite};
use sterna_hf::{Error, ExportWriter, TensorSpec, Tokenizer, WeightFiles};

use crate::{fixture, tiny_config};

fn tensors(dtype: DType) -> Vec<(TensorSpec, DType)> {
    tiny_config().arch.params().map(|spec| (spec.into(), dtype)).collect()
}

fn bytes_of(seed: usize, num_bytes: usize) -> Vec<u8> {
    (0..num_bytes).map(|i| (seed * 37 + i) as u8).collect()
}

/// Writes tensors `0..count`, each with its own bytes.
fn write(writer: &mut ExportWriter, tensors: &[(TensorSpec, DType)]) {
    for (seed, (spec, dtype)) in tensors.iter().enumerate() {
        writer.write(&spec.name, &bytes_of(seed, spec.numel() * dtype.size())).unwrap();
    }
}

/// Exports a model with bytes that tell where they belong.
fn export(dir: &Path, tensors: &[(TensorSpec, DType)], max_shard_bytes: u64) {
    let mut writer = ExportWriter::create(dir, tensors, max_shard_bytes).unwrap();
    write(&mut writer, tensors);
    writer.copy_assets(&fixture("tokenizers/gpt2"), &tiny_config().raw).unwrap();
    writer.finish().unwrap();
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn assert_readable(dir: &Path, tensors: &[(TensorSpec, DType)]) {
    let weights = WeightFiles::open(dir).unwrap();
    weights.check(&tiny_config()).unwrap();
    for (seed, (spec, dtype)) in tensors.iter().enumerate() {
        let view = weights.tensor(&spec.name).unwrap();
        assert_eq!(view.dtype, *dtype);
        assert_eq!(*view.bytes(), bytes_of(seed, spec.numel() * dtype.size()), "{}", spec.name);
    }
}

#[test]
fn a_small_model_is_one_file_with_its_assets() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("deep/out");
    let tensors = tensors(DType::BF16);
    export(&dir, &tensors, MAX_SHARD_BYTES);
    assert_eq!(
        names_in(&dir),
        ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    );
    assert_eq!(names_in(dir.parent().unwrap()), ["out"], "nothing is left beside it");
    assert_readable(&dir, &tensors);
    // Transformers refuses files without this.
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let (header_bytes, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    assert_eq!(header_bytes % 8, 0);
    Tokenizer::from_dir(&dir).unwrap();
}

#[test]
fn the_config_says_what_was_written() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("out");
    let tensors = tensors(DType::F16);
    let mut config = tiny_config().raw;
    config.insert("torch_dtype".to_owned(), json!("float32"));
    config.insert("some_other_key".to_owned(), json!([1]));
    let mut writer = ExportWriter::create(&dir, &tensors, MAX_SHARD_BYTES).unwrap();
    write(&mut writer, &tensors);
    writer.copy_assets(parent.path(), &config).unwrap();
    writer.finish().unwrap();
    let written: Value =
        serde_json::from_str(&fs::read_to_string(dir.join("config.json")).unwrap()).unwrap();
    assert_eq!(written["torch_dtype"], "float16");
    assert_eq!(written["architectures"], json!(["LlamaForCausalLM"]));
    assert_eq!(written["some_other_key"], json!([1]));
    assert_eq!(written["hidden_size"], config["hidden_size"]);
}

#[test]
fn a_large_model_is_several_files_with_an_index() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("out");
    let tensors = tensors(DType::F32);
    let max_shard_bytes = 20_000;
    export(&dir, &tensors, max_shard_bytes);
    assert_readable(&dir, &tensors);

    let text = fs::read_to_string(dir.join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_str(&text).unwrap();
    let total: usize = tensors.iter().map(|(spec, dtype)| spec.numel() * dtype.size()).sum();
    assert_eq!(index["metadata"]["total_size"], json!(total));
    assert_eq!(index["weight_map"].as_object().unwrap().len(), tensors.len());
    let shards: Vec<String> =
        names_in(&dir).into_iter().filter(|name| name.starts_with("model-")).collect();
    assert!(shards.len() > 2);
    for (shard_idx, name) in shards.iter().enumerate() {
        assert_eq!(*name, format!("model-{:05}-of-{:05}.safetensors", shard_idx + 1, shards.len()));
        let bytes = fs::read(dir.join(name)).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert!(
            metadata.data_len() as u64 <= max_shard_bytes || metadata.tensors().len() == 1,
            "{name}"
        );
    }
    // Greedy: no two neighbours would have fitted into one.
    let of = |name: &str| fs::metadata(dir.join(name)).unwrap().len();
    assert!(shards.windows(2).all(|pair| of(&pair[0]) + of(&pair[1]) > max_shard_bytes));
}

#[test]
fn elements_are_aligned_when_types_are_mixed() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("out");
    let odd = |name: &str| TensorSpec { name: name.to_owned(), shape: vec![3] };
    let tensors = [
        (odd("a"), DType::BF16),
        (odd("b"), DType::F32),
        (odd("c"), DType::BF16),
        (odd("d"), DType::F32),
    ];
    let mut writer = ExportWriter::create(&dir, &tensors, MAX_SHARD_BYTES).unwrap();
    write(&mut writer, &tensors);
    writer.finish().unwrap();
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    for (seed, (spec, dtype)) in tensors.iter().enumerate() {
        let view = parsed.tensor(&spec.name).unwrap();
        assert_eq!(view.data(), bytes_of(seed, 3 * dtype.size()));
        let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert!(offset.is_multiple_of(dtype.size()), "{} at {offset}", spec.name);
    }
}

#[test]
fn a_run_that_fails_leaves_the_earlier_export() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("out");
    let tensors = tensors(DType::BF16);
    export(&dir, &tensors, MAX_SHARD_BYTES);
    let before = fs::read(dir.join("model.safetensors")).unwrap();

    let mut writer = ExportWriter::create(&dir, &tensors, 20_000).unwrap();
    let (spec, dtype) = &tensors[0];
    writer.write(&spec.name, &vec![0; spec.numel() * dtype.size()]).unwrap();
    assert_eq!(names_in(parent.path()).len(), 2, "the new one is beside the old");
    let error = writer.finish().unwrap_err();
    assert!(
        error.to_string().ends_with("lacks tensor `model.layers.0.input_layernorm.weight`"),
        "{error}"
    );
    assert_eq!(names_in(parent.path()), ["out"]);
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), before);

    drop(ExportWriter::create(&dir, &tensors, 20_000).unwrap());
    assert_eq!(names_in(parent.path()), ["out"]);
    assert_readable(&dir, &tensors);
}

#[test]
fn a_new_export_takes_the_place_of_the_earlier_whole() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("out");
    export(&dir, &tensors(DType::F32), 20_000);
    let tensors = tensors(DType::BF16);
    export(&dir, &tensors, MAX_SHARD_BYTES);
    assert_eq!(
        names_in(&dir),
        ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    );
    assert_eq!(names_in(parent.path()), ["out"]);
    assert_readable(&dir, &tensors);
}

#[test]
fn a_folder_with_anything_else_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
    let error =
        ExportWriter::create(dir.path(), &tensors(DType::BF16), MAX_SHARD_BYTES).unwrap_err();
    assert!(error.to_string().contains("would delete `thesis.tex`"), "{error}");
    assert!(error.hint().is_some());
    assert_eq!(names_in(dir.path()), ["thesis.tex"]);
}

#[test]
fn tensors_have_to_come_as_announced() {
    let parent = tempfile::tempdir().unwrap();
    let tensors = tensors(DType::BF16);
    let mut writer =
        ExportWriter::create(&parent.path().join("out"), &tensors, MAX_SHARD_BYTES).unwrap();
    let first = &tensors[0].0;
    let error = writer.write(&first.name, &[0; 3]).unwrap_err();
    assert!(error.to_string().contains("of `3` bytes is not the next"), "{error}");
    let error = writer.write("model.norm.weight", &[0; 32]).unwrap_err();
    assert!(error.to_string().contains("required: `model.embed_tokens.weight`"), "{error}");
    write(&mut writer, &tensors);
    let error = writer.write("one.too.many", &[]).unwrap_err();
    assert!(error.to_string().ends_with("required: none, all are written"), "{error}");
}

#[test]
fn a_disk_without_the_space_is_known_before_anything_is_written() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("not/yet/there");
    let error = check_destination(&dir, u64::MAX).unwrap_err();
    let Error::DiskFull { needed_bytes, free_bytes, .. } = &error else { panic!("{error:?}") };
    assert!(*needed_bytes == u64::MAX && *free_bytes > 0);
    assert!(error.to_string().contains("not/yet/there") && error.hint().is_some(), "{error}");
    let huge = [(TensorSpec { name: "a".to_owned(), shape: vec![1 << 55] }, DType::F32)];
    assert!(matches!(ExportWriter::create(&dir, &huge, 1).unwrap_err(), Error::DiskFull { .. }));
    assert!(names_in(parent.path()).is_empty());
}

#[test]
fn a_full_disk_while_writing_says_what_it_needed() {
    // A file size limit is the full disk that a test can have to itself; it needs a process of its
    // own, which is this test again.
    const FLAG: &str = "STERNA_HF_TEST_LIMITED";
    let test = "export::a_full_disk_while_writing_says_what_it_needed";
    if let Some(dir) = std::env::var_os(FLAG) {
        limited(Path::new(&dir));
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    export(&parent.path().join("out"), &tensors(DType::BF16), MAX_SHARD_BYTES);
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(FLAG, parent.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
    assert_eq!(names_in(parent.path()), ["out"]);
    assert_readable(&parent.path().join("out"), &tensors(DType::BF16));
}

fn limited(parent: &Path) {
    use nix::sys::resource::{Resource, setrlimit};
    use nix::sys::signal::{SigSet, Signal};
    // Beyond the limit a write sends this signal, and fails when it is blocked.
    SigSet::from_iter([Signal::SIGXFSZ]).thread_block().unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 10_000, 10_000).unwrap();
    let tensors = tensors(DType::BF16);
    let mut writer = ExportWriter::create(&parent.join("out"), &tensors, MAX_SHARD_BYTES).unwrap();
    let (spec, dtype) = &tensors[0];
    let error = writer.write(&spec.name, &vec![0; spec.numel() * dtype.size()]).unwrap_err();
    let Error::Write { path, needed_bytes, .. } = &error else { panic!("{error:?}") };
    assert!(path.ends_with("model.safetensors"), "{}", path.display());
    assert!(*needed_bytes > 10_000, "{needed_bytes}");
}

#[test]
fn a_folder_that_may_not_be_written_to_is_refused_early() {
    let parent = tempfile::tempdir().unwrap();
    let locked = parent.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    // Root may write everywhere, but not into what is no folder.
    let dir = if fs::write(locked.join("probe"), "").is_ok() {
        fs::write(parent.path().join("file"), "").unwrap();
        parent.path().join("file/out")
    } else {
        locked.join("out")
    };
    let error = ExportWriter::create(&dir, &tensors(DType::BF16), MAX_SHARD_BYTES).unwrap_err();
    assert!(matches!(error, Error::Write { .. }), "{error:?}");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_tokenizer_of_another_folder_replaces_the_models() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("out");
    let tensors = tensors(DType::BF16);
    let mut writer = ExportWriter::create(&dir, &tensors, MAX_SHARD_BYTES).unwrap();
    write(&mut writer, &tensors);
    writer.copy_assets(&fixture("tokenizers/llama"), &tiny_config().raw).unwrap();
    writer.copy_tokenizer(&fixture("tokenizers/qwen2")).unwrap();
    writer.finish().unwrap();
    assert!(!dir.join("special_tokens_map.json").exists(), "nothing of the first is left");
    assert_eq!(Tokenizer::from_dir(&dir).unwrap().special_token("eos_token"), Some("<|im_end|>"));
}

#[test]
fn what_transformers_saved_comes_out_byte_for_byte() {
    let (saved, parent) = (fixture("saved"), tempfile::tempdir().unwrap());
    let dir = parent.path().join("out");
    rewrite(&saved, &dir, None).unwrap();
    assert_eq!(names_in(&dir), names_in(&saved));
    for name in names_in(&saved) {
        assert!(
            fs::read(dir.join(&name)).unwrap() == fs::read(saved.join(&name)).unwrap(),
            "{name} differs"
        );
    }
}

#[test]
fn another_dtype_and_back_are_the_same_bytes() {
    let (saved, parent) = (fixture("saved"), tempfile::tempdir().unwrap());
    let [wide, back] = ["wide", "back"].map(|name| parent.path().join(name));
    rewrite(&saved, &wide, Some(DType::F32)).unwrap();
    let config: Value =
        serde_json::from_str(&fs::read_to_string(wide.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["dtype"], "float32");
    let (weights, original) =
        (WeightFiles::open(&wide).unwrap(), WeightFiles::open(&saved).unwrap());
    for name in original.names() {
        let (wide, narrow) = (weights.tensor(name).unwrap(), original.tensor(name).unwrap());
        assert_eq!((wide.dtype, &wide.shape), (DType::F32, &narrow.shape));
        // The upper half of single precision is bf16.
        let upper: Vec<u8> =
            wide.bytes().chunks_exact(4).flat_map(|word| [word[2], word[3]]).collect();
        assert_eq!(upper, *narrow.bytes(), "{name}");
    }
    rewrite(&wide, &back, Some(DType::BF16)).unwrap();
    for name in names_in(&saved).iter().filter(|name| *name != "config.json") {
        assert!(
            fs::read(back.join(name)).unwrap() == fs::read(saved.join(name)).unwrap(),
            "{name}"
        );
    }
}

/// A config that says that experts have four bits would make loaders look for their blocks.
#[test]
fn experts_of_four_bits_are_written_in_bf16() {
    let (dir, parent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let packed = fixture("mxfp4");
    fs::copy(packed.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let config = json!({
        "model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 128, "num_key_value_heads": 2, "num_local_experts": 4,
        "quantization_config": {"quant_method": "mxfp4"},
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let out = parent.path().join("out");
    rewrite(dir.path(), &out, None).unwrap();
    let [before, after] = [&packed, &out].map(|dir| WeightFiles::open(dir).unwrap());
    assert!(before.names().eq(after.names()));
    assert_eq!(after.tensor("experts").unwrap().bytes(), before.tensor("widened").unwrap().bytes());
    let config: Value =
        serde_json::from_str(&fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["quantization_config"], &config["torch_dtype"]),
        (&Value::Null, &json!("bfloat16"))
    );
}
