//! Preferences: losses of how much more a model prefers one reply to another than the reference model does.
//!
//! Direct Preference Optimization (arXiv 2305.18290, equation 7) and its kin see a pair only through the log-probabilities of its two
//! replies, sums over their tokens. So the loss of a pair and its slopes by those two numbers are arithmetic on the host, and the weight
//! of a token's `-ln p` is the slope of its reply, negated.

use std::cell::RefCell;

use sterna_comm::{Comm, ReduceOp};
use sterna_data::MicroBatch;
use sterna_mesh::Axis;
use sterna_recipe::{DpoLoss, DpoOptions, LossAverage};
use sterna_torch_sys::copies::upload;
use tch::{Kind, Tensor};

use super::{Figures, Labels, Loss, Objective, TokenWeights};
use crate::{error::TrainError, scalars::sum};

/// What EXO smooths by where the recipe asks for nothing, as in TRL: its logarithm is needed.
const EXO_SMOOTHING: f64 = 1e-3;

/// Log-probabilities of the replies of a pair: sums over tokens, means for [`DpoLoss::Ipo`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Of the better reply.
    pub chosen: f64,
    /// Of the worse one.
    pub rejected: f64,
}

/// The loss of a pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairLoss {
    /// Its value.
    pub loss: f64,
    /// Its slopes by [`Pair::chosen`] and [`Pair::rejected`].
    pub slopes: Pair,
}

