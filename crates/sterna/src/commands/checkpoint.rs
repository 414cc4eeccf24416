//! `sterna checkpoint` and `sterna export`: checkpoints and model folders, without training.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};
use sterna_arch::{DType, LoraConfig, adapters};
use sterna_checkpoint::{Checkpoint, Error, Listed};
use sterna_hf::{export::merge, hub};

use super::print;
use crate::cli::Format;
use crate::cli::checkpoint::{CheckpointCommand, Export, List, Verify};
use crate::report::{Exit, Failure};

pub(crate) fn run(command: &CheckpointCommand) -> Result<(), Failure> {
    match command {
        CheckpointCommand::List(args) => list(args),
        CheckpointCommand::Verify(args) => verify(args),
        CheckpointCommand::Export(args) => export(args),
    }
}

/// Prints what is in a folder of checkpoints.
fn list(args: &List) -> Result<(), Failure> {
    let listed = listed(&args.dir)?;
    let opened: Vec<(Listed, Result<Checkpoint, Error>)> = listed
        .into_iter()
        .map(|listed| {
            let checkpoint = Checkpoint::open(&listed.dir);
            (listed, checkpoint)
        })
        .collect();
    match args.format {
        Format::Json => {
            let rows: Vec<Value> = opened.iter().map(row_json).collect();
            print(&format!("{:#}", Value::from(rows)))
        }
        Format::Text => {
            let mut text = format!(
                "{:<24}{:>8}{:>7}{:>12}  {}\n",
                "checkpoint", "step", "ranks", "size", "written"
            );
            for row in &opened {
                text.push_str(&row_text(row));
            }
            print(&text)
        }
    }
}

fn row_json((listed, checkpoint): &(Listed, Result<Checkpoint, Error>)) -> Value {
    match checkpoint {
        Ok(Checkpoint { manifest, .. }) => json!({
            "dir": listed.dir,
            "step": manifest.step,
            "world_size": manifest.world_size,
            "sequence_parallel_size": manifest.sequence_parallel_size,
            "epoch": manifest.position.epoch,
            "bytes": manifest.num_bytes(),
            "sterna": manifest.sterna,
            "error": null,
        }),
        Err(error) => json!({ "dir": listed.dir, "step": listed.step, "error": error.to_string() }),
    }
}

fn row_text((listed, checkpoint): &(Listed, Result<Checkpoint, Error>)) -> String {
    let name = listed.dir.file_name().unwrap_or_default().to_string_lossy();
    match checkpoint {
        Ok(Checkpoint { manifest, dir, .. }) => format!(
            "{name:<24}{:>8}{:>7}{:>12}  {}\n",
            manifest.step,
            manifest.world_size,
            bytes_text(manifest.num_bytes()),
            age(dir),
        ),
        Err(error) => format!("{name:<24}{:>8}  {error}\n", listed.step),
    }
}

/// How long ago the manifest was written.
fn age(dir: &Path) -> String {
    let written = dir.join("manifest.json").metadata().and_then(|metadata| metadata.modified());
    let Some(age) = written.ok().and_then(|written| SystemTime::now().duration_since(written).ok())
    else {
        return "unknown".to_owned();
    };
    let seconds = age.as_secs();
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", seconds / 60),
        7_200..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

fn bytes_text(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        1e9.. => format!("{:.2} GB", bytes / 1e9),
        1e6.. => format!("{:.2} MB", bytes / 1e6),
        _ => format!("{:.2} kB", bytes / 1e3),
    }
}

