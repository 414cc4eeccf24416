//! What is gathered and reduced at once, and where each parameter lies in its flat buffers.
//!
//! A unit is the embedding, one layer, or the final norm with the head. Its parameters are laid out in at most two flat buffers, one
//! with and one without weight decay, so that the optimizer steps a whole buffer with one set of hyperparameters. Each buffer is padded
//! to a multiple of the world size, and rank `r` owns the `r`-th contiguous shard of it. The alternative, one shard per parameter,
//! costs one collective per parameter and pads each of them.

use std::ops::Range;

use crate::layer::Architecture;
use crate::parameters::ParamSpec;

/// Elements to which each parameter's start is aligned: 64 bf16 values are 128 bytes, two cache lines.
const ALIGNMENT: usize = 64;

/// What a unit is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitKind {
    /// The embedding.
    Embedding,
    /// A decoder layer.
    Layer,
    /// The final norm, with the head unless that is the embedding.
    Head,
}

impl Architecture {
    /// Every unit, in the order of the forward: the embedding, each layer, the head.
    pub fn units(&self) -> impl Iterator<Item = (UnitKind, &[ParamSpec])> {
        std::iter::once((UnitKind::Embedding, std::slice::from_ref(&self.embed.weight)))
            .chain(self.layers.iter().map(|layer| (UnitKind::Layer, &layer.params[..])))
            .chain([(UnitKind::Head, &self.head.params[..])])
    }
}

/// One parameter's place in a flat buffer.
#[derive(Debug, Clone)]
pub struct Slot {
    /// Index of the parameter among the unit's specs.
    pub spec_idx: usize,
    /// First element in the flat buffer.
    pub offset: usize,
    /// Number of elements.
    pub numel: usize,
}

/// One flat buffer of a unit.
#[derive(Debug, Clone)]
pub struct FlatLayout {
    /// Whether weight decay applies to every parameter of this buffer.
    pub is_decayed: bool,
    /// The parameters in it, in order.
    pub slots: Vec<Slot>,
    /// Elements in all, padded to a multiple of the world size.
    pub len: usize,
    /// Elements that each rank owns.
    pub shard_len: usize,
}

impl FlatLayout {
    fn new(is_decayed: bool, specs: &[ParamSpec], world_size: usize) -> Option<Self> {
        let mut end = 0;
        let mut slots = Vec::new();
        for (spec_idx, spec) in specs.iter().enumerate() {
            if spec.is_decayed == is_decayed {
                let numel = spec.numel();
                slots.push(Slot { spec_idx, offset: end, numel });
                end = (end + numel).next_multiple_of(ALIGNMENT);
            }
        }
        let len = end.next_multiple_of(world_size);
        (!slots.is_empty()).then(|| Self { is_decayed, slots, len, shard_len: len / world_size })
    }

    /// The elements that `rank` owns.
    pub fn shard(&self, rank: usize) -> Range<usize> {
        rank * self.shard_len..(rank + 1) * self.shard_len
    }

    /// The parts of parameters that lie in `region` of the buffer: for each, its spec index, the element range
    /// within the parameter, and where that range starts relative to `region`.
    pub fn overlaps(&self, region: &Range<usize>) -> impl Iterator<Item = Overlap> {
        let region = region.clone();
        self.slots.iter().filter_map(move |slot| {
            let start = slot.offset.max(region.start);
            let end = (slot.offset + slot.numel).min(region.end);
            (start < end).then(|| Overlap {
                spec_idx: slot.spec_idx,
                param_range: start - slot.offset..end - slot.offset,
                region_offset: start - region.start,
            })
        })
    }
}

/// A part of a parameter that lies in a region of a flat buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// Index of the parameter among the unit's specs.
    pub spec_idx: usize,
    /// Elements of the parameter, flattened.
    pub param_range: Range<usize>,
    /// Where they start, counted from the start of the region.
    pub region_offset: usize,
}

/// The flat buffers of one unit.
#[derive(Debug, Clone)]
pub struct UnitLayout {
    /// The unit's parameters, in the model's order.
    pub specs: Vec<ParamSpec>,
    /// One or two buffers: decayed parameters first.
    pub flats: Vec<FlatLayout>,
}

impl UnitLayout {
    /// Lays out `specs` for a world of `world_size` ranks.
    pub fn new(specs: Vec<ParamSpec>, world_size: usize) -> Self {
        let flats = [true, false]
            .iter()
            .filter_map(|&decayed| FlatLayout::new(decayed, &specs, world_size))
            .collect();
        Self { specs, flats }
    }

    /// Parameters in all.
    pub fn num_parameters(&self) -> usize {
        self.specs.iter().map(ParamSpec::numel).sum()
    }

    /// Elements of the flat buffers together, padding included.
    pub fn len(&self) -> usize {
        self.flats.iter().map(|flat| flat.len).sum()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.flats.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::parameters::Init;

    fn spec(name: &str, shape: &[usize]) -> ParamSpec {
        ParamSpec::new(name, shape, Init::Constant(0.0))
    }

    proptest! {
        /// The shards of all ranks hold every element of every parameter exactly once, in order.
        #[test]
        fn shards_partition_parameters(
            shapes in prop::collection::vec(prop::collection::vec(1_usize..9, 1..3), 1..6),
            world_size in 1_usize..7,
        ) {
            let specs: Vec<_> = shapes
                .iter()
                .enumerate()
                .map(|(i, shape)| spec(if i % 2 == 0 { "q_proj.weight" } else { "norm.weight" }, shape))
                .collect();
            let layout = UnitLayout::new(specs.clone(), world_size);
            let mut next = vec![0; specs.len()];
            for flat in &layout.flats {
                prop_assert_eq!(flat.len % world_size, 0);
                for rank in 0..world_size {
                    let shard = flat.shard(rank);
                    for overlap in flat.overlaps(&shard) {
                        prop_assert_eq!(next[overlap.spec_idx], overlap.param_range.start);
                        prop_assert!(overlap.region_offset + overlap.param_range.len() <= shard.len());
                        next[overlap.spec_idx] = overlap.param_range.end;
                    }
                }
            }
            prop_assert_eq!(next, specs.iter().map(ParamSpec::numel).collect::<Vec<_>>());
        }
    }
}
