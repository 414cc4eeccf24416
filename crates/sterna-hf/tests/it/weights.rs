//! Weights as they lie in a folder, and the ways in which they can be broken.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use sterna_arch::{Architecture, DType, ModelConfig};
use sterna_hf::{Error, WeightFiles};

use crate::{fixture, real_inputs, tiny_config};

/// Bytes of a tensor that tell it from every other.
fn bytes_of(name: &str, num_bytes: usize) -> Vec<u8> {
    let seed = name.bytes().fold(7_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    (0..num_bytes).map(|i| seed.wrapping_add(i as u8)).collect()
}

/// Writes a file with the `safetensors` crate's own writer.
fn write_file(path: &Path, tensors: &[(String, Vec<usize>, Dtype)]) {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(name, shape, dtype)| {
            bytes_of(name, shape.iter().product::<usize>() * dtype.bitsize() / 8)
        })
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, shape, dtype), data)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

fn tensors_of(arch: &Architecture, dtype: Dtype) -> Vec<(String, Vec<usize>, Dtype)> {
    arch.params().map(|spec| (spec.name.clone(), spec.shape.clone(), dtype)).collect()
}

/// A folder with a model in one file, changed before it is written.
fn folder(
    edit: impl FnOnce(&mut Vec<(String, Vec<usize>, Dtype)>),
) -> (tempfile::TempDir, ModelConfig) {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny_config();
    let mut tensors = tensors_of(&config.arch, Dtype::BF16);
    edit(&mut tensors);
    write_file(&dir.path().join("model.safetensors"), &tensors);
    (dir, config)
}

/// A folder with a model in two files and an index.
fn sharded_folder() -> (tempfile::TempDir, ModelConfig) {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny_config();
    let tensors = tensors_of(&config.arch, Dtype::F32);
    let (first, second) = tensors.split_at(5);
    let mut weight_map = serde_json::Map::new();
    for (file, tensors) in [("model-1.safetensors", first), ("sub/model-2.safetensors", second)] {
        fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
        write_file(&dir.path().join(file), tensors);
        weight_map.extend(tensors.iter().map(|(name, ..)| (name.clone(), file.into())));
    }
    write_index(dir.path(), &weight_map.into());
    (dir, config)
}

