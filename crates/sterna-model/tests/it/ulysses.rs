//! The exchange around attention against plain slices of the whole tensors.

use sterna_arch::HeadSplit;
use sterna_model::parallel::ulysses::{Exchange, HeadToSeq, Heads, Part, SeqToHead};
use sterna_testkit::spawn_ranks;
use tch::{Device, Kind, Tensor};

use crate::tiny::together;

/// Tokens of one rank.
const SHARD_LEN: i64 = 4;
/// What travels together: heads that are all as wide, and others.
const PARTS: [Part; 3] = [
    Part { heads: Heads::Query, head_dim: 2 },
    Part { heads: Heads::KeyValue, head_dim: 2 },
    Part { heads: Heads::KeyValue, head_dim: 3 },
];

/// `[b * s, heads, h]`, every element another whole number.
fn numbered(num_tokens: i64, num_heads: i64, head_dim: i64) -> Tensor {
    Tensor::arange(num_tokens * num_heads * head_dim, (Kind::Float, Device::Cpu))
        .view([num_tokens, num_heads, head_dim])
}

/// Sends queries, keys and values of `n` and `k` heads there and back on `world_size` ranks.
fn there_and_back(world_size: usize, num_rows: i64, n: usize, k: usize) {
    spawn_ranks(world_size, |_| {
        let comm = together(world_size);
        let (p, rank) = (world_size as i64, comm.sp().rank());
        let heads = HeadSplit::of_all_ranks(n, k, world_size).unwrap();
        let exchange = Exchange {
            group: comm.sp(),
            heads: &heads,
            num_rows,
            shard_len: SHARD_LEN,
            kind: Kind::Float,
            device: Device::Cpu,
        };
        let whole = PARTS.map(|part| {
            let num_heads = if part.heads == Heads::Query { n } else { k };
            numbered(num_rows * p * SHARD_LEN, num_heads as i64, part.head_dim)
        });
        // Of each row, this rank has the tokens from rank * s/p on.
        let local = whole.each_ref().map(|x| {
            let size = x.size();
            let rows = x.view([num_rows, p * SHARD_LEN, size[1], size[2]]);
            let own = rows.narrow(1, rank as i64 * SHARD_LEN, SHARD_LEN);
            own.reshape([num_rows * SHARD_LEN, size[1], size[2]])
        });

        let mut outgoing = SeqToHead::new(exchange, &PARTS);
        for (part_idx, x) in local.iter().enumerate() {
            outgoing.put(part_idx, 0, &x.narrow(0, 0, 3));
            outgoing.put(part_idx, 3, &x.narrow(0, 3, num_rows * SHARD_LEN - 3));
        }
        let arrived = outgoing.all_to_all().unwrap();
        let own = [&heads[rank].q, &heads[rank].kv, &heads[rank].kv];
        for ((x, whole), own) in arrived.iter().zip(&whole).zip(own) {
            let expected = whole.narrow(1, own.start as i64, own.len() as i64);
            assert!(*x == expected, "rank {rank} has its heads of all tokens");
        }

        let travellers = PARTS.into_iter().zip(arrived.iter().map(Tensor::contiguous)).collect();
        let back = HeadToSeq::all_to_all(exchange, travellers).unwrap();
        for (part_idx, x) in local.iter().enumerate() {
            // A kv head comes back once from each rank that had it, and the copies add up.
            let copies: Vec<f32> = (0..x.size()[1] as usize)
                .map(|head| match PARTS[part_idx].heads {
                    Heads::Query => 1.0,
                    Heads::KeyValue => {
                        heads.iter().filter(|split| split.kv.contains(&head)).count() as f32
                    }
                })
                .collect();
            let expected = x * Tensor::from_slice(&copies).view([-1, 1]);
            assert!(
                back.tile(part_idx, &(1..3)) == expected.narrow(0, 1, 2),
                "rank {rank}, part {part_idx}"
            );
        }
    });
}

#[test]
fn nine_heads_on_two_ranks_share_a_kv_head() {
    there_and_back(2, 1, 9, 3);
}

#[test]
fn one_kv_head_goes_to_three_ranks() {
    there_and_back(3, 1, 4, 1);
}

#[test]
fn rows_keep_their_tokens() {
    there_and_back(2, 3, 4, 2);
}
