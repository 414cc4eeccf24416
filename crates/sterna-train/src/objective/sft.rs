//! Supervised fine-tuning: a mean of `-ln p` over labels.

use sterna_comm::Comm;
use sterna_data::MicroBatch;
use sterna_mesh::Axis;
use sterna_recipe::LossAverage;

use super::{Labels, Loss, Objective, TokenWeights};
use crate::{error::TrainError, scalars::sum};

/// Every label of a micro-batch counts the same.
#[derive(Debug, Clone, Copy)]
pub struct Sft {
    weight: f64,
}

impl Sft {
    /// Every label counts `weight`.
    pub fn new(weight: f64) -> Self {
        Self { weight }
    }

    /// For each micro-batch of a step, so that the step's loss is the sum over micro-batches and ranks.
    ///
    /// # Communication
    ///
    /// `loss_average: token` takes one all-reduce of the label count. Collective.
    ///
    /// # Errors
    ///
    /// [`TrainError::Comm`] if a peer failed.
    pub(crate) fn of_step(
        comm: &Comm,
        average: LossAverage,
        batches: &[MicroBatch],
    ) -> Result<Vec<Self>, TrainError> {
        let counts = batches.iter().map(|batch| batch.num_valid_tokens() as f64);
        // A micro-batch without labels has a loss of zero, not 0 / 0.
        let inverse = |count: f64| if count > 0.0 { 1.0 / count } else { 0.0 };
        match average {
            // (1 / (dp * gas)) sum over micro-batches of (1 / N) sum over its tokens.
            LossAverage::MicroBatch => {
                let num_micro_batches = (comm.mesh.size(Axis::Dp) * batches.len()) as f64;
                Ok(counts.map(|count| Self::new(inverse(count) / num_micro_batches)).collect())
            }
            // (1 / sum of all N) sum over all tokens.
            LossAverage::Token => {
                let total = sum(comm.dp(), &[counts.sum()])?[0];
                Ok(vec![Self::new(inverse(total)); batches.len()])
            }
        }
    }
}

impl Objective for Sft {
    fn token_weights(&self, labels: &mut Labels<'_>) -> Result<TokenWeights, TrainError> {
        Ok(TokenWeights {
            weights: labels.uniform(self.weight),
            loss: Loss::ScaledSum(self.weight),
        })
    }

    fn share(&self, batch: &MicroBatch) -> f64 {
        self.weight * batch.num_valid_tokens() as f64
    }
}
