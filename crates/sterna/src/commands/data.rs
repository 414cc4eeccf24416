//! `sterna data`: the batches that each rank would train on, in files.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;

use sterna_data::{Datasets, MicroBatches, write_rank_jsonl};
use sterna_hf::{Tokenizer, hub};
use sterna_mesh::Mesh;
use sterna_recipe::Recipe;

use super::{load, model_config, wrong_recipe};
use crate::cli::Data;
use crate::report::{Exit, Failure};

/// Writes `rank{r}.jsonl` for each rank.
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
    let prepared = prepare(&recipe, world_size)?;
    fs::create_dir_all(&args.out).map_err(|err| cannot_write(&args.out, &err))?;
    for rank in 0..world_size {
        let mesh = Mesh::new(rank, world_size, sp_size).expect("it divides");
        let batches = prepared.micro_batches(&recipe, mesh);
        if batches.is_empty() {
            let message =
                format!("the data gives no whole micro-batch for each of `{world_size}` ranks");
            return Err(Failure::new(Exit::Usage, message)
                .with_hint("set `min_iterations` to repeat the data".to_owned()));
        }
        let steps = (0..args.steps).map(|step| batches.get(step % batches.len()));
        // Under another name until it is complete.
        let path = args.out.join(format!("rank{rank}.jsonl"));
        let incomplete = path.with_extension("jsonl.incomplete");
        let file = File::create(&incomplete).map_err(|err| cannot_write(&incomplete, &err))?;
        let mut file = BufWriter::new(file);
        write_rank_jsonl(&mut file, &incomplete, steps, sp_size, rank % sp_size)
            .map_err(data_failure)?;
        file.flush()
            .and_then(|()| fs::rename(&incomplete, &path))
            .map_err(|err| cannot_write(&path, &err))?;
    }
    let Data { steps, out, .. } = args;
    let line = format!(
        "wrote {steps} micro-batches for each of {world_size} ranks to {}\n",
        out.display()
    );
    // Nobody may be listening, and the files are there.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
    Ok(())
}

/// The data of a recipe and what is needed to batch it.
pub(super) struct Prepared {
    pub(super) datasets: Datasets,
    max_length: usize,
    pad_token_id: u32,
}

impl Prepared {
    fn micro_batches(&self, recipe: &Recipe, mesh: Mesh) -> MicroBatches<'_> {
        MicroBatches::new(&self.datasets.train, recipe, mesh, self.max_length, self.pad_token_id)
    }
}

/// Reads, tokenizes and packs the data of `recipe`, or takes it from the cache.
pub(super) fn prepare(recipe: &Recipe, world_size: usize) -> Result<Prepared, Failure> {
    // The model is looked at only when the recipe leaves the length to it.
    let max_length = match recipe.data.max_length {
        Some(max_length) => max_length,
        None => model_config(recipe)?.max_position_embeddings,
    };
    let tokenizer = hub::resolve_model_config(&recipe.tokenizer.name_or_path)
        .and_then(|dir| Tokenizer::from_dir(&dir))
        .map_err(|err| Failure::from_error(Exit::Usage, &err).with_hint(err.hint()))?;
    let datasets =
        sterna_data::prepare(recipe, max_length, &tokenizer, world_size).map_err(data_failure)?;
    Ok(Prepared { datasets, max_length, pad_token_id: tokenizer.pad_token_id() })
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` takes")]
fn data_failure(err: sterna_data::Error) -> Failure {
    Failure::from_error(Exit::Usage, &err).with_hint(err.hint())
}

fn cannot_write(path: &Path, err: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("cannot write `{}`: {err}", path.display()))
        .with_hint("check the rights to the folder and the space on its disk".to_owned())
}
