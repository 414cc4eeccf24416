//! Which samples each rank reads, in which order, without asking any other rank.
//!
//! The reference runs one `DataLoader` per rank over a `DistributedSampler` and, under sequence parallelism, an adapter in which
//! the ranks of a group exchange their batches and then work on them one after the other. The exchange is only needed because each
//! process loads alone; here every rank knows the whole order, so a group reads its next micro-batch directly.

use sterna_mesh::{Axis, Mesh};
use sterna_recipe::Recipe;

use crate::{
    collate::{Collator, MicroBatch},
    dataset::{Dataset, Sample},
    error::Result,
    rng::torch_randperm,
};

/// `torch.utils.data.DistributedSampler(num_replicas=world_size)` with its defaults: shuffled with seed 0, and the start repeated
/// until every rank has the same number.
///
/// The reference never calls `set_epoch`, so every epoch has this same order.
#[derive(Clone, Debug)]
pub struct DistributedSampler {
    order: Vec<usize>,
    world_size: usize,
}

impl DistributedSampler {
    /// The order over `len` samples.
    pub fn new(len: usize, world_size: usize) -> Self {
        let mut order = torch_randperm(0, len);
        let total = len.next_multiple_of(world_size);
        for i in len..total {
            // `len` may be smaller than what is missing, hence the modulo.
            order.push(order[i % len]);
        }
        Self { order, world_size }
    }

    /// Samples of one rank.
    pub fn len(&self) -> usize {
        self.order.len() / self.world_size
    }

    /// Whether a rank has no sample.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The sample that `rank` reads as its number `position`.
    pub fn sample(&self, rank: usize, position: usize) -> usize {
        self.order[position * self.world_size + rank]
    }
}

/// The micro-batches that one sequence-parallel group works on during one epoch, in order. Every epoch is the same.
///
/// Micro-batch `j` of group `g` is the batch number `j / p` of rank `g * p + j % p`, as in the reference, where `p` is the
/// sequence-parallel size. A last batch that is not full is dropped, as its `DataLoader` does.
#[derive(Debug)]
pub struct MicroBatches<'a> {
    dataset: &'a Dataset,
    sampler: DistributedSampler,
    collator: Collator,
    mesh: Mesh,
    micro_batch_size: usize,
    next: usize,
}

impl<'a> MicroBatches<'a> {
    /// The micro-batches of `dataset` for this rank's sequence-parallel group.
    ///
    /// `model_max_length` is the `max_length` of a recipe that gives none; `pad_token_id` fills rows.
    pub fn new(
        dataset: &'a Dataset,
        recipe: &Recipe,
        mesh: Mesh,
        model_max_length: usize,
        pad_token_id: u32,
    ) -> Self {
        let max_length = recipe.data.max_length.unwrap_or(model_max_length);
        let max_length = recipe.data.row_length(max_length);
        let collator = Collator::new(&recipe.data, max_length, pad_token_id, mesh.size(Axis::Sp));
        Self::from_parts(dataset, collator, mesh, recipe.micro_batch_size)
    }

    /// As [`Self::new`], from its parts.
    pub fn from_parts(
        dataset: &'a Dataset,
        collator: Collator,
        mesh: Mesh,
        micro_batch_size: usize,
    ) -> Self {
        let sampler = DistributedSampler::new(dataset.len(), mesh.world_size());
        Self { dataset, sampler, collator, mesh, micro_batch_size, next: 0 }
    }

    /// How samples are padded.
    pub fn collator(&self) -> &Collator {
        &self.collator
    }

    /// Micro-batches of one epoch.
    pub fn len(&self) -> usize {
        self.sampler.len() / self.micro_batch_size * self.mesh.size(Axis::Sp)
    }

    /// Whether an epoch has no micro-batch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The samples of micro-batch `index`, one a row.
    pub fn sample_indices(&self, index: usize) -> Vec<usize> {
        self.sample_indices_of(self.mesh.local_rank(Axis::Dp), index)
    }

    /// The samples of micro-batch `index` of the sequence-parallel group at `dp_rank`, one a row.
    pub fn sample_indices_of(&self, dp_rank: usize, index: usize) -> Vec<usize> {
        let sp_size = self.mesh.size(Axis::Sp);
        let rank = dp_rank * sp_size + index % sp_size;
        let first = index / sp_size * self.micro_batch_size;
        (first..first + self.micro_batch_size)
            .map(|position| self.sampler.sample(rank, position))
            .collect()
    }

    /// Micro-batch `index` of the epoch, so that a resumed run starts anywhere at no cost.
    ///
    /// # Errors
    ///
    /// [`crate::Error::CacheChanged`] if the cached tokens cannot be read; [`crate::Error::LongerThanMaxLength`] from padding.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`Self::len`].
    pub fn get(&self, index: usize) -> Result<MicroBatch> {
        assert!(index < self.len(), "micro-batch {index} of an epoch of {}", self.len());
        let samples: Result<Vec<Sample>> = self
            .sample_indices(index)
            .into_iter()
            .map(|sample| self.dataset.sample(sample))
            .collect();
        self.collator.collate(&samples?)
    }
}

impl Iterator for MicroBatches<'_> {
    type Item = Result<MicroBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.next;
        (index < self.len()).then(|| {
            self.next += 1;
            self.get(index)
        })
    }
}
