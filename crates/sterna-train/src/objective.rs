//! What a training minimises.
//!
//! The engine knows one form of loss: a sum over labels of a weight times `-ln p`. Its gradient needs the weights alone, and they are
//! known before the head's backward, because an objective whose weights depend on the log-probabilities can ask for them first. So a
//! loss that is not such a sum, `L(ln p_1, .., ln p_n)`, has the weights `-dL/d(ln p_t)`.

mod dpo;
mod sft;

use sterna_comm::Group;
use sterna_data::MicroBatch;
use tch::{Device, Kind, Tensor};

use crate::error::TrainError;

pub use self::{
    dpo::{Counts, Dpo, Pair, PairLoss, Pairs, pair_loss},
    sft::Sft,
};

/// What one micro-batch of a step minimises.
pub trait Objective {
    /// The weights of this rank's labels.
    ///
    /// # Communication
    ///
    /// What the objective needs of the labels of other ranks, over [`Labels::sp`]. It asks for log-probabilities on all ranks or on none.
    ///
    /// # Errors
    ///
    /// Those of `labels`; [`TrainError::Comm`] if a peer failed.
    fn token_weights(&self, labels: &mut Labels<'_>) -> Result<TokenWeights, TrainError>;

    /// What it reports beside the loss, once it has been asked for weights; the same on every rank of the sequence.
    fn figures(&self) -> Figures {
        Figures::default()
    }

    /// What an average over the tokens of `batch` counts in the loss of the step: the auxiliary loss of routers has no label.
    fn share(&self, batch: &MicroBatch) -> f64;
}

/// Means under names, as sums and how many.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    names: &'static [&'static str],
    /// How many, and then the sums.
    values: Vec<f64>,
}

/// The labels of one micro-batch on this rank, in the order of tokens.
pub struct Labels<'a> {
    /// Which of the micro-batch's samples each is of.
    pub samples: &'a [i64],
    /// Where the model computes.
    pub device: Device,
    /// The ranks that have the other labels of the micro-batch.
    pub sp: &'a Group,
    log_probs: &'a mut dyn FnMut() -> Result<Tensor, TrainError>,
}

/// How much each label counts, and what the loss is.
#[derive(Debug)]
pub struct TokenWeights {
    /// `[labels]`, double precision: what the gradient of each label's `-ln p` is multiplied by.
    pub weights: Tensor,
    /// This rank's part of the loss.
    pub loss: Loss,
}

/// A rank's part of a step's loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// This times the sum of `-ln p` over the rank's labels.
    ScaledSum(f64),
    /// This.
    Value(f64),
}

impl<'a> Labels<'a> {
    pub(crate) fn new(
        samples: &'a [i64],
        device: Device,
        sp: &'a Group,
        log_probs: &'a mut dyn FnMut() -> Result<Tensor, TrainError>,
    ) -> Self {
        Self { samples, device, sp, log_probs }
    }

    /// `ln p` of each label, `[labels]`, double precision, by one more forward of the head.
    ///
    /// # Errors
    ///
    /// [`TrainError::Model`].
    pub fn log_probs(&mut self) -> Result<Tensor, TrainError> {
        (self.log_probs)()
    }

    /// The same weight for all.
    pub fn uniform(&self, weight: f64) -> Tensor {
        Tensor::full([self.samples.len() as i64], weight, (Kind::Double, self.device))
    }
}

impl Figures {
    /// Means of nothing yet.
    pub(crate) fn named(names: &'static [&'static str]) -> Self {
        Self { names, values: vec![0.0; 1 + names.len()] }
    }

    /// Adds one to what the means are over.
    pub(crate) fn add(&mut self, values: &[f64]) {
        self.values[0] += 1.0;
        for (sum, value) in self.values[1..].iter_mut().zip(values) {
            *sum += value;
        }
    }

    /// Adds what `other` is over, if it is of the same names.
    pub(crate) fn merge(&mut self, other: &Figures) {
        if self.names.is_empty() {
            self.clone_from(other);
            return;
        }
        for (sum, value) in self.values.iter_mut().zip(&other.values) {
            *sum += value;
        }
    }

    /// What is summed over ranks.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The means, from the sums over ranks.
    pub fn means(&self, values: &[f64]) -> Vec<(&'static str, f64)> {
        let Some((count, sums)) = values.split_first() else { return Vec::new() };
        self.names.iter().zip(sums).map(|(name, sum)| (*name, sum / count)).collect()
    }
}

impl Loss {
    /// Its value, where the sum of `-ln p` is this.
    pub(crate) fn value(self, sum: f64) -> f64 {
        match self {
            Self::ScaledSum(scale) => sum * scale,
            Self::Value(value) => value,
        }
    }
}
