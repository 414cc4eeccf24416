//! Logits, loss and every gradient against transformers; the fixtures are written by `golden/make_model_golden.py`.

use tch::{Kind, Tensor};

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
    assert_fp32("auxiliary loss", (outcome.aux_loss - tiny.aux_loss).abs());
    for (param, grad) in &outcome.grads {
        assert_fp32(param, grad_error(param, grad, expected));
    }

    let outcome = tiny.run(&comm, &tiny.batch, How { kind: Kind::BFloat16, ..How::PLAIN });
    let mut ratios = Vec::new();
    let squares = tiny.bf16_errors.values().map(|error| error * error).sum::<f64>();
    let usual = (squares / tiny.bf16_errors.len() as f64).sqrt();
    let mut assert_bf16 = |what: &str, actual: &Tensor, error: f64| {
        let of_transformers = tiny.bf16_errors[&size_of_terms(what)];
        if error == 0.0 && of_transformers == 0.0 {
            // An expert that no token takes has no gradient.
            return;
        }
        // The error of a single number may be anything down to none: it is held against that of the others.
        let of_transformers =
            if actual.numel() == 1 { of_transformers.max(usual) } else { of_transformers };
        assert!(
            error <= BF16_OF_ONE_TENSOR * of_transformers,
            "{name}: {what} in bf16 is off by {error:e}, transformers by {of_transformers:e}"
        );
        ratios.push(error / of_transformers);
    };
    assert_bf16(
        "logits",
        &outcome.logits,
        relative_error(&outcome.logits, &tiny.tensors["logits"]),
    );
    if tiny.bf16_errors.contains_key("aux_loss") {
        let error = (outcome.aux_loss / tiny.aux_loss - 1.0).abs();
        assert_bf16("aux_loss", &Tensor::from(outcome.aux_loss), error);
    }
    for (param, grad) in &outcome.grads {
        assert_bf16(param, grad, grad_error(param, grad, expected));
    }
    let mean_square = ratios.iter().map(|ratio| ratio * ratio).sum::<f64>() / ratios.len() as f64;
    assert!(
        mean_square.sqrt() <= BF16_OF_TRANSFORMERS,
        "{name}: in bf16 the errors are {} times those of transformers",
        mean_square.sqrt()
    );
}

/// A test for each fixture; what each is for is said where it is made.
macro_rules! goldens {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*

        /// The names of all fixtures.
        const FIXTURES: &[&str] = &[$(stringify!($name)),*];
    };
}

goldens! {
    apertus,
    arcee,
    cohere,
    cohere2,
    deepseek_v2,
    deepseek_v2_lite,
    deepseek_v3,
    deepseek_v3_halves,
    dots1,
    ernie4_5,
    ernie4_5_moe,
    exaone4,
    exaone4_full,
    gemma,
    gemma2,
    gemma2_uncapped,
    gemma3_text,
    gemma4_text,
    gemma4_text_biased,
    gemma4_text_moe,
    gemma_gelu,
    glm,
    glm4,
    glm4_moe,
    glm4_moe_lite,
    gpt_oss,
    granite,
    granitemoe,
    helium,
    hunyuan_v1_dense,
    hunyuan_v1_dense_alpha,
    hunyuan_v1_moe,
    llama_biased,
    llama_tied,
    minimax_m2,
    ministral3,
    ministral3_window,
    mistral4,
    mistral_window,
    mixtral,
    mixtral_idle,
    muse_glimmer_text,
    nemotron,
    olmo,
    olmo2,
    olmo3,
    olmo_unclipped,
    olmoe,
    phi3,
    phi3_long,
    phi3_short,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_5_moe_text,
    qwen3_5_text,
    qwen3_5_text_biased,
    qwen3_moe,
    qwen3_moe_dense,
    qwen3_moe_unnormed,
    qwen3_next,
    rope_dynamic,
    rope_linear,
    rope_llama3,
    rope_yarn,
    seed_oss,
    smollm3,
    stablelm,
    stablelm_parallel,
    starcoder2,
    starcoder2_unbiased,
    vaultgemma,
}

#[test]
fn every_fixture_has_a_test() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, FIXTURES);
}
