//! A first run: a real model, fine-tuned on real chats, on any machine.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{inputs, libtorch, stage};

const RECIPE: &str = "recipes/demo.yaml";

/// What the recipe names, from the workspace root.
const METRICS: &str = ".sterna/demo/metrics.jsonl";
const EXPORT: &str = ".sterna/demo/SmolLM2-135M-dialogues";

/// Fetches what is needed, builds, trains, and says what came out.
///
/// # Errors
///
/// The first stage that fails.
pub(crate) fn run(root: &Path) -> Result<()> {
    let start = Instant::now();
    stage::stage("libtorch", || libtorch::install(root, libtorch::Flavor::Cpu).map(drop))?;
    let sterna =
        stage::stage("build sterna (release; a few minutes the first time)", || build(root))?;
    let inputs = stage::stage("model and chats", || inputs::fetch(root))?;
    stage::stage(
        "train SmolLM2-135M-Instruct on chats, the sequence split over 3 processes",
        || {
            // Metrics are appended; those of an earlier demo are not this one's.
            let metrics = root.join(METRICS);
            if metrics.exists() {
                std::fs::remove_file(&metrics)
                    .with_context(|| format!("cannot remove `{}`", metrics.display()))?;
            }
            let mut train = Command::new(&sterna);
            train.current_dir(root).args(["train", RECIPE]);
            // The recipe names the default place; the caller may have put the inputs elsewhere.
            if inputs != root.join(inputs::DEFAULT) {
                let model = inputs.join("SmolLM2-135M-Instruct");
                let chats = inputs.join("dialogues-english");
                train.arg("--set").arg(format!("model.name_or_path={}", quoted(&model)));
                train.arg("--set").arg(format!("data.sources[0].name_or_path={}", quoted(&chats)));
            }
            stage::run(&mut train)
        },
    )?;
    let text = std::fs::read_to_string(root.join(METRICS))
        .with_context(|| format!("cannot read `{METRICS}`"))?;
    let (before, after) = eval_losses(&text)?;
    let shown = sterna.strip_prefix(root).unwrap_or(&sterna).display();
    println!(
        "\
Done in {}. Loss on chats that were held out: {before:.4} before, {after:.4} after.

The fine-tuned model is in {EXPORT}/, a Hugging Face folder
that transformers, vLLM and others open. The figures of every step are in {METRICS}.

What to type next:",
        stage::seconds(start.elapsed()),
    );
    let next = [
        (format!("{shown} check {RECIPE}"), "what the recipe means, and what memory it takes"),
        (format!("{shown} train {RECIPE} --set train_iters=40"), "train longer"),
        (
            format!("{shown} train my-recipe.yaml"),
            "your own: start from a copy of recipes/demo.yaml",
        ),
    ];
    let width = next.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    for (command, what) in next {
        println!("  {command:width$}   {what}");
    }
    Ok(())
}

/// Builds the release binary and returns its path.
pub(crate) fn build(root: &Path) -> Result<std::path::PathBuf> {
    stage::run(stage::cargo(root).args(["build", "--release", "--locked", "--package", "sterna"]))?;
    Ok(target_directory(root)?.join("release/sterna"))
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory(root: &Path) -> Result<std::path::PathBuf> {
    let metadata = stage::output(stage::cargo(root).args([
        "metadata",
        "--format-version=1",
        "--no-deps",
        "--locked",
    ]))?;
    let metadata: Value =
        serde_json::from_str(&metadata).context("`cargo metadata` did not write JSON")?;
    let target = metadata["target_directory"]
        .as_str()
        .context("`cargo metadata` names no target directory")?;
    Ok(Path::new(target).to_path_buf())
}

/// Losses of the first and the last evaluation in a metrics file.
fn eval_losses(metrics: &str) -> Result<(f64, f64)> {
    let mut losses = Vec::new();
    for line in metrics.lines() {
        let row: Value = serde_json::from_str(line)
            .with_context(|| format!("not a row of metrics: `{line}`"))?;
        losses.extend(row["loss/eval"].as_f64());
    }
    match losses.as_slice() {
        [before, .., after] => Ok((*before, *after)),
        _ => bail!("`{METRICS}` has {} evaluations, the demo makes 2", losses.len()),
    }
}

/// A path as a quoted YAML string.
fn quoted(path: &Path) -> String {
    Value::from(path.to_string_lossy()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_those_of_the_first_and_the_last_evaluation() {
        let rows = "{\"iter\":0,\"loss/eval\":3.5}\n{\"iter\":1,\"loss\":3.0}\n{\"iter\":1,\"loss/eval\":2.5}\n";
        assert_eq!(eval_losses(rows).unwrap(), (3.5, 2.5));
        assert_eq!(
            eval_losses("{\"iter\":0,\"loss/eval\":3.5}\n").unwrap_err().to_string(),
            "`.sterna/demo/metrics.jsonl` has 1 evaluations, the demo makes 2"
        );
    }
}
