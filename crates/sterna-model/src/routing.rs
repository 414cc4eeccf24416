//! How many tokens each expert takes, and the auxiliary loss of routers, which keeps experts equally busy.
//!
//! With `c_e` how often expert `e` is chosen and `p_e` the sum of its probabilities, both over the `N` rows that all tokens have in all
//! layers with experts: `loss = coef * E * sum over e of (c_e / N) (p_e / N)`. Counts have no gradient, so that of a row's probability
//! of `e` is `coef * E * c_e / N^2` whatever the row: it is known as soon as all layers have gone forward, before any goes backward.
//!
//! # Source
//!
//! Fedus et al. 2021, <https://arxiv.org/abs/2101.03961>, equations 4 to 6; transformers `models/mixtral`, `load_balancing_loss_func`,
//! which takes one mean over all layers and tokens. Here tokens are those of all ranks that share the sequence, padding left out.

use sterna_arch::Architecture;
use sterna_comm::{Group, ReduceOp};
use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

/// What the routers of a micro-batch chose.
#[derive(Debug)]
pub struct Routing {
    /// What the auxiliary loss is multiplied by, in a model that has one.
    coef: Option<f64>,
    /// `[b * s/p, 1]`: 1 for a token, 0 for padding; double.
    is_token: Tensor,
    /// `[layers, experts]`, double: how many tokens take each.
    loads: Tensor,
    /// `[2, experts]`, double, for the auxiliary loss: how often each is chosen, and the sum of its probabilities.
    sums: Tensor,
    /// Once the forward has ended, both times `weight`: the loss, and `[experts]`, the gradient of a row's probabilities; double.
    loss: Option<Tensor>,
    gradient: Option<Tensor>,
}

impl Routing {
    /// For a model with experts; `is_token` says of this rank's rows which are no padding.
    pub fn new(arch: &Architecture, is_token: &[bool], device: Device) -> Option<Routing> {
        let num_experts = arch.moe_layers().map(|moe| moe.experts.len()).max()? as i64;
        let is_token: Vec<f64> = is_token.iter().map(|is_token| f64::from(*is_token)).collect();
        let zeros = |rows: i64| Tensor::zeros([rows, num_experts], (Kind::Double, device));
        Some(Routing {
            coef: arch.router_aux_loss_coef,
            is_token: Tensor::from_slice(&is_token).unsqueeze(-1).to_device(device),
            loads: zeros(arch.layers.len() as i64),
            sums: zeros(2),
            loss: None,
            gradient: None,
        })
    }

    /// How many of this rank's tokens take each expert, `[layers, experts]`, double: what has been counted so far.
    pub fn loads(&self) -> &Tensor {
        &self.loads
    }

    /// Whether there is an auxiliary loss.
    pub(crate) fn has_loss(&self) -> bool {
        self.coef.is_some()
    }

    /// Adds to the loads of a layer what a tile of rows from `start` on chose, `[tile, k]`.
    pub(crate) fn count_loads(&self, layer_idx: usize, start: i64, chosen: &Tensor) {
        self.add_counts(&self.loads.get(layer_idx as i64), start, chosen);
    }

    /// Adds what a tile of rows from `start` on chose to the auxiliary loss: `probs` `[tile, experts]` and `chosen` `[tile, k]`.
    pub(crate) fn count(&self, start: i64, probs: &Tensor, chosen: &Tensor) {
        self.add_counts(&self.sums.get(0), start, chosen);
        let is_token = self.is_token.narrow(0, start, chosen.size()[0]);
        let sums = self.sums.get(1);
        let of_tile = (probs * is_token).sum_dim_intlist(0_i64, false, Kind::Double);
        let _ = sums.shallow_clone().g_add_(&of_tile);
    }

    fn add_counts(&self, counts: &Tensor, start: i64, chosen: &Tensor) {
        let size = chosen.size();
        let weights = self.is_token.narrow(0, start, size[0]).expand(&size, false).reshape([-1]);
        // Counts are exact in any order. A histogram would make the host wait for a GPU.
        let _ = counts.shallow_clone().index_add_(0, &chosen.reshape([-1]), &weights);
    }

    /// Ends the forward: from now on the backward of a block adds the gradient of `weight` times the loss. `num_rows` is `N`.
    ///
    /// # Communication
    ///
    /// One all-reduce over the sp axis in a model with that loss. Collective.
    ///
    /// # Errors
    ///
    /// [`ModelError::Comm`] if a peer fails.
    pub fn finish(&mut self, sp: &Group, num_rows: usize, weight: f64) -> Result<(), ModelError> {
        let Some(coef) = self.coef else { return Ok(()) };
        sp.all_reduce_(&self.sums, ReduceOp::Sum)?;
        let num_rows = num_rows.max(1) as f64;
        let num_experts = self.sums.size()[1] as f64;
        let factor = coef * num_experts / (num_rows * num_rows) * weight;
        let (counts, sums) = (self.sums.get(0), self.sums.get(1));
        self.gradient = Some(&counts * factor);
        self.loss = Some((counts * sums).sum(Kind::Double) * factor);
        Ok(())
    }

    /// `weight` times the loss, the same on every rank of `sp`; 0 before the forward has ended. The host waits for the device.
    pub fn loss(&self) -> f64 {
        self.loss.as_ref().map_or(0.0, |loss| loss.double_value(&[]))
    }

    /// Adds the gradient of the probabilities of a tile of rows from `start` on, `d_probs` `[tile, experts]`.
    pub(crate) fn add_gradient(&self, start: i64, d_probs: &Tensor) {
        let Some(gradient) = &self.gradient else { return };
        let is_token = self.is_token.narrow(0, start, d_probs.size()[0]);
        let _ = d_probs.shallow_clone().g_add_(&(is_token * gradient));
    }
}
