//! A timeline of the first steps, as a file that <https://ui.perfetto.dev> and `chrome://tracing` open.
//!
//! [`TimelineLayer`] listens to the spans of [`sterna_model::stage`] and writes Chrome's trace events, in the format that is
//! a JSON array: one process for each rank, one track for each thread, one event for each span with its layer and bytes where
//! they are known, and counters of what tensors hold by kind and of what is resident, sampled at the end of each span.
//!
//! Where a GPU computes, a track of its own shows the same spans as it measured them: from the moment when it came to what the
//! span asked of it to the moment when that was done. The marks between which it measures are read at the end of each step.
//!
//! The file is whole at every moment, however the process ends: events are collected, and each write ends with the bracket
//! that the next one overwrites. A killed process loses the events of the phase that it was in, and those spans that had not
//! ended.
//!
//! # Source
//!
//! "Trace Event Format", Google, 2016: events `X` (complete), `C` (counter), `M` (metadata).

mod device;

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value, json};
use sterna_model::stage::ITERATION;
pub use sterna_model::stage::TIMELINE;
use sterna_torch_sys::{
    cuda::{Mark, current_device},
    memory,
};
use tracing::{
    Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id},
};
use tracing_subscriber::{
    layer::{Context, Layer},
    registry::LookupSpan,
};

use self::device::{DeviceTrack, GPU_TRACK};
use crate::error::TrainError;

/// Events are written when there are this many bytes of them, and at the end of every phase and step.
const BUFFER_LEN: usize = 1 << 16;

/// What ends with everything written, so that a step that fails shows how far it came.
const PHASES: [&str; 2] = ["forward", "backward"];

/// The kernel counts resident memory in these on x86-64.
const PAGE_LEN: u64 = 4096;

/// What a file ends with.
const CLOSING: &[u8] = b"\n]\n";

/// A layer of a `tracing` subscriber that writes the timeline of one rank.
#[derive(Debug)]
pub struct TimelineLayer {
    rank: usize,
    /// When the clock of the file was `origin_us`.
    origin: Instant,
    /// Microseconds since the last midnight, UTC, so that the files of several ranks fit together.
    origin_us: f64,
    max_steps: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    file: File,
    /// Where the closing bracket stands.
    end: u64,
    /// Events that wait to be written.
    buffer: Vec<u8>,
    threads: HashMap<ThreadId, usize>,
    /// What this step's spans took on the GPU, if there is one.
    gpu: Option<DeviceTrack>,
    /// `/proc/self/statm`.
    statm: File,
    num_steps: usize,
    /// Within one of the steps that are recorded.
    is_recording: bool,
}

/// What a span carries from its beginning to its end.
struct Recorded {
    arguments: Map<String, Value>,
    entered: Option<Instant>,
    /// The same moment of the GPU that this thread computes on, while a step is recorded.
    mark: Option<Mark>,
}

