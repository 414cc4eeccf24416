//! Sampler, train/eval split and padding against torch, datasets and the reference; shards against their law.

use proptest::prelude::*;
use sterna_data::{
    Collator, IGNORE_INDEX, MicroBatch, Sample, prepare::train_test_split,
    sampler::DistributedSampler,
};
use sterna_recipe::PadTo;

use crate::support::fixture;

#[test]
fn sampler_is_torchs() {
    let golden = fixture("orders.json");
    let cases = golden["sampler"].as_array().unwrap();
    assert_eq!(cases.len(), 42);
    for case in cases {
        let world_size = case["world_size"].as_u64().unwrap() as usize;
        let sampler = DistributedSampler::new(case["len"].as_u64().unwrap() as usize, world_size);
        let ranks: Vec<Vec<usize>> = (0..world_size)
            .map(|rank| (0..sampler.len()).map(|position| sampler.sample(rank, position)).collect())
            .collect();
        assert_eq!(serde_json::json!(ranks), case["ranks"], "{} of {world_size}", case["len"]);
    }
}

#[test]
fn train_test_split_is_that_of_datasets() {
    for case in fixture("orders.json")["train_test_split"].as_array().unwrap() {
        let len = case["len"].as_u64().unwrap() as usize;
        let (train, eval) = train_test_split(len, case["fraction"].as_f64().unwrap(), 42).unwrap();
        assert_eq!(serde_json::json!(train), case["train"]);
        assert_eq!(serde_json::json!(eval), case["test"]);
    }
    assert!(train_test_split(1, 0.5, 42).is_err());
}

#[test]
fn padding_is_the_references() {
    for case in fixture("pads.json").as_array().unwrap() {
        let rows: Vec<Vec<u32>> = serde_json::from_value(case["rows"].clone()).unwrap();
        let samples: Vec<Sample> = rows
            .iter()
            .map(|row| Sample {
                input_ids: row.clone(),
                labels: row.iter().map(|&id| id as i32).collect(),
                // The fixture's positions restart after the first token.
                position_ids: std::iter::once(0).chain(0..row.len() as u32 - 1).collect(),
                seqlens: vec![1, row.len() - 1],
            })
            .collect();
        let kwargs = &case["kwargs"];
        let collator = Collator {
            pad_token_id: 77,
            pad_to: if kwargs["max_seq"].is_null() { PadTo::DivLength } else { PadTo::MaxLength },
            div_length: kwargs["divisible_by"].as_u64().unwrap_or(1) as usize,
            max_length: kwargs["max_seq"].as_u64().unwrap_or(0) as usize,
            sp_size: 1,
        };
        let batch = collator.collate(&samples).unwrap();
        let shaped =
            |values: &[i64]| serde_json::json!(values.chunks(batch.len).collect::<Vec<_>>());
        assert_eq!(shaped(&batch.input_ids), case["input_ids"]);
        assert_eq!(shaped(&batch.labels), case["labels"]);
        assert_eq!(shaped(&batch.position_ids), case["position_ids"]);
    }
}

#[test]
fn the_length_of_a_padded_row_is_known_from_the_longest_sample() {
    let sample = |len: usize| Sample {
        input_ids: vec![1; len],
        labels: vec![1; len],
        position_ids: (0..len as u32).collect(),
        seqlens: vec![len],
    };
    for (pad_to, sp_size, required) in [
        (PadTo::DivLength, 1, 12),
        (PadTo::DivLength, 5, 15),
        (PadTo::MaxLength, 1, 20),
        (PadTo::MaxLength, 3, 21),
    ] {
        let collator = Collator { pad_token_id: 7, pad_to, div_length: 4, max_length: 20, sp_size };
        assert_eq!(collator.padded_len(9).unwrap(), required);
        assert_eq!(collator.collate(&[sample(3), sample(9)]).unwrap().len, required);
    }
}

#[test]
fn padding_refuses_a_sample_that_does_not_fit() {
    let sample = Sample {
        input_ids: vec![1; 9],
        labels: vec![1; 9],
        position_ids: (0..9).collect(),
        seqlens: vec![9],
    };
    let collator = Collator {
        pad_token_id: 0,
        pad_to: PadTo::MaxLength,
        div_length: 1,
        max_length: 8,
        sp_size: 1,
    };
    let error = collator.collate(&[sample]).unwrap_err();
    assert_eq!(error.to_string(), "a sample has `9` tokens, required: at most max_length `8`");
}

/// DeepSpeed's own example, `tests/unit/ulysses_alst/test_ulysses_sp_hf.py`.
#[test]
fn shards_are_deepspeeds() {
    let ids = vec![1, 10, 10, 10, 2, 2];
    let batch = MicroBatch {
        input_ids: ids.clone(),
        labels: ids,
        position_ids: (0..6).collect(),
        rows: 1,
        len: 6,
        packed_sample_seqlens: vec![vec![6]],
    };
    let (first, second) = (batch.shard(2, 0), batch.shard(2, 1));
    assert_eq!((first.input_ids, first.position_ids), (vec![1, 10, 10], vec![0, 1, 2]));
    assert_eq!(first.shift_labels, [10, 10, 10]);
    assert_eq!((second.input_ids, second.position_ids), (vec![10, 2, 2], vec![3, 4, 5]));
    assert_eq!(second.shift_labels, [2, 2, IGNORE_INDEX]);
}