fn write_index(dir: &Path, weight_map: &serde_json::Value) {
    let index = serde_json::json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn one_file_and_many_give_the_bytes_that_were_written() {
    for (dtype, safetensors_dtype) in [(DType::BF16, Dtype::BF16), (DType::F32, Dtype::F32)] {
        let (dir, config) = if dtype == DType::BF16 { folder(|_| {}) } else { sharded_folder() };
        let weights = WeightFiles::open(dir.path()).unwrap();
        weights.check(&config).unwrap();
        assert_eq!(weights.names().count(), config.arch.params().count());
        for spec in config.arch.params() {
            let view = weights.tensor(&spec.name).unwrap();
            assert_eq!((view.dtype, &view.shape), (dtype, &spec.shape));
            let num_bytes = spec.numel() * safetensors_dtype.bitsize() / 8;
            assert_eq!(*view.bytes(), bytes_of(&spec.name, num_bytes), "{}", spec.name);
        }
    }
}

#[test]
fn half_precision_is_read_too() {
    let (dir, config) = folder(|tensors| tensors.iter_mut().for_each(|t| t.2 = Dtype::F16));
    let weights = WeightFiles::open(dir.path()).unwrap();
    weights.check(&config).unwrap();
    assert_eq!(weights.tensor("model.norm.weight").unwrap().dtype, DType::F16);
}

#[test]
fn the_real_model_has_what_its_config_says() {
    let dir = real_inputs().join("SmolLM2-135M-Instruct");
    let config = ModelConfig::from_dir(&dir).unwrap();
    assert_eq!(config.arch.num_parameters(), 134_515_008);
    WeightFiles::open(&dir).unwrap().check(&config).unwrap();
}

#[test]
fn a_tied_model_may_have_a_head_of_its_own_in_the_file() {
    let (dir, _) = folder(|_| {});
    let tied = serde_json::json!({"tie_word_embeddings": true});
    let tied = tiny_config().with_overrides(tied.as_object().unwrap()).unwrap();
    assert!(tied.arch.is_tied());
    WeightFiles::open(dir.path()).unwrap().check(&tied).unwrap();
}

#[test]
fn an_untied_model_without_a_head_is_refused() {
    let (dir, config) = folder(|tensors| tensors.retain(|t| t.0 != "lm_head.weight"));
    let error = WeightFiles::open(dir.path()).unwrap().check(&config).unwrap_err();
    assert!(error.to_string().contains("tensor `lm_head.weight` is missing"), "{error}");
    assert!(error.hint().unwrap().contains("tie_word_embeddings"), "{:?}", error.hint());
}

#[test]
fn missing_tensors_are_named_and_counted() {
    let (dir, config) = folder(|tensors| tensors.retain(|t| !t.0.contains("layers.1.mlp")));
    let error = WeightFiles::open(dir.path()).unwrap().check(&config).unwrap_err();
    let words = "tensor `model.layers.1.mlp.gate_proj.weight` is missing, and `2` others";
    assert!(error.to_string().ends_with(words), "{error}");
}

/// `golden/make_hf_mxfp4.py` wrote both.
#[test]
fn experts_of_four_bits_are_widened_as_transformers_does() {
    let weights = WeightFiles::open(&fixture("mxfp4")).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["experts", "widened"]);
    let (view, expected) = (weights.tensor("experts").unwrap(), weights.tensor("widened").unwrap());
    assert_eq!((view.dtype, &view.shape), (DType::BF16, &expected.shape));
    assert_eq!(view.bytes(), expected.bytes());
    for range in [0..0, 7..150, 383..384] {
        assert_eq!(view.bytes_of(&range), expected.bytes_of(&range));
    }
}

#[test]
fn only_bytes_that_belong_together_are_experts_of_four_bits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let blocks = ("a_blocks".to_owned(), vec![2, 3, 1, 16], Dtype::U8);
    let scales = |shape: &[usize], dtype| ("a_scales".to_owned(), shape.to_vec(), dtype);
    write_file(&path, &[blocks.clone(), scales(&[2, 3, 1], Dtype::BF16)]);
    let weights = WeightFiles::open(dir.path()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a_blocks", "a_scales"]);
    write_file(&path, &[blocks, scales(&[6], Dtype::U8)]);
    let error = WeightFiles::open(dir.path()).unwrap().tensor("a").unwrap_err();
    let words = "tensors `a_blocks` and `a_scales` are `[2, 3, 1, 16]` and `[6]`, required: ";
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn a_wrong_shape_and_a_wrong_type_are_named() {
    let (dir, config) = folder(|tensors| tensors[1].1 = vec![3]);
    let error = WeightFiles::open(dir.path()).unwrap().check(&config).unwrap_err();
    let words = "`model.layers.0.input_layernorm.weight` has shape `[3]`, required: `[16]`";
    assert!(error.to_string().contains(words), "{error}");

    let (dir, config) = folder(|tensors| tensors[1].2 = Dtype::I8);
    let error = WeightFiles::open(dir.path()).unwrap().check(&config).unwrap_err();
    assert!(error.to_string().contains("is `I8`, required: `F32`, `F16` or `BF16`"), "{error}");
}

#[test]
fn a_folder_without_weights_says_what_is_there_instead() {
    let dir = tempfile::tempdir().unwrap();
    let error = WeightFiles::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("has neither `model.safetensors` nor"), "{error}");
    fs::write(dir.path().join("pytorch_model.bin"), "pickle").unwrap();
    let error = WeightFiles::open(dir.path()).unwrap_err();
    assert!(error.to_string().ends_with("only the pickled `pytorch_model.bin`"), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn a_file_that_was_cut_off_says_how_much_is_missing() {
    let (dir, _) = folder(|_| {});
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for found_bytes in [whole.len() - 1, whole.len() / 2, 100] {
        fs::write(&path, &whole[..found_bytes]).unwrap();
        let error = WeightFiles::open(dir.path()).unwrap_err();
        let Error::TruncatedSafetensors { found_bytes: found, required_bytes, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(*found, found_bytes as u64);
        // Of a cut header, only the header's own length is known.
        let known = if found_bytes == 100 {
            101..whole.len() as u64
        } else {
            whole.len() as u64..whole.len() as u64 + 1
        };
        assert!(known.contains(required_bytes), "{required_bytes}");
    }
}

#[test]
fn what_is_no_safetensors_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let header = |length: u64, json: &[u8]| [&length.to_le_bytes()[..], json].concat();
    let overlapping = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}    "#;
    let mismatched = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}} "#;
    let overflowing =
        br#"{"a":{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,4]}}"#;
    let cases: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"short".to_vec(),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n".to_vec(),
        header(200_000_000, b"{}"),
        header(2, b"[]"),
        header(4, &[0xff, 0xfe, 0xfd, 0xfc]),
        [&header(overlapping.len() as u64, overlapping)[..], &[0; 4]].concat(),
        [&header(mismatched.len() as u64, mismatched)[..], &[0; 4]].concat(),
        [&header(overflowing.len() as u64, overflowing)[..], &[0; 4]].concat(),
        // More data than the header knows of.
        header(2, b"{}abcd"),
    ];
    for bytes in cases {
        fs::write(&path, &bytes).unwrap();
        let error = WeightFiles::open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Safetensors { .. }), "{bytes:?}: {error:?}");
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}

