//! What blocks keep between their forward and their backward, and where it waits.

mod keys_values;

use std::{ops::Range, rc::Rc};

use sterna_arch::Architecture;
use sterna_mesh::Axis;
use sterna_model::{
    Graph, Kept,
    stage::{Stage, num_bytes},
};
use sterna_plan::Plan;
use sterna_recipe::Place;
use sterna_torch_sys::{
    copies::{Copies, InFlight, OnHost},
    file::is_dense,
    memory::{self, MemoryKind},
};
use tch::Tensor;

use crate::{
    error::TrainError,
    storage::disk::{DiskScratch, DiskTensor},
};

/// What all blocks keep.
#[derive(Debug, Clone)]
pub struct KeepPolicy {
    /// Every intermediate value of every block: nothing is computed again.
    pub graph: bool,
    /// The input of blocks 0, k, 2k, ..; the others of a segment are restored by running it again.
    pub inputs_every: usize,
    /// The attention output and log-sum-exp of the first so many blocks.
    pub num_attention: usize,
    /// Where inputs wait, and the routes of tokens to experts.
    pub inputs_on: Offload,
    /// Where attention outputs wait.
    pub attention_on: Offload,
}

/// A place where tensors wait until they are needed again.
#[derive(Debug, Clone)]
pub enum Offload {
    /// Where they were computed: nothing is copied.
    Here,
    /// The memory of the host, beside a GPU.
    Host(Rc<Copies>),
    /// A file, by way of the host's memory.
    Disk {
        /// The file.
        disk: Rc<DiskScratch>,
        /// What moves tensors to the host and back, if a GPU computes.
        copies: Option<Rc<Copies>>,
    },
}

impl Offload {
    /// For a [`Place`]; `copies` are there if a GPU computes, `disk` whenever something lives on disk.
    ///
    /// # Panics
    ///
    /// If `place` is the disk and there is none.
    pub fn new(place: Place, copies: Option<&Rc<Copies>>, disk: Option<&Rc<DiskScratch>>) -> Self {
        match (place, copies) {
            (Place::Host, Some(copies)) => Self::Host(Rc::clone(copies)),
            (Place::Device | Place::Host, _) => Self::Here,
            (Place::Disk, _) => Self::Disk {
                disk: Rc::clone(disk.expect("a plan with a disk has a file")),
                copies: copies.cloned(),
            },
        }
    }

    fn copies(&self) -> Option<&Rc<Copies>> {
        match self {
            Self::Host(copies) => Some(copies),
            Self::Disk { copies, .. } => copies.as_ref(),
            Self::Here => None,
        }
    }

    fn put(&self, tensor: Tensor) -> Result<Offloaded, TrainError> {
        memory::retag(&tensor, MemoryKind::KeptActivations);
        let (disk, copies) = match self {
            Self::Here => return Ok(Offloaded::Here(tensor)),
            Self::Host(copies) => (None, Some(copies)),
            Self::Disk { disk, copies } => (Some(disk), copies.as_ref()),
        };
        let _memory = memory::scope(MemoryKind::KeptActivations);
        let _stage = Stage::Copy.enter_with(None, num_bytes(&tensor));
        let (flat, layout) = Layout::take_off(tensor);
        let tensor: OnHost = match copies {
            Some(copies) => copies.to_host(flat)?,
            None => flat.into(),
        };
        Ok(match disk {
            Some(disk) => Offloaded::Disk(Box::new((disk.write(tensor)?, layout))),
            None => Offloaded::Host(Box::new(OnHostTensor { tensor, layout, in_flight: None })),
        })
    }

    fn prefetch(&self, offloaded: &mut Offloaded) -> Result<(), TrainError> {
        let _memory = memory::scope(MemoryKind::KeptActivations);
        match (self, offloaded) {
            (Self::Disk { disk, .. }, Offloaded::Disk(offloaded)) => {
                disk.prefetch(&mut offloaded.0)
            }
            (Self::Host(copies), Offloaded::Host(offloaded)) => offloaded.fetch(copies),
            _ => Ok(()),
        }
    }

    fn take(&self, offloaded: Offloaded) -> Result<Tensor, TrainError> {
        match (self, offloaded) {
            (_, Offloaded::Here(tensor)) => Ok(tensor),
            (Self::Host(copies), Offloaded::Host(mut offloaded)) => {
                offloaded.fetch(copies)?;
                offloaded.take()
            }
            (Self::Disk { disk, copies }, Offloaded::Disk(offloaded)) => {
                let (tensor, layout) = *offloaded;
                let _stage = Stage::Copy.enter_with(None, tensor.num_bytes());
                let read = disk.read(tensor)?;
                Ok(layout.put_on(&match copies {
                    Some(copies) => copies.to_device(&read.into())?.wait()?,
                    None => read,
                }))
            }
            _ => unreachable!("a tensor comes back from where it was put"),
        }
    }
}

/// A tensor that waits.
#[derive(Debug)]
enum Offloaded {
    Here(Tensor),
    Host(Box<OnHostTensor>),
    Disk(Box<(DiskTensor, Layout)>),
}

/// How the elements of a tensor without gaps lie in memory.
#[derive(Debug)]
struct Layout {
    size: Vec<i64>,
    stride: Vec<i64>,
}

