//! The experts of a layer, gathered and reduced a group at a time.

use sterna_arch::{Layer, units::Unit};
use sterna_comm::Group;
use sterna_model::{BlockGrads, BlockParams, Experts, ModelError};

use super::{Model, views_of};
use crate::zero::{Gradients, Zero};

/// One visit of a layer's experts.
pub(super) struct ExpertUnits<'e> {
    zero: &'e mut Zero,
    world: &'e Group,
    layer: &'e Layer,
    /// One for each group.
    units: &'e [Unit],
    first_unit_idx: usize,
    /// The unit that is gathered after the last group.
    next: Option<usize>,
    /// The unit whose gradients come after those of the last group.
    next_gradients: Option<usize>,
    gradients: Option<Gradients>,
}

impl<'e> ExpertUnits<'e> {
    pub(super) fn new(
        model: &'e Model<'_>,
        zero: &'e mut Zero,
        layer_idx: usize,
        next: Option<usize>,
        next_gradients: Option<usize>,
    ) -> Self {
        let units = model.units.experts(layer_idx);
        Self {
            zero,
            world: model.comm.world(),
            layer: &model.arch.layers[layer_idx],
            units: &model.units.all()[units.clone()],
            first_unit_idx: units.start,
            next,
            next_gradients,
            gradients: None,
        }
    }

    /// The unit of the group after this one.
    fn next_group(&self, group_idx: usize) -> Option<usize> {
        (group_idx + 1 < self.units.len()).then_some(self.first_unit_idx + group_idx + 1)
    }
}

impl Experts for ExpertUnits<'_> {
    fn gather(&mut self, group_idx: usize) -> Result<BlockParams, ModelError> {
        let unit_idx = self.first_unit_idx + group_idx;
        let weights = self.zero.gather(self.world, unit_idx)?;
        if let Some(next) = self.next_group(group_idx).or(self.next) {
            self.zero.prefetch(self.world, next)?;
        }
        let params = BlockParams::new(self.layer, &self.units[group_idx].param_idxs, weights)?;
        Ok(params.widened_for_products(self.layer))
    }

    fn gradients(&mut self, group_idx: usize) -> Result<BlockGrads, ModelError> {
        let gradients = self.zero.gradients(self.first_unit_idx + group_idx)?;
        if let Some(next) = self.next_group(group_idx).or(self.next_gradients) {
            self.zero.prefetch_gradients(next)?;
        }
        let param_idxs = &self.units[group_idx].param_idxs;
        let grads = BlockGrads::new(self.layer, param_idxs, views_of(&gradients))?;
        self.gradients = Some(gradients);
        Ok(grads)
    }

    fn reduce(&mut self) -> Result<(), ModelError> {
        match self.gradients.take() {
            Some(gradients) => Ok(self.zero.reduce(self.world, gradients)?),
            None => Ok(()),
        }
    }
}
