//! What blocks keep between their forward and their backward, and where it waits.

mod stash;

use std::{ops::Range, rc::Rc};

use sterna_model::{
    Graph, Kept, KeptAttention,
    stage::{Stage, num_bytes},
};
use sterna_recipe::Place;
use sterna_torch_sys::{
    copies::{Arriving, Copies, OnHost},
    file::is_dense,
    memory::{self, MemoryKind},
};
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
    /// Where they were computed: nothing is copied.
    Here,
    /// The memory of the host, beside a GPU.
    Host(Rc<Copies>),
    /// A file. Beside a GPU, the host waits for each tensor that it writes and reads.
    Disk(Rc<DiskScratch>),
}

impl Shelf {
    /// The shelf of a [`Place`]; `copies` are there if a GPU computes, `disk` whenever something lives on disk.
    ///
    /// # Panics
    ///
    /// If `place` is the disk and there is none.
    pub fn new(place: Place, copies: Option<&Rc<Copies>>, disk: Option<&Rc<DiskScratch>>) -> Self {
        match (place, copies) {
            (Place::Host, Some(copies)) => Self::Host(Rc::clone(copies)),
            (Place::Device | Place::Host, _) => Self::Here,
            (Place::Disk, _) => Self::Disk(Rc::clone(disk.expect("a plan with a disk has a file"))),
        }
    }

    fn copies(&self) -> Option<&Rc<Copies>> {
        match self {
            Self::Host(copies) => Some(copies),
            Self::Here | Self::Disk(_) => None,
        }
    }

    fn put(&self, tensor: Tensor) -> Result<Shelved, TrainError> {
        memory::retag(&tensor, MemoryKind::KeptActivations);
        let _memory = memory::scope(MemoryKind::KeptActivations);
        match self {
            Self::Here => Ok(Shelved::Here(tensor)),
            Self::Host(copies) => {
                let _stage = Stage::Copy.enter_with(None, num_bytes(&tensor));
                let tensor = if is_dense(&tensor) { tensor } else { tensor.contiguous() };
                let (size, stride) = (tensor.size(), tensor.stride());
                // In the order of its memory.
                let flat = tensor.as_strided([tensor.numel() as i64], [1], None);
                let away = copies.to_host(flat)?;
                Ok(Shelved::Host(Box::new(AwayTensor { away, size, stride, arriving: None })))
            }
            Self::Disk(disk) => {
                let _stage = Stage::Copy.enter_with(None, num_bytes(&tensor));
                Ok(Shelved::Disk(disk.write(tensor.to_device(Device::Cpu))?))
            }
        }
    }

    fn prefetch(&self, shelved: &mut Shelved) -> Result<(), TrainError> {
        let _memory = memory::scope(MemoryKind::KeptActivations);
        match (self, shelved) {
            (Self::Disk(disk), Shelved::Disk(tensor)) => disk.prefetch(tensor),
            (Self::Host(copies), Shelved::Host(tensor)) => tensor.fetch(copies),
            _ => Ok(()),
        }
    }

    fn take(&self, shelved: Shelved, device: Device) -> Result<Tensor, TrainError> {
        match (self, shelved) {
            (_, Shelved::Here(tensor)) => Ok(tensor),
            (Self::Host(copies), Shelved::Host(mut tensor)) => {
                tensor.fetch(copies)?;
                tensor.take()
            }
            (Self::Disk(disk), Shelved::Disk(tensor)) => {
                let _stage = Stage::Copy.enter_with(None, tensor.num_bytes());
                Ok(disk.read(tensor)?.to_device(device))
            }
            _ => unreachable!("a tensor is on its own shelf"),
        }
    }
}

/// A tensor on a [`Shelf`].
#[derive(Debug)]
enum Shelved {
    Here(Tensor),
    Host(Box<AwayTensor>),
    Disk(DiskTensor),
}

/// A tensor of a GPU in the memory of the host.
#[derive(Debug)]
struct AwayTensor {
    /// Its elements in the order of its memory.
    away: OnHost,
    size: Vec<i64>,
    stride: Vec<i64>,
    arriving: Option<Arriving>,
}

impl AwayTensor {
    /// Starts bringing it back, if it is not on its way.
    fn fetch(&mut self, copies: &Copies) -> Result<(), TrainError> {
        if self.arriving.is_none() {
            let _stage = Stage::Copy.enter_with(None, num_bytes(self.away.tensor()));
            self.arriving = Some(copies.to_device(&self.away)?);
        }
        Ok(())
    }

    /// The tensor with its strides, on the device.
    fn take(self) -> Result<Tensor, TrainError> {
        let flat = self.arriving.expect("it was fetched").arrive()?;
        Ok(flat.as_strided(&self.size, &self.stride, None))
    }
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
        let block = KeptBlock {
            x: is_first.then(|| self.inputs_on.put(x)).transpose()?,
            attention: attention
                .map(|KeptAttention { o, lse }| {
                    Ok::<_, TrainError>([self.attention_on.put(o)?, self.attention_on.put(lse)?])
                })
                .transpose()?,
            graph: graph.inspect(|graph| graph.retag(MemoryKind::KeptActivations)),
        };
        if let Some(copies) = self.inputs_on.copies().or(self.attention_on.copies()) {
            copies.settle()?;
        }
        Ok(block)
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
