//! Hidden states of more than 2^31 elements: what each step does at the far end is what it does on a copy of those rows.
//!
//! ```text
//! cargo xtask test --large
//! ```
//!
//! 9 GB at the most: two such tensors in bf16. Each step is compared in three places: at the beginning, around element 2^31, and
//! at the end. An index of 32 bits goes wrong in the last two.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use sterna_arch::HeadSplit;
use sterna_arch::ModelConfig;
use sterna_comm::{Comm, RankEnv};
use sterna_model::head::{self, HeadGrads, HeadParams};
use sterna_model::parallel::ulysses::{Exchange, HeadToSeq, Heads, Part, SeqToHead};
use sterna_model::{IGNORE_INDEX, embed};
use sterna_ops::tile::tiles;
use sterna_ops::{rms_norm, rope, swiglu};
use tch::{Device, Kind, Tensor};

const HIDDEN: i64 = 576;
const NUM_HEADS: i64 = 9;
/// Rows of the hidden states: 2^31 elements end within row 3,728,270.
const NUM_TOKENS: i64 = 3_740_000;
/// Rows that are compared in each place.
const NUM_ROWS: i64 = 64;

/// First rows of the three places.
fn places() -> [i64; 3] {
    [0, (1_i64 << 31) / HIDDEN - NUM_ROWS / 2, NUM_TOKENS - NUM_ROWS]
}

fn rows(x: &Tensor, start: i64) -> Tensor {
    x.narrow(0, start, NUM_ROWS)
}

/// `[tokens, d]` in bf16; no two rows near each other are equal, nor are two that lie 2^31 or 2^32 elements apart.
fn hidden_states() -> Tensor {
    let block_len = 50_021;
    let block = Tensor::randn([block_len, HIDDEN], (Kind::BFloat16, Device::Cpu));
    let x = Tensor::empty([NUM_TOKENS, HIDDEN], (Kind::BFloat16, Device::Cpu));
    assert!(x.numel() > 1 << 31);
    for (tile_idx, tile) in tiles(NUM_TOKENS, block_len).enumerate() {
        let len = tile.end - tile.start;
        let rolled = block.roll([tile_idx as i64 * 977], [0]);
        x.narrow(0, tile.start, len).copy_(&rolled.narrow(0, 0, len));
    }
    x
}

/// A model whose vocabulary has `vocab_size` rows.
fn config(vocab_size: i64) -> ModelConfig {
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": NUM_HEADS, "num_key_value_heads": 3, "vocab_size": vocab_size,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "pad_token_id": 0,
    });
    ModelConfig::from_json(&config.to_string(), Path::new("large")).unwrap()
}

#[track_caller]
fn assert_rows(name: &str, x: &Tensor, expected: impl Fn(i64) -> Tensor) {
    for start in places() {
        let (found, expected) = (rows(x, start), expected(start));
        assert_eq!(found.size(), expected.size(), "{name}");
        assert!(found == expected, "{name}: rows from {start} differ");
    }
}

#[test]
#[ignore = "9 GB and minutes: `cargo xtask test --large`"]
fn large_norm_activation_and_rotation() {
    let x = hidden_states();
    let weight = Tensor::randn([HIDDEN], (Kind::BFloat16, Device::Cpu));
    let norm = |x: &Tensor| rms_norm::forward(x, &weight, 1e-5);
    assert_rows("norm", &norm(&x), |start| norm(&rows(&x, start)));
    let d_x = |x: &Tensor| rms_norm::backward(x, x, &weight, 1e-5, None);
    assert_rows("gradient of the norm", &d_x(&x), |start| d_x(&rows(&x, start)));
    assert_rows("activation", &swiglu::forward(&x, &x), |start| {
        let x = rows(&x, start);
        swiglu::forward(&x, &x)
    });
    // Tiles of heads, as attention's inputs are made: views of the whole.
    let y = x.view([NUM_TOKENS, NUM_HEADS, HIDDEN / NUM_HEADS]).copy();
    let turned = |tokens: &Tensor, start: i64| {
        let positions =
            Tensor::arange_start(start, start + tokens.size()[0], (Kind::Int64, Device::Cpu));
        let table = rope::RopeTable::new(
            &positions,
            sterna_arch::RopeLayout::Halves,
            &[0.5; 32],
            1.0,
            Kind::BFloat16,
        );
        rope::forward(tokens, &table)
    };
    for tile in tiles(NUM_TOKENS, 1 << 16) {
        let mut part = y.narrow(0, tile.start, tile.end - tile.start);
        part.copy_(&turned(&part, tile.start));
    }
    assert_rows("rotation", &y, |start| {
        turned(&rows(&x, start).view([NUM_ROWS, NUM_HEADS, HIDDEN / NUM_HEADS]), start)
    });
}

