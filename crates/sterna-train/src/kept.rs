//! What blocks keep between their forward and their backward, and where it waits.

mod stash;

use std::{ops::Range, rc::Rc};

use sterna_model::{
    Graph, Kept, KeptAttention,
    stage::{Stage, num_bytes},
};
use sterna_recipe::Place;
use sterna_torch_sys::memory::{self, MemoryKind};
use tch::{Device, Tensor};

use crate::{
    disk::{DiskScratch, DiskTensor},
    error::TrainError,
};

/// What all blocks keep (design decision D5).
#[derive(Debug, Clone)]
pub struct KeepPolicy {
    /// Every intermediate value of every block: nothing is computed again.
    pub graph: bool,
    /// The input of blocks 0, k, 2k, ..; the others of a segment are restored by running it again.
    pub inputs_every: usize,
    /// The attention output and log-sum-exp of the first so many blocks.
    pub num_attention: usize,
    /// Where inputs wait.
    pub inputs_on: Shelf,
    /// Where attention outputs wait.
    pub attention_on: Shelf,
}

/// A place where tensors wait until they are needed again.
#[derive(Debug, Clone)]
pub enum Shelf {
    /// The memory of a device: that which computes, or the host. On the same device nothing is copied.
    Memory(Device),
    /// A file.
    Disk(Rc<DiskScratch>),
}

impl Shelf {
    /// The shelf of a [`Place`], as seen from `device`; `disk` is there whenever something lives on disk.
    ///
    /// # Panics
    ///
    /// If `place` is the disk and there is none.
    pub fn new(place: Place, device: Device, disk: Option<&Rc<DiskScratch>>) -> Self {
        match place {
            Place::Device => Self::Memory(device),
            Place::Host => Self::Memory(Device::Cpu),
            Place::Disk => Self::Disk(Rc::clone(disk.expect("a plan with a disk has a file"))),
        }
    }

    fn put(&self, tensor: Tensor) -> Result<Shelved, TrainError> {
        memory::retag(&tensor, MemoryKind::KeptActivations);
        match self {
            Self::Memory(device) => Ok(Shelved::Memory(to_device(tensor, *device))),
            Self::Disk(disk) => {
                let _stage = Stage::Copy.enter_with(None, num_bytes(&tensor));
                Ok(Shelved::Disk(disk.write(tensor.to_device(Device::Cpu))?))
            }
        }
    }

    fn prefetch(&self, shelved: &mut Shelved) -> Result<(), TrainError> {
        match (self, shelved) {
            (Self::Disk(disk), Shelved::Disk(tensor)) => {
                let _memory = memory::scope(MemoryKind::KeptActivations);
                disk.prefetch(tensor)
            }
            _ => Ok(()),
        }
    }

    fn take(&self, shelved: Shelved, device: Device) -> Result<Tensor, TrainError> {
        match (self, shelved) {
            (Self::Disk(disk), Shelved::Disk(tensor)) => {
                let _stage = Stage::Copy.enter_with(None, tensor.num_bytes());
                Ok(disk.read(tensor)?.to_device(device))
            }
            (_, Shelved::Memory(tensor)) => Ok(to_device(tensor, device)),
            (Self::Memory(_), Shelved::Disk(_)) => unreachable!("a tensor is on its own shelf"),
        }
    }
}

/// The tensor on `device`; itself if it is there.
fn to_device(tensor: Tensor, device: Device) -> Tensor {
    if tensor.device() == device {
        return tensor;
    }
    let _stage = Stage::Copy.enter_with(None, num_bytes(&tensor));
    tensor.to_device(device)
}

/// A tensor on a [`Shelf`].
#[derive(Debug)]
enum Shelved {
    Memory(Tensor),
    Disk(DiskTensor),
}

/// What one block has kept.
#[derive(Debug)]
pub(crate) struct KeptBlock {
    /// `None` between the first blocks of two segments.
    x: Option<Shelved>,
    /// Output and log-sum-exp.
    attention: Option<[Shelved; 2]>,
    graph: Option<Graph>,
}

impl KeepPolicy {
    /// Whether the attention output of block `layer_idx` is kept.
    pub(crate) fn keeps_attention(&self, layer_idx: usize) -> bool {
        self.graph || layer_idx < self.num_attention
    }

    /// Runs of blocks of which the first has kept its input, in order.
    pub(crate) fn segments(
        &self,
        num_layers: usize,
    ) -> impl DoubleEndedIterator<Item = Range<usize>> {
        let every = self.inputs_every;
        (0..num_layers).step_by(every).map(move |start| start..(start + every).min(num_layers))
    }

    /// Puts away what the policy keeps of block `layer_idx`, and drops the rest.
    pub(crate) fn put(&self, layer_idx: usize, kept: Kept) -> Result<KeptBlock, TrainError> {
        let Kept { x, attention, graph } = kept;
        let is_first = layer_idx.is_multiple_of(self.inputs_every);
        Ok(KeptBlock {
            x: is_first.then(|| self.inputs_on.put(x)).transpose()?,
            attention: attention
                .map(|KeptAttention { o, lse }| {
                    Ok::<_, TrainError>([self.attention_on.put(o)?, self.attention_on.put(lse)?])
                })
                .transpose()?,
            graph: graph.inspect(|graph| graph.retag(MemoryKind::KeptActivations)),
        })
    }

    /// Starts bringing back what a block has kept.
    pub(crate) fn prefetch(&self, kept: &mut KeptBlock) -> Result<(), TrainError> {
        if let Some(x) = &mut kept.x {
            self.inputs_on.prefetch(x)?;
        }
        kept.attention.iter_mut().flatten().try_for_each(|x| self.attention_on.prefetch(x))
    }

    /// The input of the first block of a segment, on `device`.
    ///
    /// # Panics
    ///
    /// If the block is no such block, or its input has been taken.
    pub(crate) fn take_input(
        &self,
        kept: &mut KeptBlock,
        device: Device,
    ) -> Result<Tensor, TrainError> {
        let x = kept.x.take().expect("a segment has kept its first input");
        self.inputs_on.take(x, device)
    }

    /// Everything else that a block has kept, on `device`, beside its input `x`.
    pub(crate) fn take(
        &self,
        kept: &mut KeptBlock,
        x: Tensor,
        device: Device,
    ) -> Result<Kept, TrainError> {
        memory::retag(&x, MemoryKind::KeptActivations);
        let attention = kept.attention.take().map(|[o, lse]| {
            Ok::<_, TrainError>(KeptAttention {
                o: self.attention_on.take(o, device)?,
                lse: self.attention_on.take(lse, device)?,
            })
        });
        Ok(Kept { x, attention: attention.transpose()?, graph: kept.graph.take() })
    }
}
