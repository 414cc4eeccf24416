//! No recipe is a panic: it is planned or told what is wrong, with the line shown.

use std::{fs, path::Path};

use proptest::prelude::*;
use sterna_arch::ModelConfig;
use sterna_plan::{DeviceType, Plan};
use sterna_recipe::{Override, parse};

/// Values that reach every branch of some reader.
const VALUES: [&str; 16] = [
    "0",
    "-1",
    "1e99",
    "3.8M",
    "281474976710655",
    "1.5",
    "~",
    "yes",
    "text",
    "a:b",
    "[]",
    "[1, 2]",
    "{}",
    "{enabled: true}",
    "2001-12-14",
    "\"*\"",
];

fn model() -> ModelConfig {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/smollm2-135m.json");
    ModelConfig::from_json(&fs::read_to_string(&path).unwrap(), &path).unwrap()
}

proptest! {
    #[test]
    fn any_value_of_any_key_is_read_or_explained(
        picks in prop::collection::vec((any::<prop::sample::Index>(), 0..VALUES.len()), 1..4),
        world_size in 0usize..9,
    ) {
        let keys = sterna_recipe::keys();
        let texts = picks.iter().map(|(key, value)| {
            let key = keys[key.index(keys.len())].path.replace("[]", "[0]");
            format!("{key}={}", VALUES[*value])
        });
        let overrides: Vec<Override> = texts.map(|text| text.parse().unwrap()).collect();
        let text = "model: {name_or_path: folder}\ndata: {sources: [{name_or_path: chats}]}\n";
        let planned = parse(Path::new("recipe.yaml"), text, &overrides)
            .and_then(|recipe| Plan::new(&recipe, &model(), world_size, DeviceType::Cpu));
        match planned {
            Ok(plan) => prop_assert!(plan.memory.device_bytes() > 0 && !plan.to_string().is_empty()),
            Err(errors) => prop_assert!(errors.to_string().starts_with("error: ")),
        }
    }
}
