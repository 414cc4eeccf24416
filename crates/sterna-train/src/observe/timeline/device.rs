//! The spans of one step as the GPU measured them.

use serde_json::{Map, Value, json};
use sterna_torch_sys::cuda::{Mark, current_device};

use crate::observe::gpus::Monitor;

/// The number of the GPU's track, beyond those of threads.
pub(super) const GPU_TRACK: usize = 1000;

/// What a step asked of the GPU, and when.
#[derive(Debug)]
pub(super) struct DeviceTrack {
    monitor: Option<Monitor>,
    num_steps: usize,
    /// The beginning of the step: nothing was under way, so that the GPU came to the mark as it was made.
    origin: Option<(Mark, f64)>,
    spans: Vec<Span>,
}

#[derive(Debug)]
struct Span {
    name: &'static str,
    arguments: Map<String, Value>,
    start: Mark,
    end: Mark,
}

/// This moment of the GPU that this thread computes on; `None` on a CPU, and where the GPU's context has failed, which the next
/// operation says.
pub(super) fn mark() -> Option<Mark> {
    Mark::record(current_device()?).ok()
}

impl DeviceTrack {
    pub(super) fn new(device_index: usize) -> Self {
        Self { monitor: Monitor::new(device_index), num_steps: 0, origin: None, spans: Vec::new() }
    }

    /// Begins a step, at this time of the file's clock.
    pub(super) fn begin(&mut self, us: f64) {
        self.num_steps += 1;
        self.spans.clear();
        self.origin = mark().map(|mark| (mark, us));
    }

    /// Whether this is its first step.
    pub(super) fn is_new(&self) -> bool {
        self.num_steps == 1
    }

    /// Adds a span that ends here.
    pub(super) fn add(&mut self, name: &'static str, arguments: &Map<String, Value>, start: Mark) {
        if let Some(end) = mark() {
            self.spans.push(Span { name, arguments: arguments.clone(), start, end });
        }
    }

    /// The events of the step, once the GPU has done it.
    pub(super) fn finish(&mut self, rank: usize) -> Vec<Value> {
        let Some((origin, origin_us)) = self.origin.take() else { return Vec::new() };
        // The span of the step ends last.
        if self.spans.last().is_none_or(|span| span.end.wait().is_err()) {
            return Vec::new();
        }
        let us = |mark: &Mark| {
            let since = mark.since(&origin).ok()?;
            Some(origin_us + since.as_nanos() as f64 / 1e3)
        };
        let event = |span: Span| {
            let (start, end) = (us(&span.start)?, us(&span.end)?);
            Some(json!({
                "name": span.name, "cat": "device", "ph": "X", "pid": rank, "tid": GPU_TRACK,
                "ts": start, "dur": end - start, "args": span.arguments,
            }))
        };
        self.spans.drain(..).filter_map(event).collect()
    }

    /// What all processes use of the GPU, bytes.
    pub(super) fn used_by_all(&self) -> Option<u64> {
        Some(self.monitor.as_ref()?.memory()?.used)
    }
}