impl TimelineLayer {
    /// Creates `<dir>/rank<rank>.json`, for the first `max_steps` optimizer steps. A file that is there is replaced.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] if it cannot be written.
    pub fn create(dir: &Path, rank: usize, max_steps: usize) -> Result<Self, TrainError> {
        let path = dir.join(format!("rank{rank}.json"));
        let create = || -> io::Result<State> {
            fs::create_dir_all(dir)?;
            let mut state = State {
                file: File::create(&path)?,
                path: path.clone(),
                end: 0,
                buffer: Vec::new(),
                threads: HashMap::new(),
                gpu: None,
                statm: File::open("/proc/self/statm")?,
                num_steps: 0,
                is_recording: false,
            };
            state.metadata(rank, None, "process_name", &format!("rank {rank}"));
            state.try_flush()?;
            Ok(state)
        };
        let state = create().map_err(|source| TrainError::Io { path: path.clone(), source })?;
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            rank,
            origin: Instant::now(),
            origin_us: (since_epoch.as_micros() % 86_400_000_000) as f64,
            max_steps,
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Microseconds on the clock of the file.
    fn us(&self, instant: Instant) -> f64 {
        self.origin_us + instant.duration_since(self.origin).as_nanos() as f64 / 1e3
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for TimelineLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.metadata().target() != TIMELINE {
            return;
        }
        let Some(span) = context.span(id) else { return };
        let mut arguments = Map::new();
        attributes.record(&mut Arguments(&mut arguments));
        // What happens inside a block happens in its layer.
        if let Some(parent) = span.parent()
            && let Some(Recorded { arguments: of_parent, .. }) = parent.extensions().get()
            && let Some(layer) = of_parent.get("layer")
        {
            arguments.entry("layer").or_insert_with(|| layer.clone());
        }
        span.extensions_mut().insert(Recorded { arguments, entered: None, mark: None });
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut extensions = span.extensions_mut();
        let Some(recorded) = extensions.get_mut::<Recorded>() else { return };
        let mut state = self.state();
        if span.name() == ITERATION {
            state.is_recording = state.num_steps < self.max_steps;
            if let (true, Some(index)) = (state.is_recording, current_device()) {
                let track = state.gpu.get_or_insert_with(|| DeviceTrack::new(index));
                track.begin(self.us(Instant::now()));
                let name = format!("GPU {index}");
                if track.is_new() {
                    state.metadata(self.rank, Some(GPU_TRACK), "thread_name", &name);
                }
            }
        }
        recorded.mark = if state.is_recording { device::mark() } else { None };
        drop(state);
        recorded.entered = Some(Instant::now());
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let now = Instant::now();
        let Some(span) = context.span(id) else { return };
        let mut extensions = span.extensions_mut();
        let Some(recorded) = extensions.get_mut::<Recorded>() else { return };
        let Some(entered) = recorded.entered.take() else { return };
        let mut state = self.state();
        if !state.is_recording {
            return;
        }
        let thread = state.thread(self.rank);
        let (start, end) = (self.us(entered), self.us(now));
        state.event(&json!({
            "name": span.name(), "cat": "stage", "ph": "X", "pid": self.rank, "tid": thread,
            "ts": start, "dur": end - start, "args": recorded.arguments,
        }));
        if let (Some(start), Some(gpu)) = (recorded.mark.take(), &mut state.gpu) {
            gpu.add(span.name(), &recorded.arguments, start);
        }
        // A warning below may look at the span.
        drop(extensions);
        state.counters(self.rank, end);
        if span.name() == ITERATION || PHASES.contains(&span.name()) {
            state.board_counter(self.rank, end);
        }
        if span.name() == ITERATION {
            let events = state.gpu.as_mut().map(|gpu| gpu.finish(self.rank));
            for event in events.into_iter().flatten() {
                state.event(&event);
            }
            state.is_recording = false;
            state.num_steps += 1;
            state.flush();
        } else if state.buffer.len() >= BUFFER_LEN || PHASES.contains(&span.name()) {
            state.flush();
        }
    }
}

impl State {
    /// What tensors hold, what waits to be used again, and what is resident.
    fn counters(&mut self, rank: usize, us: f64) {
        let usage = memory::usage();
        let kinds = |bytes: memory::ByKind| -> Value {
            bytes.iter().map(|(kind, bytes)| (kind.name(), bytes)).collect()
        };
        let mut counters = vec![
            ("tensors", kinds(usage.live)),
            ("free blocks", json!({"bytes": usage.cached})),
            ("resident", json!({"bytes": self.resident()})),
        ];
        if self.gpu.is_some() {
            let device = memory::device_usage();
            let free = device.reserved.saturating_sub(device.live.total());
            counters.push(("device tensors", kinds(device.live)));
            counters.push(("device free blocks", json!({"bytes": free})));
        }
        for (name, arguments) in counters {
            self.event(&json!({"name": name, "ph": "C", "pid": rank, "ts": us, "args": arguments}));
        }
    }

    /// What all processes use of the GPU, where NVML tells: too slow to be asked at every span.
    fn board_counter(&mut self, rank: usize, us: f64) {
        let Some(used) = self.gpu.as_ref().and_then(DeviceTrack::used_by_all) else { return };
        self.event(&json!({
            "name": "device in use", "ph": "C", "pid": rank, "ts": us, "args": {"bytes": used},
        }));
    }

    /// Resident memory of the process, bytes; 0 if the system does not say. The second number of `statm`.
    fn resident(&self) -> u64 {
        let mut text = [0; 128];
        let len = self.statm.read_at(&mut text, 0).unwrap_or(0);
        let pages = std::str::from_utf8(&text[..len])
            .ok()
            .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
        pages.map_or(0, |pages| pages * PAGE_LEN)
    }

    /// The number of the calling thread's track, counted from 0 in the order of their first events.
    fn thread(&mut self, rank: usize) -> usize {
        let current = thread::current();
        if let Some(&thread) = self.threads.get(&current.id()) {
            return thread;
        }
        let thread = self.threads.len();
        self.threads.insert(current.id(), thread);
        let name = current.name().map_or_else(|| format!("thread {thread}"), str::to_owned);
        self.metadata(rank, Some(thread), "thread_name", &name);
        thread
    }

    fn metadata(&mut self, rank: usize, thread: Option<usize>, key: &str, name: &str) {
        self.event(
            &json!({"name": key, "ph": "M", "pid": rank, "tid": thread.unwrap_or(0), "args": {"name": name}}),
        );
    }

    fn event(&mut self, event: &Value) {
        let is_first = self.end == 0 && self.buffer.is_empty();
        self.buffer.extend_from_slice(if is_first { b"[\n" } else { b",\n" });
        self.buffer.extend_from_slice(event.to_string().as_bytes());
    }

    /// Writes what waits. A disk that is full ends the timeline, not the run.
    fn flush(&mut self) {
        if let Err(error) = self.try_flush() {
            self.num_steps = usize::MAX;
            self.is_recording = false;
            tracing::warn!(path = %self.path.display(), %error, "the timeline ends here");
        }
    }

    fn try_flush(&mut self) -> io::Result<()> {
        let len = self.buffer.len() as u64;
        self.buffer.extend_from_slice(CLOSING);
        self.file.seek(SeekFrom::Start(self.end))?;
        // One call, so that the file is whole before and after it.
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        self.end += len;
        Ok(())
    }
}

/// Collects the fields of a span.
struct Arguments<'a>(&'a mut Map<String, Value>);

impl Visit for Arguments<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), json!(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().to_owned(), json!(format!("{value:?}")));
    }
}
