//! What a training minimises.
//!
//! The engine knows one form of loss: a sum over labels of a weight times `-ln p`. Its gradient needs the weights alone, and they are
//! known before the head's backward, because an objective whose weights depend on the log-probabilities can ask for them first. So a
//! loss that is not such a sum, `L(ln p_1, .., ln p_n)`, has the weights `-dL/d(ln p_t)`.

mod dpo;
mod kto;
mod sft;

use sterna_comm::{Group, ReduceOp};
use sterna_data::MicroBatch;
use sterna_torch_sys::copies::upload;
use tch::{Device, Kind, Tensor};

use crate::error::TrainError;

pub(crate) use self::kto::num_replies;
pub use self::{
    dpo::{Counts, Dpo, Pair, PairLoss, Pairs, pair_loss},
    kto::{Kto, Replies},
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
    /// Of each name the sum, and how many.
    values: Vec<[f64; 2]>,
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

    /// `ln p` of each of the micro-batch's samples: the sum over its labels, those of other ranks too.
    ///
    /// # Communication
    ///
    /// One all-reduce over [`Self::sp`]. Collective.
    ///
    /// # Errors
    ///
    /// As [`Self::log_probs`]; [`TrainError::Comm`] if a peer failed.
    pub(crate) fn log_probs_of_samples(
        &mut self,
        num_samples: usize,
    ) -> Result<Vec<f64>, TrainError> {
        let log_probs = self.log_probs()?;
        let mut sums = Tensor::zeros([num_samples as i64], (Kind::Double, self.device));
        let _ = sums.index_add_(0, &self.sample_idxs(), &log_probs);
        self.sp.all_reduce_(&sums, ReduceOp::Sum)?;
        Ok(Vec::try_from(sums).expect("one dimension, double precision"))
    }

    /// For each label the number of its sample.
    pub(crate) fn of_samples(&self, numbers: &[f64]) -> Tensor {
        let numbers = upload(Tensor::from_slice(numbers), self.device);
        numbers.index_select(0, &self.sample_idxs())
    }

    fn sample_idxs(&self) -> Tensor {
        upload(Tensor::from_slice(self.samples), self.device)
    }

    /// The same weight for all.
    pub fn uniform(&self, weight: f64) -> Tensor {
        Tensor::full([self.samples.len() as i64], weight, (Kind::Double, self.device))
    }
}

impl Figures {
    /// Means of nothing yet.
    pub(crate) fn named(names: &'static [&'static str]) -> Self {
        Self { names, values: vec![[0.0; 2]; names.len()] }
    }

    /// Adds one to what the means are over, of those that have a value.
    pub(crate) fn add(&mut self, values: &[Option<f64>]) {
        for ([sum, count], value) in self.values.iter_mut().zip(values) {
            if let Some(value) = value {
                *sum += value;
                *count += 1.0;
            }
        }
    }

    /// Adds what `other` is over, if it is of the same names.
    pub(crate) fn merge(&mut self, other: &Figures) {
        if self.names.is_empty() {
            self.clone_from(other);
            return;
        }
        for (value, other) in
            self.values.as_flattened_mut().iter_mut().zip(other.values.as_flattened())
        {
            *value += other;
        }
    }

    /// What is summed over ranks.
    pub fn values(&self) -> &[f64] {
        self.values.as_flattened()
    }

    /// The means, from the sums over ranks; not those of nothing.
    pub fn means(&self, values: &[f64]) -> Vec<(&'static str, f64)> {
        let (values, _) = values.as_chunks::<2>();
        let means = self.names.iter().zip(values).filter(|(_, [_, count])| *count > 0.0);
        means.map(|(name, [sum, count])| (*name, sum / count)).collect()
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
