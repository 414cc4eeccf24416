//! The plan counts what the engine allocates: the same flat buffers.

use sterna_arch::{ModelConfig, UnitLayout};
use sterna_recipe::{DeviceType, Plan};

use crate::tiny;

#[test]
fn units_are_laid_out_as_planned() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for world_size in [1, 2, 3] {
        let mut recipe = tiny::recipe(folder.path());
        recipe["deepspeed"]["zero_optimization"]["stage"] = 3.into();
        let recipe = tiny::load(folder.path(), "plan", &recipe);
        let config = ModelConfig::from_dir(&folder.path().join("model")).expect("a config");
        let plan = Plan::new(&recipe, &config, world_size, DeviceType::Cpu).expect("a plan");
        let units = config.arch.units();
        let lens: Vec<(usize, usize)> = units
            .map(|(_, specs)| UnitLayout::new(specs.to_vec(), world_size))
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
