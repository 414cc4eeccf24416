//! The names of a block's tensors, and what is said when they do not fit.

use sterna_model::{BlockParams, ModelError};
use tch::{Device, Kind, Tensor};

use crate::tiny::Tiny;

fn tensors(tiny: &Tiny) -> Vec<Tensor> {
    let specs = tiny.config.arch.layers[1].params.iter();
    specs.map(|spec| tiny.tensors[&spec.name].shallow_clone()).collect()
}

/// Of a layer without experts.
fn params(tiny: &Tiny, tensors: Vec<Tensor>) -> Result<BlockParams, ModelError> {
    let layer = &tiny.config.arch.layers[1];
    let all: Vec<usize> = (0..layer.params.len()).collect();
    BlockParams::new(layer, &all, tensors)
}

#[test]
fn a_tensor_of_the_wrong_shape_is_named() {
    let tiny = Tiny::fixture("llama_tied");
    let mut tensors = tensors(&tiny);
    tensors[2] = Tensor::zeros([13, 36], (Kind::Float, Device::Cpu));
    let error = params(&tiny, tensors).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`model.layers.1.self_attn.k_proj.weight` has shape `[13, 36]`, and must have `[12, 36]`"
    );
}

#[test]
fn a_missing_tensor_is_counted() {
    let tiny = Tiny::fixture("qwen3");
    let mut tensors = tensors(&tiny);
    tensors.pop();
    let error = params(&tiny, tensors).unwrap_err();
    assert!(matches!(error, ModelError::ParamCount { found: 10, required: 11 }), "{error}");
}

#[test]
fn a_token_outside_the_vocabulary_is_named() {
    let tiny = Tiny::fixture("llama_tied");
    let embed = &tiny.tensors["model.embed_tokens.weight"];
    let error = sterna_model::embed::forward(&tiny.config.arch, embed, &[5, 64]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`input_ids` at position `1` of the shard is `64`, and must be at least 0 and below vocab_size `64`"
    );
    assert!(error.hint().is_some());
}
/// Several tiles of rows, with padding in each, against the sum written out.
#[test]
fn the_gradient_of_the_embedding_leaves_padding_out() {
    let mut arch = Tiny::fixture("llama_tied").config.arch;
    (arch.vocab_size, arch.hidden_size, arch.embed.pad_token_id) = (5, 1 << 18, Some(2));
    let ids: Vec<i64> = (0..11).map(|row| row * 3 % 5).collect();
    let d_x = Tensor::randn([11, 1 << 18], (Kind::Double, Device::Cpu));
    let expected = Tensor::ones([5, 1 << 18], (Kind::Double, Device::Cpu));
    for (row, id) in ids.iter().enumerate() {
        if *id == 2 {
            // What comes back for padding means nothing, and may be anything.
            let _ = d_x.get(row as i64).fill_(f64::NAN);
        } else {
            let _ = expected.get(*id).g_add_(&d_x.get(row as i64));
        }
    }
    let d_x_before = d_x.copy();
    let mut actual = expected.ones_like();
    sterna_model::embed::backward(&arch, None, &mut actual, &ids, &d_x).unwrap();
    let difference = (actual - expected).abs().max().double_value(&[]);
    assert!(difference < 1e-13, "differs by {difference:e}");
    assert!(d_x.allclose(&d_x_before, 0.0, 0.0, true), "the gradient of `x` is the caller's");
}
