//! The plan counts what the engine allocates: the same flat buffers.

use serde_json::json;
use sterna_arch::{UnitLayout, units::UnitKind};
use sterna_plan::{DeviceType, Plan};

use crate::tiny;

#[test]
fn units_are_laid_out_as_planned() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let moe = folder.path().join("moe");
    tiny::write_experts(&moe, 5);
    // Two experts of a weight of 128 elements thrice, in fp32: of five, one, two and two are gathered at once.
    let of_two = 2 * 3 * 128 * 4;
    for world_size in [1, 2, 3] {
        for (model, num_groups) in [(None, 0), (Some(&moe), 9)] {
            let mut recipe = tiny::recipe(folder.path());
            recipe["deepspeed"]["zero_optimization"]["stage"] = 3.into();
            recipe["memory"] = json!({"expert_group_bytes": of_two});
            if let Some(model) = model {
                recipe["model"]["name_or_path"] = json!(model);
            }
            let recipe = tiny::load(folder.path(), "plan", &recipe);
            let dir = model.cloned().unwrap_or_else(|| folder.path().join("model"));
            let config = recipe.model_config(&dir, None).expect("a config");
            let plan = Plan::new(&recipe, &config, world_size, DeviceType::Cpu).expect("a plan");
            let of_flats = |unit: &UnitLayout| {
                let sum = |sum: (usize, usize), (len, shard_len)| (sum.0 + len, sum.1 + shard_len);
                unit.all_flats().map(|flat| (flat.len, flat.shard_len)).fold((0, 0), sum)
            };
            let units = config.arch.units();
            let layouts = units.all().iter();
            let layouts = layouts.map(|unit| UnitLayout::new(unit, world_size));
            let mut lens: Vec<(usize, usize)> = layouts.map(|layout| of_flats(&layout)).collect();
            let planned = plan.zero.units.iter();
            let mut planned: Vec<_> = planned
                .flat_map(|unit| vec![(unit.padded_len, unit.shard_len); unit.count])
                .collect();
            lens.sort_unstable();
            planned.sort_unstable();
            assert_eq!(lens, planned, "{world_size} ranks");
            let experts = units.all().iter().filter(|unit| unit.kind == UnitKind::Experts);
            assert_eq!(experts.count(), num_groups);
        }
    }
}
