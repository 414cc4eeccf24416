//! Tiled work equals whole work, for any length and tile.

use proptest::prelude::*;
use sterna_ops::tile::tiles;
use sterna_ops::{cross_entropy, linear, rms_norm};
use tch::{Device, Kind, Tensor};

use crate::oracle::{AUTOGRAD, assert_close, random};

proptest! {
    #[test]
    fn tiles_cover_a_length_in_order(len in 0_i64..1 << 40, num_tiles in 1_i64..100) {
        let tile_len = (len / num_tiles).max(1);
        let all: Vec<_> = tiles(len, tile_len).collect();
        prop_assert_eq!(all.first().map_or(0, |tile| tile.start), 0);
        prop_assert_eq!(all.last().map_or(0, |tile| tile.end), len);
        prop_assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start));
        let lengths = || all.iter().map(|tile| tile.end - tile.start);
        prop_assert!(lengths().all(|len| 0 < len && len <= tile_len));
        prop_assert!(lengths().max().unwrap_or(0) - lengths().min().unwrap_or(0) <= 1);
        prop_assert_eq!(all.len() as i64, (len + tile_len - 1) / tile_len);
    }

    #[test]
    fn a_tiled_head_equals_a_whole_one(len in 1_i64..40, tile_len in 1_i64..45, seed in 0_u64..1000) {
        let (d, v) = (6, 11);
        let (x, norm, weight) = (random(&[len, d], seed), random(&[d], seed + 1), random(&[v, d], seed + 2));
        let labels: Vec<i64> =
            (0..len).map(|row| if (row as u64 + seed).is_multiple_of(4) { -100 } else { (row * 5) % v }).collect();
        let labels = Tensor::from_slice(&labels);
        let run = |tile_len: i64| {
            let mut grads = [Tensor::zeros([v, d], (Kind::Double, Device::Cpu)), Tensor::zeros([d], (Kind::Double, Device::Cpu))];
            let mut loss_sum = Tensor::from(0.0);
            let mut d_x = Vec::new();
            for tile in tiles(len, tile_len) {
                let x = x.narrow(0, tile.start, tile.end - tile.start);
                let h = rms_norm::forward(&x, &norm, 1e-6);
                let logits = linear::forward(&h, &weight, None);
                let labels = labels.narrow(0, tile.start, tile.end - tile.start);
                let weights = labels.ones_like().to_kind(Kind::Double) * 0.25;
                loss_sum += cross_entropy::forward_backward(&logits, &labels, &weights).sum;
                linear::backward_params(&logits, &h, Some(&mut grads[0]), None);
                let d_h = linear::backward_input(&logits, &weight);
                d_x.push(rms_norm::backward(&d_h, &x, &norm, 1e-6, Some(&mut grads[1])));
            }
            let [d_weight, d_norm] = grads;
            [loss_sum, Tensor::cat(&d_x, 0), d_weight, d_norm]
        };
        for (tiled, whole) in run(tile_len).iter().zip(&run(len)) {
            assert_close("tiled", tiled, whole, AUTOGRAD);
        }
    }
}
