//! `sterna check`: the plan of a recipe, or everything that is wrong with it.

use serde_json::json;
use sterna_plan::Plan;
use sterna_recipe::Diagnostics;

use super::{load, model_config, print, wrong_recipe};
use crate::cli::{Check, Format};
use crate::launch::resolve::device_type;
use crate::report::{Exit, Failure};

/// Prints the plan to stdout. Errors in JSON go to stdout as well, for the program that reads it.
pub(crate) fn run(args: &Check) -> Result<(), Failure> {
    let text = match (plan(args)?, args.format) {
        (Ok(plan), Format::Text) => plan.to_string(),
        (Ok(plan), Format::Json) => pretty(&plan.to_json()),
        (Err(errors), Format::Text) => return Err(wrong_recipe(&errors)),
        (Err(errors), Format::Json) => {
            print(&pretty(&json!({ "errors": errors.to_json() })))?;
            let message =
                format!("`{}` cannot be trained: stdout has the errors", args.recipe.display());
            return Err(Failure::new(Exit::Usage, message));
        }
    };
    print(&text)
}

/// The plan, or the errors of the recipe; the outer error is about anything else.
fn plan(args: &Check) -> Result<Result<Plan, Diagnostics>, Failure> {
    let recipe = match load(&args.recipe, &args.overrides) {
        Ok(recipe) => recipe,
        Err(errors) => return Ok(Err(errors)),
    };
    let world_size = args.world_size.unwrap_or(recipe.sequence_parallel_size);
    Ok(Plan::new(&recipe, &model_config(&recipe)?, world_size, device_type(args.device)))
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}")
}
