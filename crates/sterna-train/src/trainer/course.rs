//! Where a run begins, where it ends, and which data each of its steps takes.

use sterna_checkpoint::{Manifest, Position};
use sterna_recipe::{CheckpointOptions, Recipe};

use crate::error::TrainError;

/// The steps of a run, counted from the very first one of training, and their place in the data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Course {
    /// Steps done before this run.
    pub(super) first_step: u64,
    /// Steps done when it ends.
    pub(super) num_steps: u64,
    /// Steps that the data or `train_iters` give, which the schedule spans: a run that stops earlier follows the same curve.
    pub(super) horizon: u64,
    /// Where the data goes on at `first_step`.
    start: Position,
    /// Micro-batches of a step.
    gas: u64,
    /// Samples that all ranks together take with a micro-batch.
    samples_each: u64,
    /// Micro-batches of an epoch.
    per_epoch: u64,
    /// Passes over the data.
    epochs: u64,
    /// Whether the epochs, and not `train_iters`, end the run.
    is_by_epochs: bool,
}

impl Course {
    /// The course of `recipe` over epochs of `per_epoch` micro-batches, from the beginning or on from a checkpoint.
    ///
    /// # Errors
    ///
    /// [`TrainError::NoSteps`] if a new run has not even one step.
    pub(super) fn new(
        recipe: &Recipe,
        per_epoch: usize,
        dp_size: usize,
        resumed: Option<&Manifest>,
    ) -> Result<Self, TrainError> {
        let gas = recipe.gradient_accumulation_steps as u64;
        let samples_each = (dp_size * recipe.micro_batch_size) as u64;
        let first_step = resumed.map_or(0, |manifest| manifest.step);
        let start = resumed.map_or(Position { micro_batches: 0, samples: 0 }, |manifest| {
            goes_on_at(manifest.position, samples_each)
        });
        let total = (per_epoch * recipe.epochs) as u64;
        let horizon = match recipe.train_iters as u64 {
            0 => first_step + total.saturating_sub(start.micro_batches) / gas,
            // `train_iters` goes on over as many epochs as it takes.
            train_iters if per_epoch > 0 => train_iters,
            _ => 0,
        };
        let of_this_run = recipe.exit_iteration_this_run as u64;
        let limits = [
            recipe.exit_iteration as u64,
            if of_this_run > 0 { first_step + of_this_run } else { 0 },
        ];
        let num_steps = limits.into_iter().filter(|&limit| limit > 0).fold(horizon, u64::min);
        if num_steps == 0 {
            return Err(TrainError::NoSteps {
                num_micro_batches: per_epoch * recipe.epochs,
                dp_size,
                gradient_accumulation_steps: recipe.gradient_accumulation_steps,
            });
        }
        Ok(Self {
            first_step,
            num_steps,
            horizon,
            start,
            gas,
            samples_each,
            per_epoch: per_epoch as u64,
            epochs: recipe.epochs as u64,
            is_by_epochs: recipe.train_iters == 0,
        })
    }

    /// Where the data goes on after step `step`, which is not before [`Course::first_step`].
    pub(super) fn position(&self, step: u64) -> Position {
        let micro_batches = (step - self.first_step) * self.gas;
        Position {
            micro_batches: self.start.micro_batches + micro_batches,
            samples: self.start.samples + micro_batches * self.samples_each,
        }
    }

    /// Whether `entry` asks to be saved after step `step` of this run.
    pub(super) fn is_due(&self, entry: &CheckpointOptions, step: u64) -> bool {
        let (every_steps, every_epochs) =
            (entry.save_every_n_steps as u64, entry.save_every_n_epochs as u64);
        let is_of_this_run = step > self.first_step;
        is_of_this_run
            && (every_steps > 0 && step.is_multiple_of(every_steps)
                || every_epochs > 0
                    && self.epochs_done(step) / every_epochs
                        > self.epochs_done(step - 1) / every_epochs)
    }

    /// Whole passes over the data after step `step`. Micro-batches that are too few for another step end their epoch.
    fn epochs_done(&self, step: u64) -> u64 {
        let done = self.position(step).micro_batches;
        let is_last = self.is_by_epochs && done + self.gas > self.per_epoch * self.epochs;
        if is_last { self.epochs } else { done / self.per_epoch }
    }
}

/// Where the data goes on when a micro-batch takes `samples_each` samples: at the same sample. If that lies within a micro-batch, at
/// its beginning, so that no sample is left out.
fn goes_on_at(saved: Position, samples_each: u64) -> Position {
    let micro_batches = saved.samples / samples_each;
    let repeated = saved.samples % samples_each;
    if repeated > 0 {
        tracing::warn!(
            "`{repeated}` samples are seen again: `{}` were seen, and a micro-batch of all ranks now takes `{samples_each}`",
            saved.samples
        );
    }
    Position { micro_batches, samples: micro_batches * samples_each }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_goes_on_at_the_same_sample() {
        let saved = Position { micro_batches: 6, samples: 12 };
        let at = |samples_each| goes_on_at(saved, samples_each).micro_batches;
        // Two samples a micro-batch wrote it. Five divide 12 into 2 and a rest, which is seen again.
        assert_eq!([at(2), at(1), at(3), at(5)], [6, 12, 4, 2]);
        assert_eq!(goes_on_at(saved, 5).samples, 10);
    }
}
