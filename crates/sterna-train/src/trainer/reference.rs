//! Log-probabilities by the reference model of `type: dpo`, of every sample once, before training, unless an earlier run has left them.
//!
//! The same engine computes them with the reference model's weights, which are gone before the trained model's states come: no second
//! model is ever in memory beside it.

mod cache;

use std::collections::HashMap;

use sterna_arch::ModelConfig;
use sterna_comm::Comm;
use sterna_data::MicroBatch;
use sterna_hf::{WeightFiles, hub};
use sterna_recipe::Recipe;

pub(super) use self::cache::{Cache, hash_of_weights};
use super::setup::model_config;
use crate::{
    engine::{BatchLoss, Engine},
    error::TrainError,
    objective::num_replies,
    scalars::{maxima, sum},
};

/// Micro-batches after which what is known is written: what a run that ends early loses.
const SAVE_EVERY: usize = 64;

/// Of each micro-batch of this rank's group, by its index, the sum of log-probabilities of each of its samples.
pub(super) type LogProbs = HashMap<usize, Vec<f64>>;

/// What the reference model says of some data.
pub(super) struct Reference {
    /// Of replies to their own prompts.
    pub(super) log_probs: LogProbs,
    /// Of replies to other prompts, as [`sterna_data::Collator::mismatched`] has them; empty if no loss needs them.
    pub(super) mismatched: LogProbs,
}

/// The weights of another model than the trained one, which has to compute what `config` does.
///
/// # Errors
///
/// [`TrainError::OtherReference`] if it computes something else; [`TrainError::Hf`] and [`TrainError::Config`] if it cannot be read.
pub(super) fn weights(
    recipe: &Recipe,
    name: &str,
    config: &ModelConfig,
) -> Result<WeightFiles, TrainError> {
    let mut of_reference = recipe.clone();
    name.clone_into(&mut of_reference.model.name_or_path);
    let weights = WeightFiles::open(&hub::resolve_model(name)?)?;
    let of_reference = model_config(&of_reference)?.named_as_in(|name| weights.contains(name));
    if of_reference.arch != config.arch {
        return Err(TrainError::OtherReference { name: name.to_owned() });
    }
    weights.check(config)?;
    Ok(weights)
}

/// Micro-batches of this rank's group with their indices, as often as they are asked for.
pub(super) type Batches<'a> =
    dyn Fn() -> Box<dyn Iterator<Item = Result<(usize, MicroBatch), TrainError>> + 'a> + 'a;

/// The log-probabilities of the samples of each of `parts`: those that `cache` has on all ranks, and for the rest those by the reference
/// model, whose weights `load` brings into the engine. What was computed is in the cache afterwards.
///
/// # Communication
///
/// One all-reduce, for each micro-batch that is computed a forward and one more, and what the cache needs. Collective: every group has as
/// many.
///
/// # Errors
///
/// As [`Engine::forward`] and `load`.
pub(super) fn log_probs(
    engine: &mut Engine<'_>,
    comm: &Comm,
    cache: &mut Cache,
    parts: &[&Batches<'_>],
    load: impl FnOnce(&mut Engine<'_>) -> Result<(), TrainError>,
    on_batch: &mut dyn FnMut(usize, usize),
) -> Result<Vec<LogProbs>, TrainError> {
    let mut found = vec![LogProbs::new(); parts.len()];
    let mut is_missing = Vec::new();
    for (part, found) in parts.iter().zip(&mut found) {
        for batch in part() {
            let (index, batch) = batch?;
            let known = cache.get(&batch);
            is_missing.push(f64::from(u8::from(known.is_none())));
            found.extend(known.map(|known| (index, known)));
        }
    }
    let is_missing = maxima(comm.world(), &is_missing)?;
    let num_missing = is_missing.iter().filter(|is_missing| **is_missing > 0.0).count();
    if num_missing == 0 {
        return Ok(found);
    }
    load(engine)?;
    let mut num_done = 0;
    let batches = parts
        .iter()
        .enumerate()
        .flat_map(|(part, batches)| batches().map(move |batch| (part, batch)));
    for ((part, batch), is_missing) in batches.zip(is_missing) {
        let (index, batch) = batch?;
        if is_missing == 0.0 {
            continue;
        }
        let of_batch = of_all_ranks(&engine.forward(&batch)?, comm)?;
        // What is known stays: a rank may be here for another's sake.
        found[part].entry(index).or_insert_with(|| {
            cache.insert(&batch, &of_batch);
            of_batch
        });
        num_done += 1;
        on_batch(num_done, num_missing);
        if num_done % SAVE_EVERY == 0 {
            cache.save(comm)?;
        }
    }
    cache.save(comm)?;
    Ok(found)
}

/// How far the trained model, whose weights the engine holds, is from the reference model, by `batches` of replies to other prompts and
/// what the reference model says of them: the mean difference of log-probabilities, and 0 where it is below. A micro-batch of one reply
/// has no other prompt and does not count, nor does one that is there without its reference.
///
/// # Communication
///
/// A forward for each, and one all-reduce. Collective: every group has as many.
///
/// # Errors
///
/// As [`Engine::forward`].
///
/// # Source
///
/// TRL `kto_trainer.py`, `kl` of `_compute_loss`, over all micro-batches that `batches` has on all ranks.
pub(super) fn kl<'a>(
    engine: &mut Engine<'_>,
    comm: &Comm,
    batches: impl Iterator<Item = Result<(MicroBatch, Option<&'a [f64]>), TrainError>>,
) -> Result<f64, TrainError> {
    let (mut beyond, mut count) = (0.0, 0.0);
    for batch in batches {
        let (batch, reference) = batch?;
        let policy = of_all_ranks(&engine.forward(&batch)?, comm)?;
        let num_replies = num_replies(&batch.num_labels_of_samples());
        if let Some(reference) = reference.filter(|_| num_replies > 1.0) {
            beyond +=
                policy.iter().zip(reference).map(|(policy, of_it)| policy - of_it).sum::<f64>();
            count += num_replies;
        }
    }
    let sums = sum(comm.dp(), &[beyond, count])?;
    if sums[1] == 0.0 && comm.mesh.rank() == 0 {
        tracing::warn!(
            "no micro-batch has two replies, so that `kl` of `loss_type: kto` counts as 0: set a larger `micro_batch_size`, \
             a larger `data.max_length` with `pack_samples`, or `loss_type: apo_zero_unpaired`"
        );
    }
    Ok((sums[0] / sums[1].max(1.0)).max(0.0))
}

/// The log-probability of each sample of a micro-batch.
///
/// # Communication
///
/// One all-reduce over the sp axis. Collective.
///
/// # Errors
///
/// [`TrainError::Comm`] if a peer failed.
pub(super) fn of_all_ranks(losses: &BatchLoss, comm: &Comm) -> Result<Vec<f64>, TrainError> {
    let of_rank: Vec<f64> = losses.of_samples.iter().map(|sample| -sample.sum).collect();
    Ok(sum(comm.sp(), &of_rank)?)
}
