//! The same model and batch computed in other ways: more ranks, tiles, other things kept.

use sterna_model::Keep;
use sterna_testkit::spawn_ranks;
use tch::Kind;

use crate::tiny::{Batch, How, Tiny, alone, assert_same, together};

/// Double precision summed in another order.
const F64: f64 = 1e-12;
/// Single precision, two layers deep, against double.
const F32: f64 = 5e-6;

const KEEP_ATTENTION: Keep = Keep { attention: true, graph: false };
const KEEP_ALL: Keep = Keep { attention: true, graph: true };

/// One for each thing that ranks, groups or tiles could get wrong: nine query heads on three kv heads; biases; a window; one kv head for
/// all ranks; norms on queries and keys over a head, over all heads, with a row or a tensor for each, and after the rotary embedding;
/// softcaps; clamps; two rotary embeddings; norms on outputs; branches side by side; fused projections; trained activations; heads that
/// differ between layers, and values that are keys; queries that grow with their position; gates on outputs; experts, with one of all
/// tokens, chosen by probabilities, or by sigmoids with a bias and among groups, in tensors of their own or in one; latents of keys and
/// values, with one of queries or without; delta nets with two and with three value heads on a key head, and gates whose rows alternate
/// with those of queries; sinks; transposed experts with biases; delta nets whose projections lie key head by key head; experts beside an MLP,
/// with norms of their own.
const MODELS: [&str; 41] = [
    "llama_tied",
    "llama_biased",
    "mistral_window",
    "qwen2",
    "qwen3",
    "gpt_oss",
    "granite",
    "granitemoe",
    "seed_oss",
    "smollm3",
    "apertus",
    "cohere",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v3_halves",
    "dots1",
    "ernie4_5_moe",
    "exaone4",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "gemma4_text_moe",
    "glm4_moe",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "minimax_m2",
    "ministral3",
    "mistral4",
    "mixtral",
    "muse_glimmer_text",
    "olmo",
    "olmo2",
    "olmoe",
    "phi3",
    "qwen2_moe",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_5_text_biased",
    "qwen3_moe",
    "qwen3_next",
    "stablelm_parallel",
];

fn double() -> How {
    How { kind: Kind::Double, ..How::PLAIN }
}

#[test]
fn what_is_kept_changes_nothing() {
    for name in MODELS {
        let tiny = Tiny::fixture(name);
        let expected = tiny.run(&alone(), &tiny.batch, How::PLAIN);
        for keep in [KEEP_ATTENTION, KEEP_ALL] {
            let kept = tiny.run(&alone(), &tiny.batch, How { keep, ..How::PLAIN });
            // The same operations on the same numbers: not a bit differs.
            assert_same(&format!("{name}, {keep:?}"), &kept, &expected, 0.0);
        }
    }
}

#[test]
fn tiles_change_nothing_but_the_order_of_sums() {
    for name in MODELS {
        let tiny = Tiny::fixture(name);
        let expected = tiny.run(&alone(), &tiny.batch, double());
        // 24 tokens: one a tile, uneven tiles, even tiles.
        for tile_len in [1, 7, 12] {
            for keep in [How::PLAIN.keep, KEEP_ATTENTION, KEEP_ALL] {
                let tiled = tiny.run(&alone(), &tiny.batch, How { tile_len, keep, ..double() });
                assert_same(
                    &format!("{name}, tiles of {tile_len}, {keep:?}"),
                    &tiled,
                    &expected,
                    F64,
                );
            }
        }
    }
}

#[test]
fn groups_of_heads_change_nothing_but_the_order_of_sums() {
    for name in MODELS {
        let tiny = Tiny::fixture(name);
        let expected = tiny.run(&alone(), &tiny.batch, double());
        for num_groups in 2..=tiny.config.arch.fewest_heads() {
            for keep in [How::PLAIN.keep, KEEP_ATTENTION, KEEP_ALL] {
                let how = How { num_groups, tile_len: 7, keep, ..double() };
                let grouped = tiny.run(&alone(), &tiny.batch, how);
                assert_same(
                    &format!("{name}, {num_groups} groups, {keep:?}"),
                    &grouped,
                    &expected,
                    F64,
                );
            }
        }
    }
}

#[test]
fn tiles_of_queries_change_nothing_but_the_order_of_sums() {
    for name in MODELS {
        let tiny = Tiny::fixture(name);
        let expected = tiny.run(&alone(), &tiny.batch, double());
        for query_tile_len in [1, 5, 8, 24] {
            for (num_groups, keep) in [(1, How::PLAIN.keep), (2, KEEP_ATTENTION), (1, KEEP_ALL)] {
                let query_tile_len = Some(query_tile_len);
                let how = How { num_groups, query_tile_len, keep, ..double() };
                let streamed = tiny.run(&alone(), &tiny.batch, how);
                assert_same(
                    &format!("{name}, {query_tile_len:?} queries, {num_groups} groups, {keep:?}"),
                    &streamed,
                    &expected,
                    F64,
                );
            }
        }
    }
}

