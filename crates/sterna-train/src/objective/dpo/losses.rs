//! The losses of one pair.

use sterna_recipe::{DpoLoss, DpoOptions};

/// What EXO smooths by where the recipe asks for nothing, as in TRL: its logarithm is needed.
const EXO_SMOOTHING: f64 = 1e-3;

/// A number for each reply of a pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Of the better reply.
    pub chosen: f64,
    /// Of the worse one.
    pub rejected: f64,
}

impl Pair {
    fn of_each(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self { chosen: f(self.chosen, other.chosen), rejected: f(self.rejected, other.rejected) }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        self.of_each(other, |a, b| a - b)
    }

    pub(super) fn over(self, other: Self) -> Self {
        self.of_each(other, |a, b| a / b)
    }
}

/// The loss of a pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairLoss {
    /// Its value.
    pub loss: f64,
    /// Its slopes by the log-probabilities of the two replies.
    pub slopes: Pair,
}

/// A loss of a pair whose replies have log-probabilities of `policy`, and of `reference` by the reference model: sums over their
/// `num_labels` tokens.
///
/// # Source
///
/// TRL `dpo_trainer.py` (`dpo_loss`), whose names these are: sigmoid of arXiv 2305.18290 and, smoothed, of
/// ericmitchell.ai/cdpo.pdf; hinge of arXiv 2305.10425; ipo of 2310.12036, equation 17; robust of 2403.00409; `exo_pair` of 2402.00856,
/// equation 16; `nca_pair` of 2402.05369; `sppo_hard` of 2405.00675, equation 4.7; apo of 2408.06266, equations 7 and 8. `simpo` is TRL's
/// `cpo_trainer.py`, arXiv 2405.14734, equation 6; `orpo` is its `orpo_trainer.py`, 2403.07691, equation 7 times `beta`, the paper's
/// lambda. `sft`, and the first term of `orpo` (equation 6), are no losses of a pair: `Pairs::nll` has them. Those of
/// replies without pairs are [`super::super::Replies`].
pub fn pair_loss(
    loss: DpoLoss,
    options: &DpoOptions,
    policy: Pair,
    reference: Pair,
    num_labels: Pair,
) -> PairLoss {
    let (beta, smoothing) = (options.beta, options.label_smoothing);
    let Pair { chosen: a, rejected: b } = policy.minus(reference);
    let s = beta * (a - b);
    // Of a loss of `a - b` alone.
    let of_margin = |loss: f64, slope: f64| PairLoss {
        loss,
        slopes: Pair { chosen: beta * slope, rejected: -beta * slope },
    };
    // Of a difference of means over tokens.
    let of_means = |loss: f64, slope: f64| PairLoss {
        loss,
        slopes: Pair { chosen: slope, rejected: -slope }.over(num_labels),
    };
    let of_both = |loss: f64, chosen: f64, rejected: f64| PairLoss {
        loss,
        slopes: Pair { chosen, rejected },
    };
    match loss {
        DpoLoss::Sigmoid => {
            let (loss, slope) = smoothed(s, smoothing);
            of_margin(loss, slope)
        }
        DpoLoss::SigmoidNorm => {
            let Pair { chosen, rejected } = Pair { chosen: a, rejected: b }.over(num_labels);
            let (loss, slope) = smoothed(beta * (chosen - rejected), 0.0);
            of_means(loss, beta * slope)
        }
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
            let Pair { chosen, rejected } = Pair { chosen: a, rejected: b }.over(num_labels);
            let beyond = chosen - rejected - 0.5 / beta;
            of_means(beyond * beyond, 2.0 * beyond)
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
        DpoLoss::Simpo => {
            let Pair { chosen, rejected } = policy.over(num_labels);
            let (loss, slope) =
                smoothed(beta * (chosen - rejected) - options.simpo_gamma, smoothing);
            of_means(loss, beta * slope)
        }
        DpoLoss::Orpo => {
            let Pair { chosen: a, rejected: b } = policy.over(num_labels);
            // Probabilities and what is left of 1.
            let (p_a, p_b, q_a, q_b) = (a.exp(), b.exp(), -a.exp_m1(), -b.exp_m1());
            let log_odds = (a - b) - (q_a.ln() - q_b.ln());
            // The slope by `a` is -sigmoid(-log_odds) / q_a, written so that a chosen reply may be certain.
            let scale = beta / (p_b * q_a + p_a * q_b);
            let slopes = Pair { chosen: -scale * p_b, rejected: scale * p_b * q_a / q_b };
            PairLoss { loss: -beta * log_sigmoid(log_odds), slopes: slopes.over(num_labels) }
        }
        DpoLoss::Sft | DpoLoss::Kto | DpoLoss::ApoZeroUnpaired => of_both(0.0, 0.0, 0.0),
    }
}

/// `-ln sigmoid(x)` where the pair is the wrong way round with this probability, and its slope.
fn smoothed(x: f64, smoothing: f64) -> (f64, f64) {
    (
        -(1.0 - smoothing) * log_sigmoid(x) - smoothing * log_sigmoid(-x),
        -(1.0 - smoothing) * sigmoid(-x) + smoothing * sigmoid(x),
    )
}

pub(in crate::objective) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The slope of the sigmoid.
pub(in crate::objective) fn bump(x: f64) -> f64 {
    sigmoid(x) * sigmoid(-x)
}

/// `ln sigmoid(x)`, also where the sigmoid is 0.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}
