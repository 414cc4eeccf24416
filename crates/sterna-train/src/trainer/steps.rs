//! Where a run begins, where it ends, and which data each of its steps takes.

use sterna_checkpoint::{Manifest, Position};
use sterna_mesh::{Axis, Mesh};
use sterna_recipe::{CheckpointOptions, Recipe};

use crate::error::TrainError;

/// The steps of a run, counted from the very first one of training, and their place in the data.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepRange {
    /// Steps done before this run.
    pub(super) first_step: u64,
    /// Steps done when it ends.
    pub(super) num_steps: u64,
    /// Steps that the data or `train_iters` give, which the schedule spans: a run that stops earlier follows the same curve.
    pub(super) horizon: u64,
    /// Micro-batches seen before `first_step`.
    start: u64,
    /// Micro-batches of a step.
    gas: u64,
    order: BatchOrder,
    /// Micro-batches of an epoch.
    per_epoch: u64,
    /// Passes over the data.
    epochs: u64,
    /// Whether the epochs, and not `train_iters`, end the run.
    is_by_epochs: bool,
}

/// Which samples of an epoch's order make up which micro-batch. In the order, sample `i` is the one at place `i / world_size` of rank
/// `i % world_size`; the ranks of a sequence-parallel group take turns, each with a micro-batch of its own samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BatchOrder {
    world_size: u64,
    sp_size: u64,
    rows: u64,
}

impl BatchOrder {
    /// The micro-batch of its group that sample `index` of the order is in.
    fn micro_batch_of(self, index: u64) -> u64 {
        let (place, rank) = (index / self.world_size, index % self.world_size);
        place / self.rows * self.sp_size + rank % self.sp_size
    }

    /// The samples of micro-batch number `micro_batch` of all groups.
    fn samples_of(self, micro_batch: u64) -> impl Iterator<Item = u64> {
        let (turn, first) = (micro_batch % self.sp_size, micro_batch / self.sp_size * self.rows);
        let ranks = (turn..self.world_size).step_by(self.sp_size as usize);
        ranks.flat_map(move |rank| {
            (first..first + self.rows).map(move |place| place * self.world_size + rank)
        })
    }

    /// Samples of `micro_batches` of all groups.
    fn num_samples(self, micro_batches: u64) -> u64 {
        micro_batches * self.rows * (self.world_size / self.sp_size)
    }
}

impl StepRange {
    /// The steps of `recipe` over epochs of `per_epoch` micro-batches, from the beginning or on from a checkpoint.
    ///
    /// # Errors
    ///
    /// [`TrainError::NoSteps`] if a new run has not even one step.
    pub(super) fn new(
        recipe: &Recipe,
        per_epoch: usize,
        mesh: &Mesh,
        resumed: Option<&Manifest>,
    ) -> Result<Self, TrainError> {
        let gas = recipe.gradient_accumulation_steps as u64;
        let order = BatchOrder {
            world_size: mesh.world_size() as u64,
            sp_size: mesh.size(Axis::Sp) as u64,
            rows: recipe.micro_batch_size as u64,
        };
        let first_step = resumed.map_or(0, |manifest| manifest.step);
        let start = resumed.map_or(0, |manifest| {
            let before = BatchOrder {
                world_size: manifest.world_size as u64,
                sp_size: manifest.sequence_parallel_size as u64,
                rows: manifest.position.rows.max(1),
            };
            goes_on_at(manifest.position, before, order, per_epoch as u64)
        });
        let total = (per_epoch * recipe.epochs) as u64;
        let horizon = match recipe.train_iters as u64 {
            0 => first_step + total.saturating_sub(start) / gas,
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
                dp_size: mesh.size(Axis::Dp),
                gradient_accumulation_steps: recipe.gradient_accumulation_steps,
            });
        }
        Ok(Self {
            first_step,
            num_steps,
            horizon,
            start,
            gas,
            order,
            per_epoch: per_epoch as u64,
            epochs: recipe.epochs as u64,
            is_by_epochs: recipe.train_iters == 0,
        })
    }

    /// Micro-batches seen after step `step`, which is not before [`StepRange::first_step`].
    pub(super) fn micro_batches(&self, step: u64) -> u64 {
        self.start + (step - self.first_step) * self.gas
    }

    /// How far the data was read after step `step`.
    pub(super) fn position(&self, step: u64) -> Position {
        let micro_batches = self.micro_batches(step);
        Position {
            micro_batches,
            epoch: micro_batches / self.per_epoch,
            of_epoch: micro_batches % self.per_epoch,
            rows: self.order.rows,
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
        let done = self.micro_batches(step);
        let is_last = self.is_by_epochs && done + self.gas > self.per_epoch * self.epochs;
        if is_last { self.epochs } else { done / self.per_epoch }
    }
}

