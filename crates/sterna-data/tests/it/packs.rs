//! Packing against the reference's own `pack_dataset` over datasets' `map` (`golden/make_data_reference.py`), and its laws.

use proptest::prelude::*;
use serde_json::Value;
use sterna_data::{
    pack::{PackRule, Packs, pack_global, pack_reference, repeat_to_max_length, slice_reference},
    rng::numpy_permutation,
};

use crate::support::fixture;

fn rule(keys: &Value) -> PackRule {
    PackRule {
        max_length: keys["max_length"].as_u64().unwrap() as usize,
        always_max_length: keys["always_max_length"].as_bool().unwrap(),
        drop_last: keys["drop_last"].as_bool().unwrap(),
        fuse_positions_prob: keys["fuse_positions_prob"].as_f64().unwrap(),
        seed: keys["seed"].as_u64().unwrap(),
    }
}

#[test]
fn slices_of_texts_are_the_references() {
    let cases = fixture("slices.json");
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 10);
    for case in cases {
        let lengths: Vec<u32> = serde_json::from_value(case["lengths"].clone()).unwrap();
        let key = |key: &str| case["keys"][key].as_u64().unwrap();
        let order = numpy_permutation(key("seed"), lengths.len());
        let shuffled: Vec<u32> = order.into_iter().map(|place| place as u32).collect();
        let max_length = key("max_length") as u32;
        let (rows, left_over) =
            slice_reference(&shuffled, &lengths, key("num_proc") as usize, max_length);
        // Texts of no tokens cannot be read off the reference's rows.
        let read_off = |row: &Vec<sterna_data::pack::Slice>| -> Vec<[u32; 3]> {
            let slices = row.iter().filter(|slice| slice.len > 0);
            slices.map(|slice| [slice.sample, slice.start, slice.len]).collect()
        };
        let rows: Vec<_> = rows.iter().map(read_off).collect();
        let golden: Vec<Vec<[u32; 3]>> = serde_json::from_value(case["rows"].clone()).unwrap();
        assert_eq!(rows, golden, "{}", case["keys"]);
        let total: u64 = lengths.iter().map(|len| u64::from(*len)).sum();
        assert_eq!(total, (rows.len() as u64) * u64::from(max_length) + left_over);
    }
}

#[test]
fn packs_are_the_references() {
    let cases = fixture("packs.json");
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 12);
    for case in cases {
        let lengths: Vec<u32> = serde_json::from_value(case["lengths"].clone()).unwrap();
        let (keys, rule) = (&case["keys"], rule(&case["keys"]));
        let mut samples: Vec<u32> = (0..lengths.len() as u32).collect();
        if keys["repeat_to_pack_max_length"] == true {
            samples = repeat_to_max_length(&samples, &lengths, rule.max_length);
        }
        let shuffled: Vec<u32> = numpy_permutation(rule.seed, samples.len())
            .into_iter()
            .map(|place| samples[place])
            .collect();
        let packs =
            pack_reference(&shuffled, &lengths, keys["num_proc"].as_u64().unwrap() as usize, &rule);
        let golden = case["packs"].as_array().unwrap();
        assert_eq!(packs.len(), golden.len(), "{keys}");
        for (i, golden) in golden.iter().enumerate() {
            let members: Vec<u32> = serde_json::from_value(golden["members"].clone()).unwrap();
            assert_eq!(packs.members(i), members, "pack {i} of {keys}");
            // A pack of one sample has the same positions either way; the fixture says false for it.
            assert_eq!(
                packs.is_fused(i) && members.len() > 1,
                golden["fused"] == true,
                "pack {i} of {keys}"
            );
        }
    }
}

fn all_members(packs: &Packs) -> Vec<u32> {
    (0..packs.len()).flat_map(|i| packs.members(i).iter().copied()).collect()
}

fn pack_len(packs: &Packs, lengths: &[u32], i: usize) -> usize {
    packs.members(i).iter().map(|&sample| lengths[sample as usize] as usize).sum()
}

proptest! {
    #[test]
    fn global_packing_loses_nothing_exceeds_nothing_and_leaves_no_room(
        lengths in prop::collection::vec(1_u32..50, 1..3000),
        max_length in 50_usize..20_000,
    ) {
        let rule = PackRule { max_length, always_max_length: false, drop_last: false, fuse_positions_prob: 0.0, seed: 42 };
        let samples: Vec<u32> = (0..lengths.len() as u32).rev().collect();
        let packs = pack_global(&samples, &lengths, &rule);
        prop_assert_eq!(all_members(&packs), samples);
        for i in 0..packs.len() {
            let len = pack_len(&packs, &lengths, i);
            prop_assert!(len <= max_length);
            if i + 1 < packs.len() {
                let next = lengths[packs.members(i + 1)[0] as usize] as usize;
                prop_assert!(len + next > max_length, "pack {} of {} tokens had room for {}", i, len, next);
            }
        }
    }

    #[test]
    fn reference_packing_loses_nothing(
        lengths in prop::collection::vec(1_u32..50, 1..3000),
        num_proc in 1_usize..20,
        always_max_length: bool,
    ) {
        let rule = PackRule { max_length: 200, always_max_length, drop_last: false, fuse_positions_prob: 0.2, seed: 1 };
        let samples: Vec<u32> = (0..lengths.len() as u32).collect();
        prop_assert_eq!(all_members(&pack_reference(&samples, &lengths, num_proc, &rule)), samples);
    }
}

/// The reference caps a pack at 1000 samples; global packing is there to go past it.
#[test]
fn only_global_packing_fills_millions_of_tokens() {
    let lengths = vec![1200_u32; 5000];
    let samples: Vec<u32> = (0..5000).collect();
    let rule = PackRule {
        max_length: 3_800_000,
        always_max_length: false,
        drop_last: false,
        fuse_positions_prob: 0.0,
        seed: 42,
    };
    let capped = pack_reference(&samples, &lengths, 1, &rule);
    assert_eq!(pack_len(&capped, &lengths, 0), 1_200_000);
    let filled = pack_global(&samples, &lengths, &rule);
    assert_eq!(pack_len(&filled, &lengths, 0), 3_799_200);
}
