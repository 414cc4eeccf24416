//! Every schedule against the learning rates that transformers' `get_scheduler` gives (`golden/make_train_schedules.py`).

use std::fs;

use serde_json::Value;
use sterna_train::optim::LrSchedule;

#[test]
fn learning_rates_are_those_of_transformers() {
    let golden: Value =
        serde_json::from_str(include_str!("../fixtures/schedules.json")).expect("valid JSON");
    let base_lr = golden["base_lr"].as_f64().expect("a number");
    let num_training_steps = golden["num_training_steps"].as_u64().expect("a number");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cases = golden["cases"].as_array().expect("a list");
    assert_eq!(cases.len(), 18);
    for case in cases {
        // JSON is YAML, so the arguments go into the recipe as they stand.
        let warmup_steps = case["num_warmup_steps"].as_u64().expect("a number");
        let recipe = format!(
            "model: {{name_or_path: tiny}}\n\
             data: {{sources: [tiny]}}\n\
             optimizer: {{lr: {base_lr}}}\n\
             scheduler: {{name: {}, warmup_ratio: {}, scheduler_specific_kwargs: {}}}\n",
            case["name"],
            warmup_steps as f64 / num_training_steps as f64,
            case["kwargs"]
        );
        let path = folder.path().join("recipe.yaml");
        fs::write(&path, &recipe).expect("written");
        let recipe =
            sterna_recipe::load(&path, &[]).unwrap_or_else(|error| panic!("{case}: {error}"));
        let schedule = LrSchedule::new(&recipe.scheduler, base_lr, num_training_steps);
        for (step, expected) in case["lr"].as_array().expect("a list").iter().enumerate() {
            let (actual, expected) =
                (schedule.lr(step as u64), expected.as_f64().expect("a number"));
            assert!(
                (actual - expected).abs() <= 1e-12 * base_lr.max(expected),
                "{} {} step {step}: {actual:e} against {expected:e}",
                case["name"],
                case["kwargs"]
            );
        }
    }
}
