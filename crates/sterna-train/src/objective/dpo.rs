//! Preferences: losses of how much more a model prefers one reply to another than the reference model does, or than nothing.
//!
//! Direct Preference Optimization (arXiv 2305.18290, equation 7) and its kin see a pair only through the log-probabilities of its two
//! replies, sums over their tokens. So the loss of a pair and its slopes by those two numbers are arithmetic on the host, and the weight
//! of a token's `-ln p` is the slope of its reply, negated. Beside it stands a mean of `-ln p` over the tokens of chosen replies, which
//! is not a mean over pairs.

pub(super) mod losses;

use std::cell::RefCell;

use sterna_comm::Comm;
use sterna_data::MicroBatch;
use sterna_mesh::Axis;
use sterna_recipe::{DpoLoss, DpoOptions, LossAverage};

pub use self::losses::{Pair, PairLoss, pair_loss};
use super::{Figures, Labels, Loss, Objective, TokenWeights};
use crate::{error::TrainError, scalars::sum};

/// The names of [`Pairs::figures`], as TRL has them.
const FIGURES: [&str; 6] = [
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
];

/// The losses of the pairs of a micro-batch, whose samples are a better reply and the worse one in turn.
#[derive(Debug)]
pub struct Pairs {
    /// The sum over pairs of their losses, each times its weight.
    pub loss: f64,
    /// Its slopes by the log-probabilities of the two replies of each pair.
    slopes: Vec<Pair>,
    /// The sum of `-ln p` over the tokens of chosen replies, times the weight of its mean.
    pub nll: f64,
    nll_weight: f64,
    /// Sums over pairs of rewards, `beta` times the log-probability beyond the reference model's, and of log-probabilities. Where there is
    /// no reference, both are of means over tokens, as in TRL's `CPOTrainer` for `SimPO` and in its `ORPOTrainer`.
    pub figures: Figures,
}

/// What the means of a loss are over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counts {
    /// How many pairs.
    pub pairs: f64,
    /// How many tokens their chosen replies have.
    pub tokens: f64,
}

impl Counts {
    /// Of a micro-batch whose samples have so many labels.
    pub fn of(num_labels: &[usize]) -> Self {
        let chosen = num_labels.iter().step_by(2);
        Self { pairs: (num_labels.len() / 2) as f64, tokens: chosen.sum::<usize>() as f64 }
    }
}

impl Pairs {
    /// Figures of no pair.
    pub(crate) fn no_figures() -> Figures {
        Figures::named(&FIGURES)
    }

    /// `policy` and `reference` are the sums of log-probabilities of each sample, and `num_labels` how many those are. There is a reference
    /// if a loss compares with one.
    pub fn new(
        options: &DpoOptions,
        policy: &[f64],
        reference: Option<&[f64]>,
        num_labels: &[usize],
    ) -> Self {
        let num_labels: Vec<f64> = num_labels.iter().map(|num| *num as f64).collect();
        let pairs_of = |values: &[f64]| -> Vec<Pair> {
            values.chunks_exact(2).map(|pair| Pair { chosen: pair[0], rejected: pair[1] }).collect()
        };
        let mut pairs = Self {
            loss: 0.0,
            slopes: Vec::new(),
            nll: 0.0,
            nll_weight: nll_weight(options),
            figures: Self::no_figures(),
        };
        let nothing = vec![0.0; policy.len()];
        let references = pairs_of(reference.unwrap_or(&nothing));
        for ((policy, of_reference), num_labels) in
            pairs_of(policy).into_iter().zip(references).zip(pairs_of(&num_labels))
        {
            let mut of_pair = Pair { chosen: 0.0, rejected: 0.0 };
            for (loss, weight) in options.losses() {
                let PairLoss { loss, slopes } =
                    pair_loss(loss, options, policy, of_reference, num_labels);
                pairs.loss += weight * loss;
                of_pair.chosen += weight * slopes.chosen;
                of_pair.rejected += weight * slopes.rejected;
            }
            pairs.slopes.push(of_pair);
            pairs.nll -= pairs.nll_weight * policy.chosen;
            let log_probs = if reference.is_some() { policy } else { policy.over(num_labels) };
            let beyond = log_probs.minus(of_reference);
            let figures = [
                options.beta * beyond.chosen,
                options.beta * beyond.rejected,
                f64::from(u8::from(beyond.chosen > beyond.rejected)),
                options.beta * (beyond.chosen - beyond.rejected),
                log_probs.chosen,
                log_probs.rejected,
            ];
            pairs.figures.add(&figures.map(Some));
        }
        pairs
    }