fn micro_batch() -> impl Strategy<Value = MicroBatch> {
    let documents = prop::collection::vec(prop::collection::vec(1_usize..7, 1..5), 1..4);
    (documents, 1_usize..6).prop_map(|(rows, sp_size)| {
        let samples: Vec<Sample> = rows
            .into_iter()
            .map(|seqlens| {
                let len: usize = seqlens.iter().sum();
                Sample {
                    input_ids: (100..100 + len as u32).collect(),
                    labels: (0..len as i32).map(|i| if i % 3 == 0 { -100 } else { i }).collect(),
                    position_ids: seqlens.iter().flat_map(|&len| 0..len as u32).collect(),
                    seqlens,
                }
            })
            .collect();
        let collator = Collator {
            pad_token_id: 7,
            pad_to: PadTo::DivLength,
            div_length: 4,
            max_length: 0,
            sp_size,
        };
        collator.collate(&samples).unwrap()
    })
}

/// As TRL's: the replies of the batch moved on by one, over all rows.
#[test]
fn mismatched_replies_are_those_of_the_prompt_before() {
    let none = IGNORE_INDEX as i32;
    // Two replies in the first row, with an empty sample beside each; one in the second.
    let samples = [
        Sample {
            input_ids: vec![1, 2, 30, 31, 3, 32],
            labels: vec![none, none, 30, none, none, 32],
            position_ids: vec![0, 1, 2, 3, 0, 1],
            seqlens: vec![4, 0, 0, 2],
        },
        Sample {
            input_ids: vec![4, 5, 6, 33, 34],
            labels: vec![none, none, none, 33, 34],
            position_ids: vec![0, 1, 2, 3, 4],
            seqlens: vec![0, 5],
        },
    ];
    let collator = Collator {
        pad_token_id: 9,
        pad_to: PadTo::DivLength,
        div_length: 1,
        max_length: 16,
        sp_size: 1,
    };
    let batch = collator.collate(&samples).unwrap();
    let mismatched = collator.mismatched(&batch).unwrap();
    assert_eq!(mismatched.packed_sample_seqlens, [vec![4, 0, 0, 3], vec![0, 4]]);
    let rows: Vec<_> = mismatched.input_ids.chunks(mismatched.len).collect();
    assert_eq!(rows, [[1, 2, 33, 34, 3, 30, 31], [4, 5, 6, 32, 9, 9, 9]]);
    let labels: Vec<_> = mismatched.labels.chunks(mismatched.len).collect();
    let none = IGNORE_INDEX;
    assert_eq!(
        labels,
        [[none, none, 33, 34, none, 30, none], [none, none, none, 32, none, none, none]]
    );
    assert_eq!(mismatched.position_ids, [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(mismatched.num_labels_of_samples(), [2, 0, 0, 1, 0, 1]);
    // A row stays as long as the recipe says, and its prompts stay whole.
    let short = Collator { pad_to: PadTo::MaxLength, max_length: 6, ..collator };
    let mismatched = short.mismatched(&batch).unwrap();
    assert_eq!(mismatched.packed_sample_seqlens, [vec![4, 0, 0, 2], vec![0, 4]]);
    assert_eq!(mismatched.input_ids[..6], [1, 2, 33, 34, 3, 30]);
}

proptest! {
    #[test]
    fn shards_put_together_are_the_whole(mut batch in micro_batch(), sp_size in 1_usize..6) {
        batch.pad_to_multiple(sp_size, 7);
        let shards: Vec<_> = (0..sp_size).map(|sp_rank| batch.shard(sp_size, sp_rank)).collect();
        let joined = |of: fn(&sterna_data::SeqShard) -> &Vec<i64>| -> Vec<i64> {
            (0..batch.rows)
                .flat_map(|row| shards.iter().flat_map(move |shard| of(shard)[row * shard.len..][..shard.len].to_vec()))
                .collect()
        };
        prop_assert_eq!(joined(|shard| &shard.input_ids), batch.input_ids.clone());
        prop_assert_eq!(joined(|shard| &shard.position_ids), batch.position_ids.clone());
        prop_assert_eq!(joined(|shard| &shard.shift_labels), batch.shift_labels());
        let valid = batch.shift_labels().iter().filter(|&&label| label != IGNORE_INDEX).count();
        prop_assert_eq!(batch.num_valid_tokens(), valid);
    }

    #[test]
    fn documents_tile_the_batch_and_begin_where_samples_do(batch in micro_batch()) {
        let documents = batch.documents();
        prop_assert_eq!(documents.first().map(|document| document.start), Some(0));
        prop_assert_eq!(documents.last().map(|document| document.end), Some(batch.rows * batch.len));
        prop_assert!(documents.windows(2).all(|pair| pair[0].end == pair[1].start));
        for (row, seqlens) in batch.packed_sample_seqlens.iter().enumerate() {
            let mut start = row * batch.len;
            for seqlen in seqlens {
                prop_assert!(documents.iter().any(|document| document.start == start));
                start += seqlen;
            }
        }
        // Nothing but samples and at most one run of padding a row.
        let samples: usize = batch.packed_sample_seqlens.iter().map(Vec::len).sum();
        prop_assert!(documents.len() <= samples + batch.rows);
    }
}
