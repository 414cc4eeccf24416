//! The text decoders of multimodal checkpoints: logits against transformers' multimodal classes (`golden/make_wrappers.py`).

use std::path::Path;

use sterna_arch::ModelConfig;

use crate::tiny::{Batch, How, Tiny, alone, read_tensors, relative_error};

/// Single precision in another order of summation.
const FP32: f64 = 3e-6;

#[test]
fn decoders_compute_what_their_wrappers_do() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wrappers");
    let mut num_checked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let tensors = read_tensors(&folder.join("model.safetensors"));
        let config =
            ModelConfig::from_dir(&folder).unwrap_or_else(|error| panic!("{name}: {error}"));
        let config = config.named_as_in(|tensor| tensors.contains_key(tensor));
        let mut golden = read_tensors(&folder.join("golden.safetensors"));
        let input_ids = Vec::<i64>::try_from(golden.remove("input_ids").unwrap().view(-1)).unwrap();
        let logits = golden.remove("logits").unwrap();
        let logits = logits.view([input_ids.len() as i64, -1]);
        let batch = Batch {
            shift_labels: input_ids.clone(),
            lengths: vec![input_ids.len() as i64],
            input_ids,
            num_rows: 1,
        };
        let tiny =
            Tiny { config, tensors, batch, loss: 0.0, aux_loss: 0.0, bf16_errors: [].into() };
        let error = relative_error(&tiny.run(&alone(), &tiny.batch, How::PLAIN).logits, &logits);
        assert!(error <= FP32, "{name}: logits are off by {error:e}");
        num_checked += 1;
    }
    assert_eq!(num_checked, 9);
}
