//! Logits, loss and every gradient against transformers; the fixtures are written by `golden/make_model_golden.py`.

use tch::Kind;

use crate::tiny::{How, Tiny, alone, grad_error, relative_error, size_of_terms};

/// Single precision in another order of summation: two layers deep, relative to the norm of the tensor.
const FP32: f64 = 3e-6;
/// bf16 keeps 8 bits, so two implementations that round at different places differ by as much as each differs from the exact
/// result. Transformers' own error is in the fixture; ours, root mean square over the tensors of a model, may be 1.3 times that.
/// Measured over the models here, with products of a processor's bf16 instructions and in fp32: 0.65 to 1.05 and 0.65 to 1.22.
const BF16_OF_TRANSFORMERS: f64 = 1.3;
/// The error of a single tensor is one draw of that noise, and the other order of sums of another processor draws again: the largest
/// of 181 tensors was 1.48 and 1.83 times transformers'. A term that is wrong or missing makes tens.
const BF16_OF_ONE_TENSOR: f64 = 2.5;

fn check(name: &str) {
    let tiny = Tiny::fixture(name);
    let comm = alone();

    let outcome = tiny.run(&comm, &tiny.batch, How::PLAIN);
    let expected = |param: &str| &tiny.tensors[&format!("grad.{param}")];
    let assert_fp32 = |what: &str, error: f64| {
        assert!(error <= FP32, "{name}: {what} is off by {error:e}, more than {FP32:e}");
    };
    assert_fp32("logits", relative_error(&outcome.logits, &tiny.tensors["logits"]));
    assert_fp32("loss", (outcome.loss / tiny.loss - 1.0).abs());
    for (param, grad) in &outcome.grads {
        assert_fp32(param, grad_error(param, grad, expected));
    }

    let outcome = tiny.run(&comm, &tiny.batch, How { kind: Kind::BFloat16, ..How::PLAIN });
    let mut ratios = Vec::new();
    let mut assert_bf16 = |what: &str, error: f64| {
        let of_transformers = tiny.bf16_errors[&size_of_terms(what)];
        assert!(
            error <= BF16_OF_ONE_TENSOR * of_transformers,
            "{name}: {what} in bf16 is off by {error:e}, transformers by {of_transformers:e}"
        );
        ratios.push(error / of_transformers);
    };
    assert_bf16("logits", relative_error(&outcome.logits, &tiny.tensors["logits"]));
    for (param, grad) in &outcome.grads {
        assert_bf16(param, grad_error(param, grad, expected));
    }
    let mean_square = ratios.iter().map(|ratio| ratio * ratio).sum::<f64>() / ratios.len() as f64;
    assert!(
        mean_square.sqrt() <= BF16_OF_TRANSFORMERS,
        "{name}: in bf16 the errors are {} times those of transformers",
        mean_square.sqrt()
    );
}

#[test]
fn llama_with_tied_head_and_nine_heads() {
    check("llama_tied");
}

#[test]
fn llama_with_every_bias() {
    check("llama_biased");
}

#[test]
fn mistral_with_a_sliding_window() {
    check("mistral_window");
}

#[test]
fn qwen2_with_biases_and_one_kv_head() {
    check("qwen2");
}

#[test]
fn qwen3_with_query_and_key_norms() {
    check("qwen3");
}

#[test]
fn seed_oss_with_biases_on_some_projections() {
    check("seed_oss");
}

#[test]
fn smollm3_with_a_block_without_rotary_embeddings() {
    check("smollm3");
}

#[test]
fn granite_with_its_multipliers() {
    check("granite");
}

#[test]
fn rope_scaled_linearly() {
    check("rope_linear");
}

#[test]
fn rope_scaled_dynamically() {
    check("rope_dynamic");
}

#[test]
fn rope_scaled_by_yarn() {
    check("rope_yarn");
}

#[test]
fn rope_scaled_as_llama3() {
    check("rope_llama3");
}