/// A group of one rank takes its own message: all of it goes through the collective, in the layout of two ranks' heads.
#[test]
#[ignore = "9 GB and minutes: `cargo xtask test --large`"]
fn large_exchange() {
    let comm = Comm::init(&RankEnv::single(), 1, Duration::from_mins(10)).unwrap();
    let x = hidden_states().view([NUM_TOKENS, NUM_HEADS, HIDDEN / NUM_HEADS]);
    let numel = x.numel() as i64;
    let received = x.empty_like().view(-1);
    let sent = x.view(-1);
    comm.sp().all_to_all_single(&received, &sent, &[numel], &[numel]).unwrap().wait().unwrap();
    let received = received.view([NUM_TOKENS, NUM_HEADS, HIDDEN / NUM_HEADS]);
    assert_rows("all-to-all", &received, |start| rows(&x, start));
    drop((received, sent));

    let heads = HeadSplit::of_all_ranks(NUM_HEADS as usize, 3, 1).unwrap();
    let exchange = Exchange {
        group: comm.sp(),
        heads: &heads,
        num_rows: 1,
        shard_len: NUM_TOKENS,
        kind: Kind::BFloat16,
        device: Device::Cpu,
    };
    let queries = Part { heads: Heads::Query, head_dim: HIDDEN / NUM_HEADS };
    let mut outgoing = SeqToHead::new(exchange, &[queries]);
    for tile in tiles(NUM_TOKENS, 1 << 20) {
        outgoing.put(0, tile.start, &x.narrow(0, tile.start, tile.end - tile.start));
    }
    let arrived = outgoing.all_to_all().unwrap().pop().unwrap();
    assert_rows("heads of all tokens", &arrived, |start| rows(&x, start));
    let back = HeadToSeq::all_to_all(exchange, vec![(queries, arrived)]).unwrap();
    for start in places() {
        assert!(back.tile(0, &(start..start + NUM_ROWS)) == rows(&x, start), "back, from {start}");
    }
}

#[test]
#[ignore = "9 GB and minutes: `cargo xtask test --large`"]
fn large_loss_with_labels_at_the_far_end() {
    let vocab_size = 128;
    let config = config(vocab_size);
    let x = hidden_states();
    let params = HeadParams {
        own: vec![
            Tensor::randn([HIDDEN], (Kind::BFloat16, Device::Cpu)),
            Tensor::randn([vocab_size, HIDDEN], (Kind::BFloat16, Device::Cpu)) * 0.05,
        ],
        embedding: None,
    };
    let run = |x: &Tensor, labels: &[i64]| {
        let zeros = |shape: &[i64]| Some(Tensor::zeros(shape, (Kind::Float, Device::Cpu)));
        let mut grads = HeadGrads {
            own: vec![zeros(&[HIDDEN]), zeros(&[vocab_size, HIDDEN])],
            embedding: None,
        };
        let num_labels = labels.iter().filter(|label| **label != IGNORE_INDEX).count() as i64;
        let weights = Tensor::full([num_labels], 0.01, (Kind::Double, Device::Cpu));
        let (loss, d_x) =
            head::loss_and_backward(&config.arch, &params, &mut grads, x, labels, &weights, 1024)
                .unwrap();
        (loss.sum, d_x, grads.own.remove(1).unwrap())
    };
    let mut labels = vec![IGNORE_INDEX; NUM_TOKENS as usize];
    for row in places().iter().flat_map(|start| *start..start + NUM_ROWS) {
        labels[row as usize] = row * 31 % vocab_size;
    }
    let near: Vec<Tensor> = places().iter().map(|start| rows(&x, *start)).collect();
    let near_labels: Vec<i64> =
        labels.iter().copied().filter(|label| *label != IGNORE_INDEX).collect();
    let (expected_loss, expected_d_x, expected_d_head) = run(&Tensor::cat(&near, 0), &near_labels);
    let (loss, d_x, d_head) = run(&x, &labels);
    assert_eq!(loss, expected_loss);
    assert!(d_head == expected_d_head, "the gradient of the head");
    for (place_idx, start) in places().into_iter().enumerate() {
        let expected = expected_d_x.narrow(0, place_idx as i64 * NUM_ROWS, NUM_ROWS);
        assert!(rows(&d_x, start) == expected, "d_x from row {start}");
    }
}

#[test]
#[ignore = "9 GB and minutes: `cargo xtask test --large`"]
fn large_embedding_rows() {
    // A table of more than 2^31 elements, looked up and added to at its far end.
    let config = config(NUM_TOKENS);
    let ids: Vec<i64> = places().iter().flat_map(|start| *start..start + NUM_ROWS).collect();
    let table = hidden_states();
    let found = embed::forward(&config.arch, &table, &ids).unwrap();
    for (place_idx, start) in places().into_iter().enumerate() {
        let place = found.narrow(0, place_idx as i64 * NUM_ROWS, NUM_ROWS);
        assert!(place == rows(&table, start), "rows from {start}");
    }
    let mut d_table = table.zeros_like();
    embed::backward(&config.arch, None, &mut d_table, &ids, &found).unwrap();
    assert_rows("gradient of the table", &d_table, |start| {
        let expected = rows(&table, start).copy();
        if start == 0 {
            // Padding has no gradient.
            let _ = expected.get(0).zero_();
        }
        expected
    });
    drop((table, d_table));

    // Gradients of more than 2^31 elements, whose last rows alone are not padding.
    let config = self::config(64);
    let d_x = hidden_states();
    let mut ids = vec![0; NUM_TOKENS as usize];
    for (id, row) in (NUM_TOKENS - 63..NUM_TOKENS).enumerate() {
        ids[row as usize] = id as i64 + 1;
    }
    let mut d_weight = Tensor::zeros([64, HIDDEN], (Kind::Float, Device::Cpu));
    embed::backward(&config.arch, None, &mut d_weight, &ids, &d_x).unwrap();
    let expected = d_x.narrow(0, NUM_TOKENS - 63, 63).to_kind(Kind::Float);
    assert!(d_weight.narrow(0, 1, 63) == expected, "the last rows");
    assert!(d_weight.get(0).count_nonzero(None).int64_value(&[]) == 0, "padding");
}
