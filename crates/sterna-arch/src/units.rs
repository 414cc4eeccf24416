//! What is gathered and reduced at once, and where each parameter lies in its flat buffers.
//!
//! A unit is the embedding, one layer without its experts, a group of a layer's experts, or the final norm with the head. Its
//! parameters are laid out in a flat buffer for each [`FlatKind`]: those that are trained with and without weight decay, so that the
//! optimizer steps a whole buffer with one set of hyperparameters, and those that are not trained by dtype. Each buffer is padded to a
//! multiple of the world size, and rank `r` owns the `r`-th contiguous shard of it. The alternative, one shard per parameter, costs one collective per parameter and pads each of them.

use std::ops::Range;

use crate::layer::{Architecture, Ffn};
use crate::parameters::{ParamSpec, Role};

/// Elements to which each parameter's start is aligned: 64 bf16 values are 128 bytes, two cache lines.
const ALIGNMENT: usize = 64;

/// What a unit is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitKind {
    /// The embedding.
    Embedding,
    /// A decoder layer, without its experts.
    Layer,
    /// A group of a layer's experts ([`crate::Moe::groups`]).
    Experts,
    /// The final norm, with the head unless that is the embedding.
    Head,
}

/// What is gathered and reduced at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// What it is of.
    pub kind: UnitKind,
    /// Its parameters, by their index among those of its layer or of the head.
    pub param_idxs: Vec<usize>,
    /// The same parameters.
    pub specs: Vec<ParamSpec>,
}

/// Every unit, in the order of the forward: the embedding, each layer followed by its groups of experts, the head.
#[derive(Debug, Clone, PartialEq)]
pub struct Units {
    all: Vec<Unit>,
    /// Of each layer.
    layers: Vec<Range<usize>>,
}

impl Units {
    /// The unit of the embedding.
    pub const EMBEDDING: usize = 0;

    /// Every unit, in the order of the forward.
    pub fn all(&self) -> &[Unit] {
        &self.all
    }

    /// The unit of a layer without its experts.
    pub fn layer(&self, layer_idx: usize) -> usize {
        self.layers[layer_idx].start
    }

    /// The units of a layer's groups of experts, in order; empty in a layer without experts.
    pub fn experts(&self, layer_idx: usize) -> Range<usize> {
        self.layers[layer_idx].start + 1..self.layers[layer_idx].end
    }

    /// The unit that the forward gathers after a layer: the next layer's, or the head's.
    pub fn after(&self, layer_idx: usize) -> usize {
        self.layers[layer_idx].end
    }

    /// The unit of the final norm and the head.
    pub fn head(&self) -> usize {
        self.all.len() - 1
    }
}

impl Unit {
    fn new(kind: UnitKind, params: &[ParamSpec], param_idxs: Vec<usize>) -> Self {
        let specs = param_idxs.iter().map(|&param_idx| params[param_idx].clone()).collect();
        Self { kind, param_idxs, specs }
    }

    /// All of `params` in one unit.
    pub fn whole(kind: UnitKind, params: &[ParamSpec]) -> Self {
        Self::new(kind, params, (0..params.len()).collect())
    }
}

impl Architecture {
    /// What is gathered and reduced at once.
    pub fn units(&self) -> Units {
        let embedding = std::slice::from_ref(&self.embed.weight);
        let mut units = Units {
            all: vec![Unit::whole(UnitKind::Embedding, embedding)],
            layers: Vec::with_capacity(self.layers.len()),
        };
        for layer in &self.layers {
            let groups: Vec<Vec<usize>> = match &layer.ffn {
                Ffn::Dense(_) => Vec::new(),
                Ffn::Moe(moe) => moe.groups.iter().map(|group| moe.params_of(group)).collect(),
            };
            let mut is_of_group = vec![false; layer.params.len()];
            groups.iter().flatten().for_each(|&param_idx| is_of_group[param_idx] = true);
            let others = (0..layer.params.len()).filter(|&param_idx| !is_of_group[param_idx]);
            let start = units.all.len();
            units.all.push(Unit::new(UnitKind::Layer, &layer.params, others.collect()));
            let of_group = |group| Unit::new(UnitKind::Experts, &layer.params, group);
            units.all.extend(groups.into_iter().map(of_group));
            units.layers.push(start..units.all.len());
        }
        units.all.push(Unit::whole(UnitKind::Head, &self.head.params));
        units
    }

