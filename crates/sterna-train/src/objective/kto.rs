//! Replies that are good or bad, without pairs.
//!
//! Kahneman-Tversky Optimization (arXiv 2402.01306, equation 7) compares the reward of a reply with how far the trained model is from the
//! reference model altogether. That is estimated from prompts with the replies to other prompts, by one more forward without a
//! backward, before the micro-batches of a step: no slope goes through it.

use std::cell::RefCell;

use sterna_comm::Comm;
use sterna_data::MicroBatch;
use sterna_mesh::Axis;
use sterna_recipe::{DpoOptions, LossAverage};

use super::{
    Figures, Labels, Loss, Objective, TokenWeights,
    dpo::losses::{bump, sigmoid},
};
use crate::{error::TrainError, scalars::sum};

/// The names of [`Replies::figures`], as TRL has them.
const FIGURES: [&str; 5] =
    ["rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "kl"];

/// The losses of the replies of a micro-batch. Its samples are a good reply and a bad one in turn, of which one is empty.
#[derive(Debug)]
pub struct Replies {
    /// The sum over replies.
    pub loss: f64,
    /// Its slope by the log-probability of each sample.
    pub slopes: Vec<f64>,
    /// Sums over replies of rewards, `beta` times the log-probability beyond the reference model's, and of log-probabilities.
    pub figures: Figures,
}

impl Replies {
    /// Figures of no reply.
    pub(crate) fn no_figures() -> Figures {
        Figures::named(&FIGURES)
    }

    /// `policy` and `reference` are the sums of log-probabilities of each sample, and `num_labels` how many those are. `kl` is how far the
    /// trained model is from the reference model, at least 0, and 0 for `apo_zero_unpaired`.
    ///
    /// # Source
    ///
    /// TRL `kto_trainer.py`, `_compute_loss`: `kto` of arXiv 2402.01306, equation 7; `apo_zero_unpaired` of 2408.06266, equation 7.
    pub fn new(
        options: &DpoOptions,
        policy: &[f64],
        reference: &[f64],
        num_labels: &[usize],
        kl: f64,
    ) -> Self {
        let beta = options.beta;
        // There is one loss.
        let scale: f64 = options.loss_weights.iter().sum();
        let mut replies = Self { loss: 0.0, slopes: Vec::new(), figures: Self::no_figures() };
        for (sample, ((policy, reference), num_labels)) in
            policy.iter().zip(reference).zip(num_labels).enumerate()
        {
            if *num_labels == 0 {
                replies.slopes.push(0.0);
                continue;
            }
            let is_good = sample % 2 == 0;
            let reward = beta * (policy - reference);
            let (sign, weight) = if is_good {
                (1.0, options.desirable_weight)
            } else {
                (-1.0, options.undesirable_weight)
            };
            let x = sign * (reward - beta * kl);
            replies.loss += scale * weight * sigmoid(-x);
            replies.slopes.push(-sign * scale * weight * beta * bump(x));
            let of = |is_it: bool, value: f64| is_it.then_some(value);
            replies.figures.add(&[
                of(is_good, reward),
                of(!is_good, reward),
                of(is_good, *policy),
                of(!is_good, *policy),
                Some(kl),
            ]);
        }
        replies
    }
}

/// How many replies a micro-batch has whose samples have so many labels.
pub(crate) fn num_replies(num_labels: &[usize]) -> f64 {
    num_labels.iter().filter(|num| **num > 0).count() as f64
}

/// Every reply of a micro-batch counts the same, but for the weights of good and bad ones.
#[derive(Debug)]
pub struct Kto<'a> {
    options: &'a DpoOptions,
    /// Of each sample of the micro-batch, the sum of its log-probabilities by the reference model.
    reference: &'a [f64],
    kl: f64,
    /// What the loss of a reply is multiplied by.
    weight: f64,
    num_labels: Vec<usize>,
    figures: RefCell<Figures>,
}

impl<'a> Kto<'a> {
    /// Replies of `batch` count `weight` each. `kl` is as in [`Replies::new`].
    pub fn new(
        options: &'a DpoOptions,
        batch: &MicroBatch,
        reference: &'a [f64],
        kl: f64,
        weight: f64,
    ) -> Self {
        let (num_labels, figures) = (batch.num_labels_of_samples(), RefCell::default());
        Self { options, reference, kl, weight, num_labels, figures }
    }

    /// For each micro-batch of a step, so that the step's loss is the sum over micro-batches and ranks: the mean over replies of a
    /// micro-batch and over micro-batches, or over all replies of the step.
    ///
    /// # Communication
    ///
    /// `loss_average: token` takes one all-reduce of the number of replies. Collective.
    ///
    /// # Errors
    ///
    /// [`TrainError::Comm`] if a peer failed.
    pub(crate) fn of_step(
        comm: &Comm,
        average: LossAverage,
        options: &'a DpoOptions,
        batches: &[MicroBatch],
        references: &[Option<&'a [f64]>],
        kl: f64,
    ) -> Result<Vec<Self>, TrainError> {
        let num_replies = |batch: &MicroBatch| num_replies(&batch.num_labels_of_samples());
        let total = match average {
            LossAverage::MicroBatch => None,
            LossAverage::Token => {
                Some(sum(comm.dp(), &[batches.iter().map(num_replies).sum()])?[0])
            }
        };
        let num_micro_batches = (comm.mesh.size(Axis::Dp) * batches.len()) as f64;
        let of_batch = |(batch, reference): (&MicroBatch, Option<&'a [f64]>)| {
            let count = total.unwrap_or_else(|| num_replies(batch) * num_micro_batches);
            let reference = reference.expect("replies are compared with it");
            Self::new(options, batch, reference, kl, 1.0 / count)
        };
        Ok(batches.iter().zip(references.iter().copied()).map(of_batch).collect())
    }
}

impl Objective for Kto<'_> {
    fn token_weights(&self, labels: &mut Labels<'_>) -> Result<TokenWeights, TrainError> {
        let policy = labels.log_probs_of_samples(self.num_labels.len())?;
        let Replies { loss, slopes, figures } =
            Replies::new(self.options, &policy, self.reference, &self.num_labels, self.kl);
        self.figures.replace(figures);
        // Every rank of the sequence knows all of it.
        let loss = Loss::Value(self.weight * loss / labels.sp.size() as f64);
        Ok(TokenWeights { weights: labels.of_samples(&slopes) * -self.weight, loss })
    }

    fn share(&self, _: &MicroBatch) -> f64 {
        self.weight * num_replies(&self.num_labels)
    }

    fn figures(&self) -> Figures {
        self.figures.borrow().clone()
    }
}
