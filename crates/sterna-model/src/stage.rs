//! The stages of a step: what a timeline shows, and what the memory that they allocate is counted as.
//!
//! A stage is a span of `tracing` with the target [`TIMELINE`]. While nobody listens to that target it costs a comparison.

use sterna_torch_sys::memory::{self, MemoryKind};
use tch::Tensor;
use tracing::span::EnteredSpan;
use tracing::{Span, trace_span};

/// The target of the spans.
pub const TIMELINE: &str = "sterna::timeline";

/// The name of the span around all others of a step.
pub const ITERATION: &str = "iteration";

/// A part of a step that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// One optimizer step with all that belongs to it; its index is `iter`.
    Iteration,
    /// Reading the micro-batches.
    Data,
    /// From token ids to the loss and its gradient.
    Forward,
    /// From the gradient of the loss to those of all weights.
    Backward,
    /// From the gradients of all weights to new weights: their norm, clipping, the optimizer.
    Step,
    /// Forward of one block; its index is `layer`, here and in the next two.
    Block,
    /// Forward of one block, again, to restore the input of the next.
    BlockRecompute,
    /// Backward of one block.
    BlockBackward,
    /// Waiting for the weights of a unit; its index is `unit`, as that of [`Stage::Reduce`].
    Gather,
    /// The embedding.
    Embed,
    /// Norm and projections of one tile.
    Qkv,
    /// An exchange between the ranks that share a sequence.
    AllToAll,
    /// Attention of a group of heads, or the convolution and rule of a delta net's.
    Attention,
    /// Output projection and MLP of one tile.
    Mlp,
    /// Head and loss of all tiles.
    Loss,
    /// Gradients on their way to their owners.
    Reduce,
    /// A tensor on its way to or from the host or the disk.
    Copy,
}

/// A stage that is under way until this is dropped. It stays on its thread, and inside whatever was under way before.
#[derive(Debug)]
pub struct Running {
    _span: EnteredSpan,
    _memory: Option<memory::Scope>,
    _place: memory::Place,
}

impl Stage {
    /// Begins.
    #[must_use = "the stage ends when this is dropped"]
    pub fn enter(self) -> Running {
        self.begin(None, None)
    }

    /// Begins, for the block, unit or step number `index`.
    #[must_use = "the stage ends when this is dropped"]
    pub fn enter_at(self, index: usize) -> Running {
        self.begin(Some(index), None)
    }

    /// Begins to move so many bytes, of unit `index` if that is known.
    #[must_use = "the stage ends when this is dropped"]
    pub fn enter_with(self, index: Option<usize>, bytes: u64) -> Running {
        self.begin(index, Some(bytes))
    }

    fn begin(self, index: Option<usize>, bytes: Option<u64>) -> Running {
        Running {
            _span: self.span(index, bytes).entered(),
            _memory: self.memory_kind().map(memory::scope),
            _place: memory::place(self.name(), index),
        }
    }

    /// Its name in a timeline, and where an error says what was under way.
    const fn name(self) -> &'static str {
        match self {
            Self::Iteration => ITERATION,
            Self::Data => "data",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Block => "block",
            Self::BlockRecompute => "block recompute",
            Self::BlockBackward => "block backward",
            Self::Gather => "gather",
            Self::Embed => "embed",
            Self::Qkv => "qkv",
            Self::AllToAll => "all-to-all",
            Self::Attention => "attention",
            Self::Mlp => "mlp",
            Self::Loss => "loss",
            Self::Reduce => "reduce",
            Self::Step => "step",
            Self::Copy => "copy",
        }
    }

    /// What it allocates; `None` is what it is part of.
    fn memory_kind(self) -> Option<MemoryKind> {
        match self {
            Self::Gather => Some(MemoryKind::Weights),
            Self::Qkv | Self::Mlp | Self::Loss => Some(MemoryKind::TileScratch),
            Self::AllToAll | Self::Reduce => Some(MemoryKind::Communication),
            Self::Attention => Some(MemoryKind::Attention),
            Self::Step => Some(MemoryKind::Optimizer),
            Self::Copy => Some(MemoryKind::KeptActivations),
            Self::Iteration
            | Self::Data
            | Self::Forward
            | Self::Backward
            | Self::Block
            | Self::BlockRecompute
            | Self::BlockBackward
            | Self::Embed => None,
        }
    }

    fn span(self, index: Option<usize>, bytes: Option<u64>) -> Span {
        // The name and the target of a span are constants of the place where it is made.
        macro_rules! span {
            ($stage:ident) => {
                trace_span!(target: TIMELINE, Stage::$stage.name(), bytes)
            };
            ($stage:ident, $index:ident) => {
                trace_span!(target: TIMELINE, Stage::$stage.name(), $index = index, bytes)
            };
        }
        match self {
            Self::Iteration => span!(Iteration, iter),
            Self::Data => span!(Data),
            Self::Forward => span!(Forward),
            Self::Backward => span!(Backward),
            Self::Block => span!(Block, layer),
            Self::BlockRecompute => span!(BlockRecompute, layer),
            Self::BlockBackward => span!(BlockBackward, layer),
            Self::Gather => span!(Gather, unit),
            Self::Embed => span!(Embed),
            Self::Qkv => span!(Qkv),
            Self::AllToAll => span!(AllToAll),
            Self::Attention => span!(Attention),
            Self::Mlp => span!(Mlp),
            Self::Loss => span!(Loss),
            Self::Reduce => span!(Reduce, unit),
            Self::Step => span!(Step),
            Self::Copy => span!(Copy),
        }
    }
}

/// Bytes of the elements of `tensor`.
pub fn num_bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}