    /// Cuts the experts of each layer into groups of at most `max_elements` weights, and of one expert at least; groups of a layer
    /// differ by at most one expert. Experts that checkpoints store in one tensor stay together.
    pub fn group_experts(&mut self, max_elements: usize) {
        for layer in &mut self.layers {
            let Ffn::Moe(moe) = &mut layer.ffn else { continue };
            let of_expert = moe.params_of(&(0..1));
            if moe.experts.len() > 1 && of_expert == moe.params_of(&(1..2)) {
                continue;
            }
            let of_expert: usize = of_expert.iter().map(|&idx| layer.params[idx].numel()).sum();
            let num_experts = moe.experts.len();
            let most = (max_elements / of_expert.max(1)).clamp(1, num_experts);
            let num_groups = num_experts.div_ceil(most);
            let bound = |group_idx: usize| group_idx * num_experts / num_groups;
            moe.groups = (0..num_groups).map(|idx| bound(idx)..bound(idx + 1)).collect();
        }
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

/// What the parameters of a flat buffer have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlatKind {
    /// They are trained.
    Trained {
        /// Whether weight decay applies to them.
        is_decayed: bool,
        /// Whether they are in single precision whatever the dtype of the model.
        is_fp32: bool,
    },
    /// They are buffers: gathered as the others, without gradients and optimizer state.
    Buffers {
        /// Whether they are in single precision whatever the dtype of the model.
        is_fp32: bool,
    },
    /// They are weights of a base under adapters: as buffers, and checkpoints do not have them.
    Frozen,
}

impl FlatKind {
    /// Those that are trained: decayed parameters first.
    const TRAINED: [FlatKind; 4] = [
        FlatKind::Trained { is_decayed: true, is_fp32: false },
        FlatKind::Trained { is_decayed: false, is_fp32: false },
        FlatKind::Trained { is_decayed: true, is_fp32: true },
        FlatKind::Trained { is_decayed: false, is_fp32: true },
    ];

    /// Those that are not.
    const FIXED: [FlatKind; 3] = [
        FlatKind::Frozen,
        FlatKind::Buffers { is_fp32: false },
        FlatKind::Buffers { is_fp32: true },
    ];

    /// Whether it is in single precision whatever the dtype of the model.
    pub fn is_fp32(self) -> bool {
        match self {
            FlatKind::Trained { is_fp32, .. } | FlatKind::Buffers { is_fp32 } => is_fp32,
            FlatKind::Frozen => false,
        }
    }

    /// Where a parameter belongs.
    fn of(spec: &ParamSpec) -> FlatKind {
        match spec.role {
            Role::Trained | Role::Adapter => {
                FlatKind::Trained { is_decayed: spec.is_decayed, is_fp32: spec.is_fp32 }
            }
            Role::Buffer => FlatKind::Buffers { is_fp32: spec.is_fp32 },
            Role::Frozen => FlatKind::Frozen,
        }
    }
}

/// One flat buffer of a unit.
#[derive(Debug, Clone)]
pub struct FlatLayout {
    /// What its parameters have in common.
    pub kind: FlatKind,
    /// The parameters in it, in order.
    pub slots: Vec<Slot>,
    /// Elements in all, padded to a multiple of the world size.
    pub len: usize,
    /// Elements that each rank owns.
    pub shard_len: usize,
}

impl FlatLayout {
    /// Of those `specs` that belong in it; `None` if there are none.
    fn new(kind: FlatKind, specs: &[ParamSpec], world_size: usize) -> Option<Self> {
        let mut end = 0;
        let mut slots = Vec::new();
        for (spec_idx, spec) in
            specs.iter().enumerate().filter(|(_, spec)| FlatKind::of(spec) == kind)
        {
            let numel = spec.numel();
            slots.push(Slot { spec_idx, offset: end, numel });
            end = (end + numel).next_multiple_of(ALIGNMENT);
        }
        let len = end.next_multiple_of(world_size);
        (!slots.is_empty()).then(|| Self { kind, slots, len, shard_len: len / world_size })
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
    /// What the unit is of.
    pub kind: UnitKind,
    /// The unit's parameters, in the model's order.
    pub specs: Vec<ParamSpec>,
    /// What is trained, in one or two buffers: decayed parameters first.
    pub flats: Vec<FlatLayout>,
    /// What is not trained.
    pub fixed: Vec<FlatLayout>,
}

impl UnitLayout {
    /// Lays out `unit` for a world of `world_size` ranks.
    pub fn new(unit: &Unit, world_size: usize) -> Self {
        let specs = unit.specs.clone();
        let of = |kinds: &[FlatKind]| {
            kinds.iter().filter_map(|kind| FlatLayout::new(*kind, &specs, world_size)).collect()
        };
        let (flats, fixed) = (of(&FlatKind::TRAINED), of(&FlatKind::FIXED));
        Self { kind: unit.kind, flats, fixed, specs }
    }