    /// What is minimised: the mean over pairs, and the weighted one over the tokens of chosen replies.
    pub fn mean(&self, counts: Counts) -> f64 {
        self.loss / counts.pairs + self.nll / counts.tokens
    }

    /// The slope of [`Self::mean`] by the log-probability of each sample.
    pub fn slopes_of_mean(&self, counts: Counts) -> Vec<f64> {
        let of_token = self.nll_weight / counts.tokens;
        let of_pair = |slopes: &Pair| {
            [slopes.chosen / counts.pairs - of_token, slopes.rejected / counts.pairs]
        };
        self.slopes.iter().flat_map(of_pair).collect()
    }
}

/// What the mean of `-ln p` over the tokens of chosen replies is multiplied by.
///
/// # Source
///
/// TRL `dpo_trainer.py`, `sft` of `_compute_loss`: the mean over the tokens of all chosen replies of a batch. ORPO has it too (arXiv
/// 2403.07691, equation 6); TRL's takes prompts into that mean, the paper does not.
fn nll_weight(options: &DpoOptions) -> f64 {
    let has_nll = |loss| matches!(loss, DpoLoss::Sft | DpoLoss::Orpo);
    options.losses().filter(|(loss, _)| has_nll(*loss)).map(|(_, weight)| weight).sum()
}

/// The losses of the pairs of a micro-batch, in means over a step.
#[derive(Debug)]
pub struct Dpo<'a> {
    options: &'a DpoOptions,
    /// Of each sample of the micro-batch, the sum of its log-probabilities by the reference model, if there is one.
    reference: Option<&'a [f64]>,
    num_labels: Vec<usize>,
    counts: Counts,
    figures: RefCell<Figures>,
}

impl<'a> Dpo<'a> {
    /// Sums over the pairs of `batch` and over the tokens of their chosen replies, divided by `counts`.
    pub fn new(
        options: &'a DpoOptions,
        batch: &MicroBatch,
        reference: Option<&'a [f64]>,
        counts: Counts,
    ) -> Self {
        let (num_labels, figures) = (batch.num_labels_of_samples(), RefCell::default());
        Self { options, reference, num_labels, counts, figures }
    }

    /// For each micro-batch of a step, so that the step's loss is the sum over micro-batches and ranks: the mean over pairs of a
    /// micro-batch and over micro-batches, or over all pairs of the step, and of the tokens of chosen replies likewise.
    ///
    /// # Communication
    ///
    /// `loss_average: token` takes one all-reduce of the numbers of pairs and tokens. Collective.
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
    ) -> Result<Vec<Self>, TrainError> {
        let of_batch = |batch: &MicroBatch| Counts::of(&batch.num_labels_of_samples());
        let all = batches.iter().zip(references);
        match average {
            LossAverage::MicroBatch => {
                let num_micro_batches = (comm.mesh.size(Axis::Dp) * batches.len()) as f64;
                let of_batch = |batch: &MicroBatch| {
                    let Counts { pairs, tokens } = of_batch(batch);
                    Counts { pairs: pairs * num_micro_batches, tokens: tokens * num_micro_batches }
                };
                Ok(all
                    .map(|(batch, reference)| {
                        Self::new(options, batch, *reference, of_batch(batch))
                    })
                    .collect())
            }
            LossAverage::Token => {
                let of_batches: Vec<Counts> = batches.iter().map(of_batch).collect();
                let pairs = of_batches.iter().map(|counts| counts.pairs).sum();
                let tokens = of_batches.iter().map(|counts| counts.tokens).sum();
                let total = sum(comm.dp(), &[pairs, tokens])?;
                let counts = Counts { pairs: total[0], tokens: total[1] };
                Ok(all
                    .map(|(batch, reference)| Self::new(options, batch, *reference, counts))
                    .collect())
            }
        }
    }
}

impl Objective for Dpo<'_> {
    fn token_weights(&self, labels: &mut Labels<'_>) -> Result<TokenWeights, TrainError> {
        let policy = labels.log_probs_of_samples(self.num_labels.len())?;
        let pairs = Pairs::new(self.options, &policy, self.reference, &self.num_labels);
        let slopes = pairs.slopes_of_mean(self.counts);
        // Every rank of the sequence knows all of it.
        let loss = pairs.mean(self.counts) / labels.sp.size() as f64;
        self.figures.replace(pairs.figures);
        Ok(TokenWeights { weights: -labels.of_samples(&slopes), loss: Loss::Value(loss) })
    }

    fn share(&self, _: &MicroBatch) -> f64 {
        Counts::of(&self.num_labels).pairs / self.counts.pairs
    }

    fn figures(&self) -> Figures {
        self.figures.borrow().clone()
    }
}
