//! Random orders against those of the libraries themselves (`golden/make_data_rng.py`).

use std::fmt::Write;

use serde_json::Value;
use sha2::{Digest, Sha256};
use sterna_data::rng::{PythonRandom, numpy_permutation, torch_randperm};

fn golden() -> Value {
    serde_json::from_str(include_str!("../fixtures/rng.json")).unwrap()
}

fn check(name: &str, make: impl Fn(u64, usize, &Value) -> Vec<usize>) {
    let golden = golden();
    let cases = golden[name].as_array().unwrap();
    assert!(cases.len() > 40, "{name}: {} cases", cases.len());
    for case in cases {
        let (seed, len) = (case["seed"].as_u64().unwrap(), case["len"].as_u64().unwrap() as usize);
        let order = make(seed, len, case);
        let head: Vec<u64> = order.iter().take(8).map(|&i| i as u64).collect();
        assert_eq!(serde_json::json!(head), case["head"], "{name}: seed {seed}, length {len}");
        let bytes: Vec<u8> = order.iter().flat_map(|&i| (i as u64).to_le_bytes()).collect();
        let mut digest = String::new();
        for byte in Sha256::digest(&bytes) {
            write!(digest, "{byte:02x}").unwrap();
        }
        assert_eq!(case["sha256"], digest, "{name}: seed {seed}, length {len}");
    }
}

#[test]
fn numpy_permutation_is_numpys() {
    check("numpy_permutation", |seed, len, _| numpy_permutation(seed, len));
}

#[test]
fn torch_randperm_is_torchs() {
    check("torch_randperm", |seed, len, _| torch_randperm(seed, len));
}

#[test]
fn python_sample_is_pythons() {
    check("python_sample", |seed, len, case| {
        PythonRandom::new(seed).sample(len, case["count"].as_u64().unwrap() as usize)
    });
}

#[test]
fn python_random_is_pythons() {
    for case in golden()["python_random"].as_array().unwrap() {
        let mut random = PythonRandom::new(case["seed"].as_u64().unwrap());
        for value in case["values"].as_array().unwrap() {
            assert_eq!(
                (random.random() * 2_f64.powi(53)) as u64,
                value.as_u64().unwrap(),
                "{case}"
            );
        }
    }
}