    /// Parameters in all.
    pub fn num_parameters(&self) -> usize {
        self.specs.iter().map(ParamSpec::numel).sum()
    }

    /// Every flat buffer: what is trained, then what is not.
    pub fn all_flats(&self) -> impl Iterator<Item = &FlatLayout> {
        self.flats.iter().chain(&self.fixed)
    }

    /// Elements of all flat buffers together, padding included.
    pub fn padded_len(&self) -> usize {
        self.all_flats().map(|flat| flat.len).sum()
    }

    /// Of those, what is trained.
    pub fn trained_len(&self) -> usize {
        self.flats.iter().map(|flat| flat.len).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::path::Path;

    use super::*;
    use crate::ModelConfig;
    use crate::parameters::Init;

    fn spec(name: &str, shape: &[usize]) -> ParamSpec {
        ParamSpec::new(name, shape, Init::Constant(0.0))
    }

    /// Experts of every size of group: each parameter is in one unit, groups are within the limit and alike, and a layer's come after it.
    #[test]
    fn groups_of_experts_partition_a_layer() {
        let config = serde_json::json!({
            "model_type": "mixtral", "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16, "num_local_experts": 7,
            "num_experts_per_tok": 2, "max_position_embeddings": 32,
        });
        let config = ModelConfig::from_json(&config.to_string(), Path::new("config.json"));
        let mut arch = config.expect("a config").arch;
        let of_expert = 3 * 8 * 4;
        for (max_elements, groups) in [
            (0, vec![1; 7]),
            (of_expert, vec![1; 7]),
            (2 * of_expert, vec![1, 2, 2, 2]),
            (3 * of_expert + 1, vec![2, 2, 3]),
            (6 * of_expert, vec![3, 4]),
            (usize::MAX, vec![7]),
        ] {
            arch.group_experts(max_elements);
            let units = arch.units();
            let names = units.all().iter().flat_map(|unit| &unit.specs).map(|spec| &spec.name);
            let (mut names, mut required): (Vec<_>, Vec<_>) =
                (names.collect(), arch.params().map(|spec| &spec.name).collect());
            names.sort_unstable();
            required.sort_unstable();
            assert_eq!(names, required, "{max_elements}");
            for (layer_idx, layer) in arch.layers.iter().enumerate() {
                let of_layer = &units.all()[units.layer(layer_idx)];
                assert_eq!(of_layer.kind, UnitKind::Layer);
                let next = if layer_idx == 0 { units.layer(1) } else { units.head() };
                assert_eq!(units.after(layer_idx), next);
                assert!(of_layer.specs.iter().all(|spec| !spec.name.contains("experts")));
                let experts = &units.all()[units.experts(layer_idx)];
                assert!(experts.iter().all(|unit| unit.kind == UnitKind::Experts));
                let sizes: Vec<_> = experts.iter().map(|unit| unit.specs.len() / 3).collect();
                assert_eq!(sizes, groups, "{max_elements}");
                for unit in experts {
                    let specs = unit.param_idxs.iter().map(|&idx| &layer.params[idx]);
                    assert!(specs.eq(&unit.specs), "{max_elements}");
                }
            }
            assert_eq!(units.all()[Units::EMBEDDING].kind, UnitKind::Embedding);
            assert_eq!(units.all()[units.head()].kind, UnitKind::Head);
        }
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
                .map(|(i, shape)| match i % 3 {
                    0 => spec("q_proj.weight", shape),
                    1 => spec("norm.weight", shape),
                    _ => ParamSpec::buffer("layer_scalar", shape.as_slice(), Init::Constant(0.0)),
                })
                .collect();
            let layout = UnitLayout::new(&Unit::whole(UnitKind::Layer, &specs), world_size);
            let mut next = vec![0; specs.len()];
            for flat in &layout.flats {
                prop_assert!(flat.slots.iter().all(|slot| specs[slot.spec_idx].is_trained()));
            }
            for flat in layout.all_flats() {
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
