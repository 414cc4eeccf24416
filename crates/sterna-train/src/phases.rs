//! The phases of a step, and what memory each of them took.

use serde_json::{Map, Value, json};
use sterna_model::stage::{Running, Stage};
use sterna_torch_sys::memory::{self as tensors, ByKind};

use crate::memory::{Resident, reset_peak};

/// The phases of an optimizer step, in order. The first two follow each other for every micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// From token ids to the loss and its gradient.
    Forward,
    /// From the gradient of the loss to those of all weights.
    Backward,
    /// From the gradients to new weights.
    Step,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Forward, Self::Backward, Self::Step];

    /// Its name in the metrics and the timeline.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Step => "step",
        }
    }

    fn stage(self) -> Stage {
        match self {
            Self::Forward => Stage::Forward,
            Self::Backward => Stage::Backward,
            Self::Step => Stage::Step,
        }
    }
}

/// The memory of one rank at the peak of a phase, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PhaseMemory {
    /// What tensors held when they held most.
    pub tensors: ByKind,
    /// What the process held when training began, without tensors, and every page of a file that it has mapped: its own code,
    /// libtorch's, weights, data.
    pub libraries: u64,
    /// The largest resident set of the process.
    pub resident: u64,
}

impl PhaseMemory {
    /// What is resident and belongs to nobody above: free blocks that wait for their next tensor, holes in the heap, buffers
    /// of libraries. Negative when tensors were allocated that nobody had written to.
    pub fn allocator_slack(&self) -> i64 {
        self.resident as i64 - self.tensors.total() as i64 - self.libraries as i64
    }

    fn json(&self) -> Value {
        let mut row: Map<String, Value> = self
            .tensors
            .iter()
            .map(|(kind, bytes)| (kind.name().to_owned(), json!(bytes)))
            .collect();
        row.insert("libraries".to_owned(), json!(self.libraries));
        row.insert("allocator_slack".to_owned(), json!(self.allocator_slack()));
        row.insert("resident".to_owned(), json!(self.resident));
        Value::Object(row)
    }
}

/// The memory of one rank in one optimizer step, by phase. Of several micro-batches, the one that took most counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepMemory([PhaseMemory; Phase::ALL.len()]);

impl StepMemory {
    /// That of one phase.
    pub fn of(&self, phase: Phase) -> &PhaseMemory {
        &self.0[phase as usize]
    }

    /// The value of `memory` in a row of the metrics file.
    pub(crate) fn json(&self) -> Value {
        Phase::ALL.map(|phase| (phase.name(), self.of(phase).json())).into_iter().collect()
    }
}

/// Which phase is under way, and what the ones before it took.
#[derive(Debug)]
pub struct Phases {
    /// What the process held before training, anonymous memory without tensors.
    anonymous_before: u64,
    under_way: Option<(Phase, Running)>,
    largest: StepMemory,
}

impl Phases {
    /// To be made when everything but training itself has taken its memory.
    pub(crate) fn new() -> Self {
        let usage = tensors::usage();
        let of_tensors = usage.live.total() + usage.cached;
        Self {
            anonymous_before: Resident::now().anonymous.saturating_sub(of_tensors),
            under_way: None,
            largest: StepMemory::default(),
        }
    }

    /// Ends the phase under way and begins another.
    pub(crate) fn begin(&mut self, phase: Phase) {
        self.end();
        tensors::reset_peak();
        reset_peak();
        self.under_way = Some((phase, phase.stage().enter()));
    }

    /// Ends the step. What its phases took is forgotten here.
    pub(crate) fn finish(&mut self) -> StepMemory {
        self.end();
        std::mem::take(&mut self.largest)
    }

    fn end(&mut self) {
        let Some((phase, running)) = self.under_way.take() else { return };
        drop(running);
        let resident = Resident::now();
        let memory = PhaseMemory {
            tensors: tensors::usage().peak,
            libraries: self.anonymous_before + resident.of_files,
            resident: resident.peak,
        };
        let largest = &mut self.largest.0[phase as usize];
        if memory.resident > largest.resident {
            *largest = memory;
        }
    }
}