/// Micro-batches seen, counted in this run's: the same where the order is what it was before, and else as many as hold only
/// samples that were seen. So no sample is left out; some may be seen again.
fn goes_on_at(saved: Position, before: BatchOrder, order: BatchOrder, per_epoch: u64) -> u64 {
    if order == before {
        return saved.micro_batches;
    }
    let is_seen = |sample: u64| before.micro_batch_of(sample) < saved.of_epoch;
    // An epoch in another order may be shorter: what does not fill its last one is dropped.
    let first_new = (0..per_epoch)
        .find(|&micro_batch| !order.samples_of(micro_batch).all(is_seen))
        .unwrap_or(per_epoch);
    let repeated = before.num_samples(saved.of_epoch).saturating_sub(order.num_samples(first_new));
    if repeated > 0 {
        tracing::warn!(
            "`{repeated}` samples are seen again: the ranks take them in another order than before"
        );
    }
    saved.epoch * per_epoch + first_new
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn data_goes_on_where_all_that_counts_as_seen_was_seen() {
        let order = |world_size, sp_size, rows| BatchOrder { world_size, sp_size, rows };
        // Two groups of two ranks, one row each, 9 micro-batches in epochs of 6: 0 and 2, 1 and 3, 4 and 6 of the second epoch.
        let before = order(4, 2, 1);
        let saved = Position { micro_batches: 9, epoch: 1, of_epoch: 3, rows: 1 };
        let at = |order, per_epoch| goes_on_at(saved, before, order, per_epoch);
        // The same ranks go on in the middle of a round.
        assert_eq!(at(before, 6), 9);
        // One by one: 0 to 4 were seen, 5 was not.
        assert_eq!(at(order(1, 1, 1), 13), 13 + 5);
        // Two ranks: 0 and 1, 2 and 3, then 4 and 5.
        assert_eq!(at(order(2, 1, 1), 6), 6 + 2);
        // A group of two ranks sees them one by one.
        assert_eq!(at(order(2, 2, 1), 12), 12 + 5);
        // A group of four as well; with two rows, 0 and 4 are first, then 1 and 5.
        assert_eq!(at(order(4, 4, 1), 12), 12 + 5);
        assert_eq!(at(order(4, 4, 2), 4), 4 + 1);
    }

    proptest! {
        /// Whatever the order before and after, nothing that counts as seen is new, and the next micro-batch has something new.
        #[test]
        fn no_sample_is_left_out(
            (sp, groups, rows) in (1_u64..4, 1_u64..4, 1_u64..4),
            (new_sp, new_groups, new_rows) in (1_u64..4, 1_u64..4, 1_u64..4),
            of_epoch in 0_u64..20,
        ) {
            let before = BatchOrder { world_size: sp * groups, sp_size: sp, rows };
            let order = BatchOrder { world_size: new_sp * new_groups, sp_size: new_sp, rows: new_rows };
            let saved = Position { micro_batches: of_epoch, epoch: 0, of_epoch, rows };
            // Long enough that it does not end first.
            let at = goes_on_at(saved, before, order, 1000);
            let seen: std::collections::BTreeSet<u64> =
                (0..of_epoch).flat_map(|micro_batch| before.samples_of(micro_batch)).collect();
            prop_assert_eq!(seen.len() as u64, before.num_samples(of_epoch));
            for micro_batch in 0..at {
                prop_assert!(order.samples_of(micro_batch).all(|sample| seen.contains(&sample)));
            }
            prop_assert!(order.samples_of(at).any(|sample| !seen.contains(&sample)));
        }
    }
}
