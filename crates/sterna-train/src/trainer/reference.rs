//! Log-probabilities by the reference model of `type: dpo`, of every sample once, before training.
//!
//! The same engine computes them with the reference model's weights, which are gone before the trained model's states come: no second
//! model is ever in memory beside it.

use std::collections::HashMap;

use sterna_arch::ModelConfig;
use sterna_comm::Comm;
use sterna_data::MicroBatch;
use sterna_hf::{WeightFiles, hub};
use sterna_recipe::Recipe;

use super::setup::model_config;
use crate::{
    engine::{BatchLoss, Engine},
    error::TrainError,
    scalars::sum,
};

/// Of each micro-batch of this rank's group, by its index, the sum of log-probabilities of each of its samples.
pub(super) type LogProbs = HashMap<usize, Vec<f64>>;

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

/// The log-probabilities of the samples of `batches`, by the weights that the engine holds.
///
/// # Communication
///
/// A forward and one all-reduce for each. Collective: every group has as many.
///
/// # Errors
///
/// As [`Engine::forward`].
pub(super) fn log_probs(
    engine: &mut Engine<'_>,
    comm: &Comm,
    batches: impl Iterator<Item = Result<(usize, MicroBatch), TrainError>>,
    on_batch: &mut dyn FnMut(),
) -> Result<LogProbs, TrainError> {
    let mut all = LogProbs::new();
    for batch in batches {
        let (index, batch) = batch?;
        let losses = engine.forward(&batch)?;
        all.insert(index, of_all_ranks(&losses, comm)?);
        on_batch();
    }
    Ok(all)
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
