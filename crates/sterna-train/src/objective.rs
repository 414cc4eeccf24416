//! What a training minimises.
//!
//! The engine knows one form of loss: a sum over labels of a weight times `-ln p`. Its gradient needs the weights alone, and they are
//! known before the head's backward, because an objective whose weights depend on the log-probabilities can ask for them first. So a
//! loss that is not such a sum, `L(ln p_1, .., ln p_n)`, has the weights `-dL/d(ln p_t)`.

mod sft;

use sterna_comm::Group;
use sterna_data::MicroBatch;
use tch::{Device, Kind, Tensor};

use crate::error::TrainError;

pub use self::sft::Sft;

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

    /// What an average over the tokens of `batch` counts in the loss of the step: the auxiliary loss of routers has no label.
    fn share(&self, batch: &MicroBatch) -> f64;
}

/// The labels of one micro-batch on this rank, in the order of tokens.
pub struct Labels<'a> {
    /// How many there are.
    pub number: usize,
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
        number: usize,
        device: Device,
        sp: &'a Group,
        log_probs: &'a mut dyn FnMut() -> Result<Tensor, TrainError>,
    ) -> Self {
        Self { number, device, sp, log_probs }
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
        Tensor::full([self.number as i64], weight, (Kind::Double, self.device))
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
