//! Which part of a rendering stands between `{% generation %}` and `{% endgeneration %}`: what the template says that the assistant
//! wrote.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::{Environment, Value};

/// How much of one rendering is written, and what of it was generated.
#[derive(Clone, Debug, Default)]
pub(super) struct Tracker(Arc<Mutex<Written>>);

#[derive(Debug, Default)]
struct Written {
    bytes: usize,
    starts: Vec<usize>,
    spans: Vec<Range<usize>>,
}

impl Tracker {
    /// Gives `environment` the functions that the two ends of the tag call.
    pub(super) fn install(&self, environment: &mut Environment<'static>) {
        let start = self.clone();
        environment.add_function("__py_generation", move || {
            start.with(|written| written.starts.push(written.bytes));
            Value::from(())
        });
        let end = self.clone();
        environment.add_function("__py_end_generation", move || {
            end.with(|written| {
                if let Some(start) = written.starts.pop() {
                    written.spans.push(start..written.bytes);
                }
            });
            Value::from(())
        });
    }

    /// Forgets the rendering before.
    pub(super) fn reset(&self) {
        self.with(|written| *written = Written::default());
    }

    /// Notes that some more is written.
    pub(super) fn write(&self, bytes: usize) {
        self.with(|written| written.bytes += bytes);
    }

    /// What was generated, in bytes of the rendering; `None` where the template captures it before it prints it (in a macro, say), so
    /// that its place is not known.
    pub(super) fn spans(&self) -> Option<Vec<Range<usize>>> {
        self.with(|written| {
            let spans = written.spans.clone();
            // Nothing reaches the text between the ends of a captured part; an empty reply may stand beside others.
            let is_captured = !spans.is_empty() && spans.iter().all(Range::is_empty);
            let is_known = !is_captured && spans.is_sorted_by(|a, b| a.end <= b.start);
            is_known.then_some(spans)
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut Written) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
