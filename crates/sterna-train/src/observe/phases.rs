//! The phases of a step, and what memory and time each of them took.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use sterna_model::stage::{Running, Stage};
use sterna_torch_sys::{
    cuda::{Mark, current_device},
    memory::{self as tensors, ByKind},
};

use crate::observe::memory::{Resident, reset_peak};

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
pub struct StepMemory {
    host: [PhaseMemory; Phase::ALL.len()],
    device: [ByKind; Phase::ALL.len()],
}

impl StepMemory {
    /// That of one phase.
    pub fn of(&self, phase: Phase) -> &PhaseMemory {
        &self.host[phase as usize]
    }

    /// What tensors on the GPU held when they held most in one phase; nothing on a CPU.
    pub fn on_device(&self, phase: Phase) -> &ByKind {
        &self.device[phase as usize]
    }

    /// Each phase's part of `device_memory` in a row of the metrics file.
    pub(crate) fn device_json(&self) -> impl Iterator<Item = (&'static str, Value)> {
        Phase::ALL.into_iter().map(|phase| {
            let kinds = self.on_device(phase).iter();
            (phase.name(), kinds.map(|(kind, bytes)| (kind.name(), bytes)).collect())
        })
    }

    /// The value of `memory` in a row of the metrics file.
    pub(crate) fn json(&self) -> Value {
        Phase::ALL.map(|phase| (phase.name(), self.of(phase).json())).into_iter().collect()
    }
}

/// How long one phase took, over all micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PhaseTime {
    /// From when the host began it until it began the next. On a GPU most of the phase is still to be done then.
    pub host: Duration,
    /// From the GPU's first work for it until its last, as the GPU measured it; `None` on a CPU.
    pub device: Option<Duration>,
}

/// The time of one rank in one optimizer step, by phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepTime([PhaseTime; Phase::ALL.len()]);

impl StepTime {
    /// That of one phase.
    pub fn of(&self, phase: Phase) -> &PhaseTime {
        &self.0[phase as usize]
    }

    /// The value of `phase_time` in a row of the metrics file.
    pub(crate) fn json(&self) -> Value {
        let of_phase = |time: &PhaseTime| match time.device {
            Some(device) => {
                json!({"host": time.host.as_secs_f64(), "device": device.as_secs_f64()})
            }
            None => json!({"host": time.host.as_secs_f64()}),
        };
        Phase::ALL.map(|phase| (phase.name(), of_phase(self.of(phase)))).into_iter().collect()
    }
}

/// A phase that has begun.
#[derive(Debug)]
struct UnderWay {
    phase: Phase,
    running: Running,
    started: Instant,
    /// On the GPU; `None` where there is none, or where its context has failed, which the next operation says.
    mark: Option<Mark>,
}

/// Which phase is under way, and what the ones before it took.
#[derive(Debug)]
pub struct Phases {
    /// What the process held before training, anonymous memory without tensors.
    anonymous_before: u64,
    under_way: Option<UnderWay>,
    largest: StepMemory,
    time: StepTime,
    /// Beginning and end of phases on the GPU, which nobody waits for within a step.
    marks: Vec<(Phase, Mark, Mark)>,
}

fn mark() -> Option<Mark> {
    Mark::record(current_device()?).ok()
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
            time: StepTime::default(),
            marks: Vec::new(),
        }
    }

    /// Ends the phase under way and begins another.
    pub(crate) fn begin(&mut self, phase: Phase) {
        self.end();
        tensors::reset_peak();
        reset_peak();
        self.under_way = Some(UnderWay {
            phase,
            running: phase.stage().enter(),
            started: Instant::now(),
            mark: mark(),
        });
    }

    /// Ends the step. What its phases took is told once, and forgotten; what they took on a GPU is known when that has done all of
    /// it, so the last phase must have ended ([`Self::end`]) and the GPU have been waited for.
    pub(crate) fn finish(&mut self) -> (StepMemory, StepTime) {
        self.end();
        let mut time = std::mem::take(&mut self.time);
        for (phase, start, end) in self.marks.drain(..) {
            let of_phase = &mut time.0[phase as usize].device;
            let took = end.since(&start).ok();
            *of_phase = took.map(|took| of_phase.unwrap_or_default() + took);
        }
        (std::mem::take(&mut self.largest), time)
    }

    /// Ends the phase under way.
    pub(crate) fn end(&mut self) {
        let Some(UnderWay { phase, running, started, mark: start }) = self.under_way.take() else {
            return;
        };
        drop(running);
        self.time.0[phase as usize].host += started.elapsed();
        if let (Some(start), Some(end)) = (start, mark()) {
            self.marks.push((phase, start, end));
        }
        let resident = Resident::now();
        let memory = PhaseMemory {
            tensors: tensors::usage().peak,
            libraries: self.anonymous_before + resident.of_files,
            resident: resident.peak,
        };
        let largest = &mut self.largest.host[phase as usize];
        if memory.resident > largest.resident {
            *largest = memory;
        }
        let (device, largest) =
            (tensors::device_usage().peak, &mut self.largest.device[phase as usize]);
        if device.total() > largest.total() {
            *largest = device;
        }
    }
}
