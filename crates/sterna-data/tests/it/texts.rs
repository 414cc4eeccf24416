//! `type: causal`: texts without turns.

use std::fs;

use serde_json::{Value, json};
use sterna_data::{Datasets, Error, IGNORE_INDEX, prepare};
use sterna_hf::Tokenizer;

use crate::support::{fixture, real_inputs, recipe_from_json};

struct Place {
    folder: tempfile::TempDir,
    tokenizer: Tokenizer,
}

impl Place {
    fn new() -> Self {
        let tokenizer = Tokenizer::from_dir(&real_inputs().join("SmolLM2-135M-Instruct")).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), tokenizer }
    }

    fn prepare(&self, rows: &[Value], source: &Value, data: &Value) -> Result<Datasets, Error> {
        let path = self.folder.path().join("texts.jsonl");
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        fs::write(&path, lines.join("\n")).unwrap();
        let mut recipe = json!({
            "type": "causal",
            "model": {"name_or_path": "SmolLM2-135M-Instruct", "dtype": "float32"},
            "data": {
                "sources": [{"name_or_path": path, "split": "train"}], "num_proc": 1,
                "cache_dir": self.folder.path().join("cache"),
            },
        });
        for (key, value) in source.as_object().unwrap() {
            recipe["data"]["sources"][0][key] = value.clone();
        }
        for (key, value) in data.as_object().unwrap() {
            recipe["data"][key] = value.clone();
        }
        prepare(&recipe_from_json(&recipe), 8192, &self.tokenizer, 1, &mut |_| ())
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        let bos_and_eos = [self.tokenizer.bos_token_id(), self.tokenizer.eos_token_id()];
        let [bos, eos] = bos_and_eos.map(Option::unwrap);
        [vec![bos], self.tokenizer.encode(text).unwrap().ids, vec![eos]].concat()
    }
}

fn rows_of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<Value> {
    texts.into_iter().map(|text| json!({"text": text})).collect()
}

/// From texts to rows, against the reference's own functions (`golden/make_data_reference.py`).
#[test]
fn rows_of_texts_are_the_references() {
    let golden = fixture("texts.json");
    let place = Place::new();
    let texts: Vec<String> = serde_json::from_value(golden["texts"].clone()).unwrap();
    let mut data = golden["keys"].clone();
    for label_mask in ["reference", "exact"] {
        data["label_mask"] = json!(label_mask);
        let source = json!({"type": "huggingface_causal"});
        let train = place
            .prepare(&rows_of(texts.iter().map(String::as_str)), &source, &data)
            .unwrap()
            .train;
        let rows: Vec<(Vec<u32>, Vec<usize>)> =
            serde_json::from_value(golden["rows"].clone()).unwrap();
        assert_eq!(train.len(), rows.len());
        for (index, (ids, seqlens)) in rows.iter().enumerate() {
            let sample = train.sample(index).unwrap();
            assert_eq!((&sample.input_ids, &sample.seqlens), (ids, seqlens), "row {index}");
            let mut labels: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
            if label_mask == "exact" {
                // Nothing before it is of its text.
                let mut start = 0;
                for len in seqlens {
                    labels[start] = IGNORE_INDEX as i32;
                    start += len;
                }
            }
            assert_eq!(sample.labels, labels, "row {index}");
        }
    }
}

#[test]
fn whole_texts_are_packed_and_longer_ones_become_windows() {
    let place = Place::new();
    let long = (0..40).map(|i| format!("line {i}")).collect::<Vec<_>>().join("\n");
    let texts = ["one", "two words", &long];
    let (rows, none) = (rows_of(texts), json!({}));
    let lens: Vec<usize> = texts.iter().map(|text| place.ids(text).len()).collect();
    let max_length = 50;
    assert!(lens[2] > 2 * max_length && !lens[2].is_multiple_of(max_length));
    let data = |more: Value| {
        let mut data = json!({"packing": "global", "max_length": max_length});
        for (key, value) in more.as_object().unwrap() {
            data[key] = value.clone();
        }
        data
    };
    let tokens = |data: Value| {
        let train = place.prepare(&rows, &none, &data).unwrap().train;
        (0..train.len()).map(|index| train.sample_len(index)).sum::<usize>()
    };
    assert_eq!(tokens(data(json!({}))), lens.iter().sum::<usize>(), "no token is lost");
    assert_eq!(tokens(data(json!({"excess_length": "drop"}))), lens[0] + lens[1]);
    assert_eq!(tokens(data(json!({"excess_length": "truncate"}))), lens[0] + lens[1] + max_length);
    assert!(matches!(
        place.prepare(&rows, &none, &data(json!({"excess_length": "raise"}))),
        Err(Error::TooLong { samples: 1, .. })
    ));
    // A row for each text or window.
    let train =
        place.prepare(&rows, &none, &data(json!({"pack_samples": false, "packing": "global"})));
    let train = train.unwrap().train;
    let mut ids: Vec<Vec<u32>> =
        (0..train.len()).map(|index| train.sample(index).unwrap().input_ids).collect();
    ids.sort();
    let windows = place.ids(&long);
    let mut expected: Vec<Vec<u32>> = windows.chunks(max_length).map(<[u32]>::to_vec).collect();
    expected.extend([place.ids("one"), place.ids("two words")]);
    expected.sort();
    assert_eq!(ids, expected);
}

#[test]
fn the_column_is_named_or_alone() {
    let place = Place::new();
    let data = json!({"max_length": 4});
    let ids = |rows: &[Value], source: Value| {
        let train = place.prepare(rows, &source, &data)?.train;
        Ok::<_, Error>(train.sample(0)?.input_ids)
    };
    let expected = place.ids("to be read")[..4].to_vec();
    let alone = [json!({"body": "to be read"})];
    assert_eq!(ids(&alone, json!({})).unwrap(), expected);
    let both = [json!({"body": "to be read", "title": "of something else"})];
    assert_eq!(ids(&both, json!({"column": "body"})).unwrap(), expected);
    assert_eq!(ids(&both, json!({"text_key": "body"})).unwrap(), expected);
    let error = ids(&both, json!({})).unwrap_err().to_string();
    assert!(error.contains("`text`") && error.contains("`body`"), "{error}");
    let nothing = place.prepare(&rows_of(["a"]), &json!({}), &json!({"max_length": 4000}));
    assert!(matches!(nothing, Err(Error::NoPackLeft { .. })), "a row is never filled");
}