/// The order of sums is that of the experts, whatever their groups.
#[test]
fn groups_of_experts_change_nothing() {
    for name in [
        "deepseek_v3",
        "dots1",
        "ernie4_5_moe",
        "glm4_moe",
        "mixtral",
        "olmoe",
        "qwen2_moe",
        "qwen3_moe",
    ] {
        let mut tiny = Tiny::fixture(name);
        for (tile_len, keep) in [(1 << 20, How::PLAIN.keep), (7, KEEP_ATTENTION), (5, KEEP_ALL)] {
            let how = How { tile_len, keep, ..How::PLAIN };
            tiny.config.arch.group_experts(usize::MAX);
            let expected = tiny.run(&alone(), &tiny.batch, how);
            // One expert, and two or three.
            for max_elements in [0, 3 << 10] {
                tiny.config.arch.group_experts(max_elements);
                let grouped = tiny.run(&alone(), &tiny.batch, how);
                assert_same(&format!("{name}, {max_elements}"), &grouped, &expected, 0.0);
            }
        }
    }
}

/// Every model on `world_size` ranks, against one rank.
fn ranks_change_nothing(world_size: usize) {
    spawn_ranks(world_size, |_| {
        let (comm, alone) = (together(world_size), alone());
        for name in MODELS {
            let tiny = Tiny::fixture(name);
            let num_tokens = tiny.batch.input_ids.len();
            if tiny.config.arch.fewest_heads() < world_size
                || !num_tokens.is_multiple_of(world_size)
            {
                continue;
            }
            let expected = tiny.run(&alone, &tiny.batch, double());
            let most_groups = tiny.config.arch.fewest_heads() / world_size;
            for (tile_len, num_groups, query_tile_len, keep) in [
                (1 << 20, 1, None, How::PLAIN.keep),
                (5, 1, None, KEEP_ATTENTION),
                (3, 1, Some(7), How::PLAIN.keep),
                (5, 1, None, KEEP_ALL),
                (5, most_groups, Some(5), KEEP_ATTENTION),
                (3, most_groups, None, How::PLAIN.keep),
                (1 << 20, most_groups.min(2), Some(9), KEEP_ALL),
            ] {
                let how = How { tile_len, num_groups, query_tile_len, keep, ..double() };
                let split = tiny.run(&comm, &tiny.batch, how);
                assert_same(
                    &format!("{name}, tiles of {tile_len}, {num_groups} groups, {keep:?}"),
                    &split,
                    &expected,
                    F64,
                );
            }
            let single = tiny.run(&comm, &tiny.batch, How { keep: KEEP_ATTENTION, ..How::PLAIN });
            assert_same(&format!("{name}, fp32"), &single, &expected, F32);
        }
    });
}

#[test]
fn two_ranks_change_nothing() {
    ranks_change_nothing(2);
}

#[test]
fn three_ranks_change_nothing() {
    ranks_change_nothing(3);
}

/// More ranks than kv heads: every kv head is needed by two ranks or more.
#[test]
fn four_ranks_change_nothing() {
    ranks_change_nothing(4);
}

#[test]
fn rows_of_a_micro_batch_stay_apart_on_two_ranks() {
    spawn_ranks(2, |_| {
        let (comm, alone) = (together(2), alone());
        let tiny = Tiny::fixture("llama_tied");
        let flat = Batch { lengths: vec![5, 7, 12], ..tiny.batch.clone() };
        let rows = Batch { num_rows: 2, ..flat.clone() };
        // Rows are documents that never meet, so two rows are the same as one row twice as long.
        let expected = tiny.run(&alone, &flat, double());
        for keep in [How::PLAIN.keep, KEEP_ATTENTION] {
            assert_same(
                "one rank",
                &tiny.run(&alone, &rows, How { keep, ..double() }),
                &expected,
                F64,
            );
            assert_same(
                "two ranks",
                &tiny.run(&comm, &rows, How { keep, ..double() }),
                &expected,
                F64,
            );
        }
    });
}

/// A delta net keeps a state for every 1,024 tokens of a document but the first: here two of the first document and one of the last.
#[test]
fn states_of_long_documents_are_kept_on_two_ranks() {
    spawn_ranks(2, |_| {
        let (comm, alone) = (together(2), alone());
        let tiny = Tiny::fixture("qwen3_5_text_biased");
        let numbers =
            |factor: i64| (0..3300_i64).map(|token| token * token * factor % 61).collect();
        let batch = Batch {
            input_ids: numbers(7),
            shift_labels: numbers(11),
            lengths: vec![2060, 40, 1200],
            num_rows: 1,
        };
        let expected = tiny.run(&alone, &batch, double());
        for (tile_len, num_groups, keep) in
            [(1 << 20, 1, KEEP_ATTENTION), (500, 3, KEEP_ATTENTION), (700, 1, KEEP_ALL)]
        {
            let how = How { tile_len, num_groups, keep, ..double() };
            assert_same("one rank", &tiny.run(&alone, &batch, how), &expected, F64);
            let how = How { num_groups: 1, ..how };
            assert_same("two ranks", &tiny.run(&comm, &batch, how), &expected, F64);
        }
    });
}

#[test]
fn a_rank_without_labels_adds_nothing() {
    spawn_ranks(2, |_| {
        let (comm, alone) = (together(2), alone());
        let tiny = Tiny::fixture("qwen2");
        let mut batch = tiny.batch.clone();
        batch.shift_labels[..12].fill(-100);
        let expected = tiny.run(&alone, &batch, double());
        assert!(expected.loss.is_finite());
        assert_same("two ranks", &tiny.run(&comm, &batch, double()), &expected, F64);
    });
}
