//! Tokenizers give the ids, offsets and special tokens that transformers' `AutoTokenizer` gives.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};
use sterna_hf::{Conversation, Error, Message, Tokenizer};

use crate::{fixture, golden, real_inputs};

/// Compares with what `golden/make_hf_tokenizer.py` measured; no line may differ.
fn check(dir: &Path, golden: &Value) {
    let name = dir.display();
    let tokenizer = Tokenizer::from_dir(dir).unwrap();
    let lines = crate::golden("lines.json");
    let lines = lines.as_array().unwrap();
    let encoded = golden["encoded"].as_array().unwrap();
    assert!(lines.len() > 100 && lines.len() == encoded.len());
    for (line, required) in lines.iter().zip(encoded) {
        let line = line.as_str().unwrap();
        let found = tokenizer.encode(line).unwrap();
        let ids: Vec<u32> = serde_json::from_value(required["ids"].clone()).unwrap();
        assert_eq!(found.ids, ids, "{name}: ids of {line:?}");
        let offsets: Vec<usize> = serde_json::from_value(required["offsets"].clone()).unwrap();
        let offsets: Vec<(usize, usize)> =
            offsets.chunks(2).map(|pair| (pair[0], pair[1])).collect();
        assert_eq!(found.offsets, offsets, "{name}: offsets of {line:?}");
        let decoded = required.get("decoded").and_then(Value::as_str).unwrap_or(line);
        assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{name}");
    }

    let id = |key: &str| golden[key].as_u64().map(|id| id as u32);
    assert_eq!(tokenizer.bos_token_id(), id("bos_token_id"), "{name}");
    assert_eq!(tokenizer.eos_token_id(), id("eos_token_id"), "{name}");
    // transformers leaves the token out, and the trainer that we follow sets it to this.
    let pad = id("pad_token_id").or(id("eos_token_id"));
    assert_eq!(Some(tokenizer.pad_token_id()), pad, "{name}");
    assert_eq!(tokenizer.vocab_size() as u64, golden["vocab_size"].as_u64().unwrap(), "{name}");
    for (role, token) in golden["special_tokens"].as_object().unwrap() {
        if let Some(token) = token.as_str() {
            assert_eq!(tokenizer.special_token(role), Some(token), "{name}: {role}");
        }
    }
    let special_ids: Vec<u32> = serde_json::from_value(golden["all_special_ids"].clone()).unwrap();
    for id in special_ids {
        assert!(tokenizer.special_token_ids().contains(&id), "{name}: special id {id}");
    }
}

/// One test for each folder of `tests/fixtures/tokenizers`.
macro_rules! small_tokenizers {
    ($($test:ident: $folder:literal,)*) => {$(
        #[test]
        fn $test() {
            let dir = fixture("tokenizers").join($folder);
            check(&dir, &golden(concat!("tokenizers/", $folder, "/golden.json")));
        }
    )*};
}

small_tokenizers! {
    byte_level_with_tokens_of_the_config: "gpt2",
    byte_level_with_the_defaults_of_its_class: "gpt2-defaults",
    byte_level_with_a_prefix_space_of_the_config: "gpt2-prefix",
    metaspace_with_a_legacy_special_tokens_map: "llama",
    pattern_with_normalization_and_nulls: "qwen2",
}

#[test]
fn the_real_smollm2_tokenizer() {
    check(&real_inputs().join("SmolLM2-135M-Instruct"), &golden("smollm2.json"));
}

#[test]
fn the_templates_of_a_config_render_with_its_special_tokens() {
    let messages = vec![Message::new("user", "hi"), Message::new("assistant", "yo")].into();
    let render = |name: &str| {
        Tokenizer::from_dir(&fixture("tokenizers").join(name))
            .unwrap()
            .render_chat(&messages, false)
    };
    assert_eq!(render("gpt2").unwrap(), "user: hi<|im_end|>assistant: yo<|im_end|>");
    // Of a list of named templates, the one named default.
    assert_eq!(render("gpt2-defaults").unwrap(), "hi<|endoftext|><pad>");
    let error = render("llama").unwrap_err();
    assert!(matches!(error, Error::NoChatTemplate { .. }) && error.hint().is_some(), "{error}");
}

/// A copy of a small tokenizer's folder, to change.
fn copy_of(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture("tokenizers").join(name).join(file), dir.path().join(file)).unwrap();
    }
    dir
}

fn edit_config(dir: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let path = dir.join("tokenizer_config.json");
    let mut config: Map<String, Value> =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, serde_json::to_string(&config).unwrap()).unwrap();
}

#[test]
fn a_template_file_wins_over_the_config() {
    let dir = copy_of("gpt2");
    fs::write(dir.path().join("chat_template.jinja"), "file {{ messages | length }}\n").unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.render_chat(&Conversation::default(), false).unwrap(), "file 0");
}

#[test]
fn a_broken_template_is_refused_when_the_folder_is_opened() {
    let dir = copy_of("gpt2");
    fs::write(dir.path().join("chat_template.jinja"), "{% for %}").unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap_err();
    assert!(matches!(error, Error::TemplateSyntax { .. }), "{error:?}");
    assert!(error.to_string().contains("chat_template.jinja"), "{error}");
}

#[test]
fn without_padding_or_end_token_there_is_nothing_to_pad_with() {
    let dir = copy_of("gpt2");
    edit_config(dir.path(), |config| {
        config.insert("eos_token".to_owned(), Value::Null);
        config.insert("pad_token".to_owned(), Value::Null);
    });
    let error = Tokenizer::from_dir(dir.path()).unwrap_err();
    assert!(
        error.to_string().contains("key `pad_token` is missing, and so is `eos_token`"),
        "{error}"
    );
}

#[test]
fn special_tokens_of_the_wrong_kind_are_named() {
    let dir = copy_of("gpt2");
    edit_config(dir.path(), |config| {
        config.insert("bos_token".to_owned(), Value::from(3));
    });
    let error = Tokenizer::from_dir(dir.path()).unwrap_err();
    assert!(error.to_string().contains("key `bos_token` is `3`, required: a string"), "{error}");
}

#[test]
fn a_config_is_not_needed_if_the_file_says_enough() {
    let dir = copy_of("gpt2");
    fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
    let map = r#"{"eos_token": {"content": "<|im_end|>"}}"#;
    fs::write(dir.path().join("special_tokens_map.json"), map).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!((tokenizer.eos_token_id(), tokenizer.pad_token_id()), (Some(2), 2));
}

#[test]
fn slow_and_missing_and_broken_tokenizers_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Tokenizer::from_dir(dir.path()).unwrap_err();
    assert!(matches!(open(), Error::MissingFile { .. }));
    fs::write(dir.path().join("tokenizer.model"), "sentencepiece").unwrap();
    let error = open();
    assert!(matches!(error, Error::SlowTokenizer { .. }) && error.hint().is_some(), "{error:?}");
    assert!(error.to_string().contains("tokenizer.model"), "{error}");
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(matches!(open(), Error::Tokenizer { .. }));
}
