//! The plan counts what the engine does: the same head split, the same flat buffers.

use sterna_hf::ModelConfig;
use sterna_model::HeadSplit;
use sterna_recipe::{DeviceType, Plan, head_split};
use sterna_train::zero::UnitLayout;

use crate::tiny;

#[test]
fn heads_are_split_as_planned() {
    for (num_heads, num_kv_heads) in [(9, 3), (4, 1), (32, 8), (64, 8), (28, 4)] {
        for sp_size in 1..=num_heads {
            let of_model =
                HeadSplit::of_all_ranks(num_heads, num_kv_heads, sp_size).expect("enough heads");
            for (rank, split) in of_model.into_iter().enumerate() {
                let planned = head_split(num_heads, num_kv_heads, sp_size, rank);
                assert_eq!(
                    (split.q, split.kv),
                    (planned.q, planned.kv),
                    "{num_heads}/{num_kv_heads} on {sp_size}"
                );
            }
        }
    }
}

#[test]
fn units_are_laid_out_as_planned() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for world_size in [1, 2, 3] {
        let mut recipe = tiny::recipe(folder.path());
        recipe["deepspeed"]["zero_optimization"]["stage"] = 3.into();
        let recipe = tiny::load(folder.path(), "plan", &recipe);
        let config = ModelConfig::from_dir(&folder.path().join("model")).expect("a config");
        let plan = Plan::new(&recipe, &config, world_size, DeviceType::Cpu).expect("a plan");
        let parameters = config.parameters();
        let head = [parameters.norm].into_iter().chain(parameters.lm_head).collect();
        let units = [vec![parameters.embed]].into_iter().chain(parameters.layers).chain([head]);
        let lens: Vec<(usize, usize)> = units
            .map(|specs| UnitLayout::new(specs, world_size))
            .map(|unit| {
                unit.flats
                    .iter()
                    .fold((0, 0), |sum, flat| (sum.0 + flat.len, sum.1 + flat.shard_len))
            })
            .collect();
        let planned = plan.zero.units.iter();
        let planned: Vec<_> =
            planned.flat_map(|unit| vec![(unit.padded_len, unit.shard_len); unit.count]).collect();
        assert_eq!(lens, planned, "{world_size} ranks");
    }
}