/// The loss of a pair whose log-probabilities are `policy`, and `reference` for the reference model.
///
/// # Source
///
/// TRL `dpo_trainer.py` (`dpo_loss`), whose names these are: sigmoid of arXiv 2305.18290 and, smoothed, of
/// ericmitchell.ai/cdpo.pdf; hinge of arXiv 2305.10425; ipo of 2310.12036, equation 17; robust of 2403.00409; `exo_pair` of 2402.00856,
/// equation 16; `nca_pair` of 2402.05369; `sppo_hard` of 2405.00675, equation 4.7; apo of 2408.06266, equations 7 and 8.
pub fn pair_loss(options: &DpoOptions, policy: Pair, reference: Pair) -> PairLoss {
    let (beta, smoothing) = (options.beta, options.label_smoothing);
    let (a, b) = (policy.chosen - reference.chosen, policy.rejected - reference.rejected);
    let s = beta * (a - b);
    // Of a loss of `a - b` alone.
    let of_margin = |loss: f64, slope: f64| PairLoss {
        loss,
        slopes: Pair { chosen: beta * slope, rejected: -beta * slope },
    };
    let of_both = |loss: f64, chosen: f64, rejected: f64| PairLoss {
        loss,
        slopes: Pair { chosen, rejected },
    };
    match options.loss_type {
        DpoLoss::Sigmoid => of_margin(
            -(1.0 - smoothing) * log_sigmoid(s) - smoothing * log_sigmoid(-s),
            -(1.0 - smoothing) * sigmoid(-s) + smoothing * sigmoid(s),
        ),
        DpoLoss::Robust => {
            let scale = 1.0 / (1.0 - 2.0 * smoothing);
            of_margin(
                scale * (-(1.0 - smoothing) * log_sigmoid(s) + smoothing * log_sigmoid(-s)),
                scale * (-(1.0 - smoothing) * sigmoid(-s) - smoothing * sigmoid(s)),
            )
        }
        DpoLoss::ExoPair => {
            let smoothing = if smoothing > 0.0 { smoothing } else { EXO_SMOOTHING };
            let (of_chosen, of_rejected) = ((-smoothing).ln_1p(), smoothing.ln());
            of_margin(
                sigmoid(s) * (log_sigmoid(s) - of_chosen)
                    + sigmoid(-s) * (log_sigmoid(-s) - of_rejected),
                // The logarithms differ by s.
                sigmoid(s) * sigmoid(-s) * (s - of_chosen + of_rejected),
            )
        }
        DpoLoss::Hinge => of_margin((1.0 - s).max(0.0), if s < 1.0 { -1.0 } else { 0.0 }),
        DpoLoss::Ipo => {
            let beyond = a - b - 0.5 / beta;
            of_margin(beyond * beyond, 2.0 * beyond / beta)
        }
        DpoLoss::NcaPair => {
            let (a, b) = (beta * a, beta * b);
            of_both(
                -log_sigmoid(a) - 0.5 * log_sigmoid(-a) - 0.5 * log_sigmoid(-b),
                beta * (0.5 * sigmoid(a) - sigmoid(-a)),
                beta * 0.5 * sigmoid(b),
            )
        }
        DpoLoss::SppoHard => {
            let (a, b) = (a - 0.5 / beta, b + 0.5 / beta);
            of_both(a * a + b * b, 2.0 * a, 2.0 * b)
        }
        DpoLoss::ApoZero => {
            let (a, b) = (beta * a, beta * b);
            of_both(sigmoid(-a) + sigmoid(b), -beta * bump(a), beta * bump(b))
        }
        DpoLoss::ApoDown => {
            let a = beta * a;
            let of_margin = beta * bump(s);
            of_both(sigmoid(a) + sigmoid(-s), beta * bump(a) - of_margin, of_margin)
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The slope of the sigmoid.
fn bump(x: f64) -> f64 {
    sigmoid(x) * sigmoid(-x)
}

/// `ln sigmoid(x)`, also where the sigmoid is 0.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

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
    /// The sum over pairs.
    pub loss: f64,
    /// Its slope by the log-probability of each sample.
    pub slopes: Vec<f64>,
    /// Sums over pairs of rewards, `beta` times the log-probability beyond the reference model's, and of log-probabilities.
    pub figures: Figures,
}

impl Pairs {
    /// Figures of no pair.
    pub(crate) fn no_figures() -> Figures {
        Figures::named(&FIGURES)
    }

    /// `policy` and `reference` are the sums of log-probabilities of each sample, and `num_labels` how many those are.
    pub fn new(
        options: &DpoOptions,
        policy: &[f64],
        reference: &[f64],
        num_labels: &[usize],
    ) -> Self {
        let mut pairs = Self { loss: 0.0, slopes: Vec::new(), figures: Self::no_figures() };
        let pairs_of = |values: &[f64]| -> Vec<Pair> {
            values.chunks_exact(2).map(|pair| Pair { chosen: pair[0], rejected: pair[1] }).collect()
        };
        let lens = num_labels.chunks_exact(2).map(|lens| match options.loss_type {
            DpoLoss::Ipo => Pair { chosen: lens[0] as f64, rejected: lens[1] as f64 },
            _ => Pair { chosen: 1.0, rejected: 1.0 },
        });
        for ((sums, of_reference), len) in
            pairs_of(policy).into_iter().zip(pairs_of(reference)).zip(lens)
        {
            let per_token = |pair: Pair| Pair {
                chosen: pair.chosen / len.chosen,
                rejected: pair.rejected / len.rejected,
            };
            let (policy, reference) = (per_token(sums), per_token(of_reference));
            let PairLoss { loss, slopes } = pair_loss(options, policy, reference);
            pairs.loss += loss;
            let slopes = per_token(slopes);
            pairs.slopes.extend([slopes.chosen, slopes.rejected]);
            let chosen = options.beta * (policy.chosen - reference.chosen);
            let rejected = options.beta * (policy.rejected - reference.rejected);
            pairs.figures.add(&[
                chosen,
                rejected,
                f64::from(u8::from(chosen > rejected)),
                chosen - rejected,
                policy.chosen,
                policy.rejected,
            ]);
        }
        pairs
    }
}

/// Every pair of a micro-batch counts the same.
#[derive(Debug)]
pub struct Dpo<'a> {
    options: &'a DpoOptions,
    /// What the loss of a pair is multiplied by.
    weight: f64,
    /// Of each sample of the micro-batch, the sum of its log-probabilities by the reference model.
    reference: &'a [f64],
    num_labels: Vec<usize>,
    figures: RefCell<Figures>,
}

impl<'a> Dpo<'a> {
    /// Pairs of `batch` count `weight` each.
    pub fn new(
        options: &'a DpoOptions,
        batch: &MicroBatch,
        reference: &'a [f64],
        weight: f64,
    ) -> Self {
        let (num_labels, figures) = (batch.num_labels_of_samples(), RefCell::default());
        Self { options, weight, reference, num_labels, figures }
    }

    /// For each micro-batch of a step, so that the step's loss is the sum over micro-batches and ranks: the mean over pairs of a
    /// micro-batch and over micro-batches, or over all pairs of the step.
    ///
    /// # Communication
    ///
    /// `loss_average: token` takes one all-reduce of the number of pairs. Collective.
    ///
    /// # Errors
    ///
    /// [`TrainError::Comm`] if a peer failed.
    pub(crate) fn of_step(
        comm: &Comm,
        average: LossAverage,
        options: &'a DpoOptions,
        batches: &[MicroBatch],
        references: &[&'a [f64]],
    ) -> Result<Vec<Self>, TrainError> {
        let num_pairs = |reference: &[f64]| (reference.len() / 2) as f64;
        let total = match average {
            LossAverage::MicroBatch => None,
            LossAverage::Token => {
                let of_rank = references.iter().map(|reference| num_pairs(reference)).sum();
                Some(sum(comm.dp(), &[of_rank])?[0])
            }
        };
        let num_micro_batches = (comm.mesh.size(Axis::Dp) * batches.len()) as f64;
        let of_batch = |(batch, reference): (&MicroBatch, &&'a [f64])| {
            let count = total.unwrap_or_else(|| num_pairs(reference) * num_micro_batches);
            Self::new(options, batch, reference, 1.0 / count)
        };
        Ok(batches.iter().zip(references).map(of_batch).collect())
    }
}

impl Objective for Dpo<'_> {
    fn token_weights(&self, labels: &mut Labels<'_>) -> Result<TokenWeights, TrainError> {
        let log_probs = labels.log_probs()?;
        let num_samples = self.reference.len() as i64;
        let mut sums = Tensor::zeros([num_samples], (Kind::Double, labels.device));
        let samples = upload(Tensor::from_slice(labels.samples), labels.device);
        let _ = sums.index_add_(0, &samples, &log_probs);
        labels.sp.all_reduce_(&sums, ReduceOp::Sum)?;
        let sums = Vec::<f64>::try_from(sums).expect("one dimension, double precision");
        let Pairs { loss, slopes, figures } =
            Pairs::new(self.options, &sums, self.reference, &self.num_labels);
        self.figures.replace(figures);
        let slopes = upload(Tensor::from_slice(&slopes), labels.device);
        Ok(TokenWeights {
            weights: slopes.index_select(0, &samples) * -self.weight,
            // Every rank of the sequence knows all of it.
            loss: Loss::Value(self.weight * loss / labels.sp.size() as f64),
        })
    }

    fn share(&self, _: &MicroBatch) -> f64 {
        self.weight * (self.reference.len() / 2) as f64
    }

    fn figures(&self) -> Figures {
        self.figures.borrow().clone()
    }
}
