//! `sterna data`: the training data for people to read, or the batches that each rank would train on, in files.

mod html;
mod preview;
mod text;

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::path::Path;

use sterna_data::{Datasets, MicroBatches, Progress, write_rank_jsonl};
use sterna_hf::{Tokenizer, hub};
use sterna_mesh::Mesh;
use sterna_recipe::{LoggerOptions, Recipe};

use self::preview::Preview;
use super::{load, model_config, wrong_recipe};
use crate::cli::Data;
use crate::render::Screen;
use crate::report::{Exit, Failure};
use crate::{env_vars, logging};

/// Sequences on a page whose number nobody gave.
const DEFAULT_SHOW: usize = 10;

/// Shows the data, or writes `rank{r}.jsonl` for each rank.
pub(crate) fn run(args: &Data) -> Result<(), Failure> {
    let recipe = load(&args.recipe, &args.overrides).map_err(|errors| wrong_recipe(&errors))?;
    let sp_size = recipe.sequence_parallel_size;
    let world_size = args.world_size.unwrap_or(sp_size);
    if !world_size.is_multiple_of(sp_size) {
        let message = format!(
            "sequence_parallel_size `{sp_size}` does not divide the world size `{world_size}`"
        );
        return Err(
            Failure::new(Exit::Usage, message).with_hint("change `--world-size`".to_owned())
        );
    }
    // The log files belong to the run that the recipe is for.
    let logger = LoggerOptions { output_dir: None, ..recipe.logger.clone() };
    let screen = Screen::with_live_line();
    logging::init(&logger, 0, &screen, None)?;
    let prepared = prepare(&recipe, world_size, &screen)?;
    match (args.steps, &args.out) {
        (Some(steps), Some(out)) => write_batches(&prepared, &recipe, world_size, steps, out),
        _ => show(&prepared, &recipe, world_size, args),
    }
}

/// Prints the first sequences, or writes them as a page.
fn show(
    prepared: &Prepared,
    recipe: &Recipe,
    world_size: usize,
    args: &Data,
) -> Result<(), Failure> {
    let num_shown = args.show.unwrap_or(DEFAULT_SHOW);
    let preview = Preview::new(prepared, recipe, world_size, num_shown, args.show_tokens)?;
    let Some(path) = &args.html else {
        let is_terminal = io::stdout().is_terminal();
        let wants_none =
            std::env::var_os(env_vars::NO_COLOR).is_some_and(|value| !value.is_empty());
        let look = text::Look { is_terminal, has_colours: is_terminal && !wants_none };
        return super::print(&text::render(&preview, look));
    };
    let page = html::render(&preview, &args.recipe.display().to_string());
    fs::write(path, page).map_err(|err| cannot_write(path, &err))?;
    say(&format!("wrote {} to {}", preview.title(), path.display()));
    Ok(())
}

fn write_batches(
    prepared: &Prepared,
    recipe: &Recipe,
    world_size: usize,
    steps: usize,
    out: &Path,
) -> Result<(), Failure> {
    let sp_size = recipe.sequence_parallel_size;
    fs::create_dir_all(out).map_err(|err| cannot_write(out, &err))?;
    for rank in 0..world_size {
        let mesh = Mesh::new(rank, world_size, sp_size).expect("it divides");
        let batches = prepared.micro_batches(recipe, mesh);
        if batches.is_empty() {
            let message =
                format!("the data gives no whole micro-batch for each of `{world_size}` ranks");
            return Err(Failure::new(Exit::Usage, message)
                .with_hint("set `min_iterations` to repeat the data".to_owned()));
        }
        let steps = (0..steps).map(|step| batches.get(step % batches.len()));
        // Under another name until it is complete.
        let path = out.join(format!("rank{rank}.jsonl"));
        let incomplete = path.with_extension("jsonl.incomplete");
        let file = File::create(&incomplete).map_err(|err| cannot_write(&incomplete, &err))?;
        let mut file = BufWriter::new(file);
        write_rank_jsonl(&mut file, &incomplete, steps, sp_size, rank % sp_size)
            .map_err(data_failure)?;
        file.flush()
            .and_then(|()| fs::rename(&incomplete, &path))
            .map_err(|err| cannot_write(&path, &err))?;
    }
    say(&format!(
        "wrote {steps} micro-batches for each of {world_size} ranks to {}",
        out.display()
    ));
    Ok(())
}

/// Says what was written.
fn say(line: &str) {
    // Nobody may be listening, and the files are there.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// The data of a recipe and what is needed to batch and to read it.
pub(super) struct Prepared {
    pub(super) datasets: Datasets,
    tokenizer: Tokenizer,
    max_length: usize,
}

impl Prepared {
    fn micro_batches(&self, recipe: &Recipe, mesh: Mesh) -> MicroBatches<'_> {
        let pad_token_id = self.tokenizer.pad_token_id();
        MicroBatches::new(&self.datasets.train, recipe, mesh, self.max_length, pad_token_id)
    }
}

/// Reads, tokenizes and packs the data of `recipe`, or takes it from the cache.
pub(super) fn prepare(
    recipe: &Recipe,
    world_size: usize,
    screen: &Screen,
) -> Result<Prepared, Failure> {
    screen.doing("reading data");
    let prepared = prepare_showing(recipe, world_size, screen);
    screen.finish();
    prepared
}

fn prepare_showing(
    recipe: &Recipe,
    world_size: usize,
    screen: &Screen,
) -> Result<Prepared, Failure> {
    // The model is looked at only when the recipe leaves the length to it.
    let max_length = match recipe.data.max_length {
        Some(max_length) => max_length,
        None => model_config(recipe)?.max_position_embeddings,
    };
    let tokenizer = hub::resolve_model_config(&recipe.tokenizer.name_or_path)
        .and_then(|dir| Tokenizer::from_dir(&dir))
        .map_err(|err| Failure::from_error(Exit::Usage, &err).with_hint(err.hint()))?;
    let on_progress = &mut |progress: Progress<'_>| screen.tokenizing(progress);
    let datasets = sterna_data::prepare(recipe, max_length, &tokenizer, world_size, on_progress)
        .map_err(data_failure)?;
    Ok(Prepared { datasets, tokenizer, max_length })
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` takes")]
fn data_failure(err: sterna_data::Error) -> Failure {
    Failure::from_error(Exit::Usage, &err).with_hint(err.hint())
}

fn cannot_write(path: &Path, err: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("cannot write `{}`: {err}", path.display()))
        .with_hint("check the rights to the folder and the space on its disk".to_owned())
}