impl Layout {
    /// The elements of `tensor` in the order of memory, and what makes them the tensor again. One with gaps is copied.
    fn take_off(tensor: Tensor) -> (Tensor, Self) {
        let tensor = if is_dense(&tensor) { tensor } else { tensor.contiguous() };
        let (size, stride) = (tensor.size(), tensor.stride());
        (tensor.as_strided([tensor.numel() as i64], [1], None), Self { size, stride })
    }

    fn put_on(&self, flat: &Tensor) -> Tensor {
        flat.as_strided(&self.size, &self.stride, None)
    }
}

/// A tensor of a GPU in the memory of the host.
#[derive(Debug)]
struct OnHostTensor {
    tensor: OnHost,
    layout: Layout,
    in_flight: Option<InFlight>,
}

impl OnHostTensor {
    /// Starts bringing it back, if it is not on its way.
    fn fetch(&mut self, copies: &Copies) -> Result<(), TrainError> {
        if self.in_flight.is_none() {
            let _stage = Stage::Copy.enter_with(None, num_bytes(self.tensor.tensor()));
            self.in_flight = Some(copies.to_device(&self.tensor)?);
        }
        Ok(())
    }

    /// The tensor with its strides, on the device.
    fn take(self) -> Result<Tensor, TrainError> {
        Ok(self.layout.put_on(&self.in_flight.expect("it was fetched").wait()?))
    }
}

/// What one block has kept.
#[derive(Debug)]
pub(crate) struct KeptBlock {
    /// `None` between the first blocks of two segments.
    x: Option<Offloaded>,
    /// Which experts its tokens take, beside the inputs.
    route: Option<Offloaded>,
    /// What its mixer of tokens has kept.
    mixer: Option<Vec<Offloaded>>,
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

    /// Bytes of each tensor that a micro-batch of the length of `plan` keeps in the host's memory beside a GPU, in the order in which they
    /// leave. The last block's stay on the GPU.
    pub(crate) fn host_lens(&self, plan: &Plan, arch: &Architecture) -> Vec<usize> {
        let (tokens, sp_size) = (plan.batch.local_tokens, plan.mesh.size(Axis::Sp));
        let size = plan.model.dtype.size();
        let input = tokens * arch.hidden_size * size;
        let mut lens = Vec::new();
        let but_the_last = arch.layers.len().saturating_sub(1);
        for (layer_idx, layer) in arch.layers[..but_the_last].iter().enumerate() {
            if matches!(self.inputs_on, Offload::Host(_))
                && layer_idx.is_multiple_of(self.inputs_every)
            {
                lens.push(input);
            }
            if matches!(self.inputs_on, Offload::Host(_)) && layer.route_bytes() > 0 {
                lens.push(tokens * layer.route_bytes());
            }
            if matches!(self.attention_on, Offload::Host(_)) && self.keeps_attention(layer_idx) {
                lens.extend(layer.mixer.kept_bytes(tokens, sp_size, size));
            }
        }
        lens
    }

    /// Puts away what the policy keeps of block `layer_idx`, and drops the rest. What the last block keeps stays where it is: its
    /// backward is the next thing to come.
    pub(crate) fn put(
        &self,
        layer_idx: usize,
        is_last: bool,
        kept: Kept,
    ) -> Result<KeptBlock, TrainError> {
        let Kept { x, route, mixer, graph } = kept;
        let here = Offload::Here;
        let (inputs_on, attention_on) =
            if is_last { (&here, &here) } else { (&self.inputs_on, &self.attention_on) };
        let is_first = layer_idx.is_multiple_of(self.inputs_every);
        let block = KeptBlock {
            x: is_first.then(|| inputs_on.put(x)).transpose()?,
            route: route.map(|route| inputs_on.put(route)).transpose()?,
            mixer: mixer
                .map(|kept| kept.into_iter().map(|tensor| attention_on.put(tensor)).collect())
                .transpose()?,
            graph: graph.inspect(|graph| graph.retag(MemoryKind::KeptActivations)),
        };
        if let Some(copies) = self.inputs_on.copies().or(self.attention_on.copies()) {
            copies.release_sent()?;
        }
        Ok(block)
    }

    /// Starts bringing back what a block has kept.
    pub(crate) fn prefetch(&self, kept: &mut KeptBlock) -> Result<(), TrainError> {
        for input in [&mut kept.x, &mut kept.route].into_iter().flatten() {
            self.inputs_on.prefetch(input)?;
        }
        kept.mixer.iter_mut().flatten().try_for_each(|x| self.attention_on.prefetch(x))
    }

    /// The input of the first block of a segment, where it is computed with.
    ///
    /// # Panics
    ///
    /// If the block is no such block, or its input has been taken.
    pub(crate) fn take_input(&self, kept: &mut KeptBlock) -> Result<Tensor, TrainError> {
        let x = kept.x.take().expect("a segment has kept its first input");
        self.inputs_on.take(x)
    }

    /// Everything else that a block has kept, beside its input `x`.
    pub(crate) fn take(&self, kept: &mut KeptBlock, x: Tensor) -> Result<Kept, TrainError> {
        memory::retag(&x, MemoryKind::KeptActivations);
        let mixer = kept.mixer.take().map(|kept| {
            kept.into_iter().map(|offloaded| self.attention_on.take(offloaded)).collect()
        });
        let route = kept.route.take().map(|route| self.inputs_on.take(route)).transpose()?;
        Ok(Kept { x, route, mixer: mixer.transpose()?, graph: kept.graph.take() })
    }
}