#[test]
fn an_index_is_held_to_its_word() {
    let (dir, _) = sharded_folder();
    fs::remove_file(dir.path().join("model-1.safetensors")).unwrap();
    let error = WeightFiles::open(dir.path()).unwrap_err();
    assert!(
        matches!(&error, Error::IndexedFileMissing { file, .. } if file == "model-1.safetensors"),
        "{error:?}"
    );

    let (dir, _) = sharded_folder();
    write_index(dir.path(), &serde_json::json!({"lm_head.weight": "model-1.safetensors"}));
    let error = WeightFiles::open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::IndexedTensorMissing { .. }), "{error:?}");

    for weight_map in [serde_json::json!(null), serde_json::json!([]), serde_json::json!({"a": 1})]
    {
        write_index(dir.path(), &weight_map);
        assert!(
            matches!(WeightFiles::open(dir.path()).unwrap_err(), Error::Value { .. }),
            "{weight_map}"
        );
    }
    fs::write(dir.path().join("model.safetensors.index.json"), "{").unwrap();
    assert!(matches!(WeightFiles::open(dir.path()).unwrap_err(), Error::Json { .. }));
}

#[test]
fn an_index_cannot_leave_its_folder() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("model");
    fs::create_dir(&dir).unwrap();
    write_file(&outer.path().join("secret.safetensors"), &[("a".to_owned(), vec![1], Dtype::F32)]);
    let absolute = outer.path().join("secret.safetensors");
    for file in
        ["../secret.safetensors", "x/../../secret.safetensors", absolute.to_str().unwrap(), "", "."]
    {
        write_index(&dir, &serde_json::json!({"a": file}));
        let error = WeightFiles::open(&dir).unwrap_err();
        assert!(matches!(error, Error::IndexLeavesFolder { .. }), "{file}: {error:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a damaged file says, reading it ends in a value or an error.
    #[test]
    fn a_damaged_file_never_panics(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>()) {
        let (dir, config) = folder(|_| {});
        let path = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        // Damage to the header is what matters; data may be anything.
        let header_len = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        for (at, byte) in flips {
            let at = at.index(header_len);
            bytes[at] = byte;
        }
        if cut.index(2) == 0 {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(weights) = WeightFiles::open(dir.path()) {
            let _ = weights.check(&config);
            for name in weights.names() {
                if let Ok(view) = weights.tensor(name) {
                    prop_assert_eq!(view.bytes().len(), view.shape.iter().product::<usize>() * view.dtype.size());
                }
            }
        }
    }
}
