//! The head by itself: a weight for each label.

use sterna_model::IGNORE_INDEX;
use sterna_model::head::{self, HeadGrads, HeadParams};
use tch::{Device, Kind, Tensor};

use crate::tiny::Tiny;

/// Labels of other weights, in tiles that begin anywhere: `d/dx` of the weighted sum is the sum of those of each label alone, and losses
/// are in the order of the labels.
#[test]
fn each_label_has_its_own_weight_whatever_the_tile() {
    let tiny = Tiny::fixture("llama_tied");
    let arch = &tiny.config.arch;
    let weight = |name: &str| tiny.tensors[name].to_kind(Kind::Double);
    let params = HeadParams {
        own: arch.head.params.iter().map(|spec| weight(&spec.name)).collect(),
        embedding: Some(weight(&arch.embed.weight.name)),
    };
    tch::manual_seed(3);
    let f64s = (Kind::Double, Device::Cpu);
    let x = Tensor::randn([9, arch.hidden_size as i64], f64s);
    let labels = [3, IGNORE_INDEX, 5, 7, IGNORE_INDEX, 11, 2, 0, 63];
    let places: Vec<usize> = (0..9).filter(|&row| labels[row] != IGNORE_INDEX).collect();
    let run = |labels: &[i64], weights: &Tensor, tile_len: i64| {
        let zeros = |x: &Tensor| Some(x.zeros_like());
        let mut grads = HeadGrads {
            own: params.own.iter().map(zeros).collect(),
            embedding: params.embedding.as_ref().and_then(zeros),
        };
        let (loss, d_x) =
            head::loss_and_backward(arch, &params, &mut grads, &x, labels, weights, tile_len)
                .unwrap();
        (loss.sum.double_value(&[]), d_x, grads.embedding.unwrap())
    };
    let weights = Tensor::randn([places.len() as i64], f64s);
    let one = Tensor::ones([1], f64s);
    let (mut d_x, mut d_embedding) = (x.zeros_like(), weight(&arch.embed.weight.name).zeros_like());
    for (label_idx, &row) in places.iter().enumerate() {
        let mut alone = [IGNORE_INDEX; 9];
        alone[row] = labels[row];
        let (loss, d_x_alone, d_embedding_alone) = run(&alone, &one, 9);
        let weight = weights.double_value(&[label_idx as i64]);
        d_x += d_x_alone * weight;
        d_embedding += d_embedding_alone * weight;
        for tile_len in [1, 2, 3, 9] {
            let losses = head::loss(arch, &params, &x, &labels, tile_len).unwrap();
            let of_label = losses.of_labels.double_value(&[label_idx as i64]);
            assert!((of_label - loss).abs() < 1e-12, "{of_label} of label {label_idx}, not {loss}");
        }
    }
    for tile_len in [1, 2, 3, 9] {
        let (_, of_tiles, of_embedding) = run(&labels, &weights, tile_len);
        for (actual, expected) in [(of_tiles, &d_x), (of_embedding, &d_embedding)] {
            let difference = (actual - expected).abs().max().double_value(&[]);
            assert!(difference < 1e-12, "tiles of {tile_len}: {difference:e}");
        }
    }
}