/// Prints which checkpoints are good, and fails if one is not.
fn verify(args: &Verify) -> Result<(), Failure> {
    let dirs = if args.dir.join("manifest.json").exists() {
        vec![args.dir.clone()]
    } else {
        listed(&args.dir)?.into_iter().map(|listed| listed.dir).collect()
    };
    let (mut text, mut num_damaged) = (String::new(), 0);
    for dir in &dirs {
        let problems = match Checkpoint::open(dir) {
            Ok(checkpoint) => {
                let problems = checkpoint.verify();
                if problems.is_empty() {
                    let manifest = &checkpoint.manifest;
                    let (files, bytes) = (manifest.files.len(), bytes_text(manifest.num_bytes()));
                    let _ = writeln!(text, "{}: good, {files} files, {bytes}", dir.display());
                }
                problems
            }
            Err(error) => vec![error],
        };
        if !problems.is_empty() {
            num_damaged += 1;
            let _ = writeln!(text, "{}: damaged", dir.display());
            for problem in problems {
                let _ = writeln!(text, "  {problem}");
            }
        }
    }
    print(&text)?;
    if num_damaged == 0 {
        return Ok(());
    }
    let message = format!("`{num_damaged}` of `{}` checkpoints are damaged", dirs.len());
    Err(Failure::new(Exit::Failed, message).with_hint(
        "`auto_resume` leaves them out; delete them, or restore them from a copy".to_owned(),
    ))
}

/// Writes a Hugging Face folder.
pub(crate) fn export(args: &Export) -> Result<(), Failure> {
    let dtype = args.dtype.map(DType::from);
    if args.from.join("manifest.json").exists() {
        let checkpoint = Checkpoint::open(&args.from).map_err(|err| failure(&err))?;
        let problems = checkpoint.verify();
        if let Some(problem) = problems.first() {
            return Err(failure(problem));
        }
        let model = &checkpoint.manifest.recipe["model"];
        let of_recipe = model["dtype"].as_str().and_then(DType::from_torch_name);
        let dtype = dtype.or(of_recipe).unwrap_or(DType::BF16);
        if args.merge {
            let base = base_of(args, model["name_or_path"].as_str())?;
            sterna_checkpoint::merge(&checkpoint, &base, &args.out, dtype)
        } else {
            sterna_checkpoint::export(&checkpoint, &args.out, dtype)
        }
        .map_err(|err| failure(&err))?;
    } else if args.merge {
        merge(args, dtype)?;
    } else if args.from.join(adapters::CONFIG_FILE).exists() {
        let message = format!("`{}` has adapters, and no model", args.from.display());
        let hint = "--merge adds them to the weights of their base".to_owned();
        return Err(Failure::new(Exit::Usage, message).with_hint(hint));
    } else {
        sterna_hf::export::rewrite(&args.from, &args.out, dtype)
            .map_err(|err| Failure::from_error(Exit::Failed, &err).with_hint(err.hint()))?;
    }
    print(&format!("The model is in {}", args.out.display()))
}

/// Writes the base of a folder of PEFT with its adapters added.
fn merge(args: &Export, dtype: Option<DType>) -> Result<(), Failure> {
    let failed =
        |err: &sterna_hf::Error| Failure::from_error(Exit::Failed, err).with_hint(err.hint());
    let lora = LoraConfig::from_dir(&args.from).map_err(|err| failed(&err.into()))?;
    let base = base_of(args, lora.raw.get("base_model_name_or_path").and_then(Value::as_str))?;
    let merged = merge::open(&args.from, &base).and_then(|(config, files)| {
        merge::merge(&base, config, &files, &args.from, &args.out, dtype)
    });
    merged.map_err(|err| failed(&err))
}

/// The folder of the base to merge into, of which adapters say the name.
fn base_of(args: &Export, named: Option<&str>) -> Result<PathBuf, Failure> {
    let Some(name) = args.base.as_deref().or(named) else {
        let message = format!("`{}` does not name the base of its adapters", args.from.display());
        return Err(Failure::new(Exit::Usage, message).with_hint("use --base".to_owned()));
    };
    hub::resolve_model(name)
        .map_err(|err| Failure::from_error(Exit::Failed, &err).with_hint(err.hint()))
}

/// The checkpoints in `dir`, of which there must be one.
fn listed(dir: &Path) -> Result<Vec<Listed>, Failure> {
    let listed = sterna_checkpoint::list(dir).map_err(|err| failure(&err))?;
    if listed.is_empty() {
        let message = format!("there is no complete checkpoint in `{}`", dir.display());
        return Err(Failure::new(Exit::Usage, message).with_hint(
            "name the `output_dir` of a checkpoint entry of `type: sterna`".to_owned(),
        ));
    }
    Ok(listed)
}

fn failure(err: &Error) -> Failure {
    Failure::from_error(Exit::Failed, err).with_hint(err.hint())
}
