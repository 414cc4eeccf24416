//! Lines on stderr, and below them, on a terminal, one line that is alive.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use sterna_data::Progress;
use tracing_subscriber::fmt::MakeWriter;

/// stderr as seen by one rank. Cheap to clone; clones share the live line.
#[derive(Clone, Debug)]
pub(crate) struct Screen {
    /// Hidden where there is no terminal, or another rank has it.
    live: ProgressBar,
}

impl Screen {
    /// Lines only.
    pub(crate) fn plain() -> Self {
        Self { live: ProgressBar::hidden() }
    }

    /// With a live line if stderr is a terminal.
    pub(crate) fn with_live_line() -> Self {
        if io::stderr().is_terminal() {
            Self { live: ProgressBar::new_spinner() }
        } else {
            Self::plain()
        }
    }

    /// Writes one or more whole lines above the live line.
    pub(crate) fn line(&self, text: &str) {
        // A closed stderr is no reason to stop training.
        let _ = self.print(format!("{text}\n").as_bytes());
    }

    /// Says in the live line what goes on, and shows that it does.
    pub(crate) fn doing(&self, what: &str) {
        self.set_style("{spinner} {msg} ({elapsed})");
        self.live.set_message(what.to_owned());
        self.live.enable_steady_tick(Duration::from_millis(200));
    }

    /// Shows in the live line how many rows of a source are tokenized, how fast, and the time that is left.
    pub(crate) fn tokenizing(&self, progress: Progress<'_>) {
        let Progress { source, done, total } = progress;
        if done == 0 {
            self.live.set_position(0);
            self.live.set_length(total as u64);
            self.set_style(
                "{spinner} tokenizing {msg} [{bar:30}] {human_pos}/{human_len} rows ({per_sec:0}, about {eta} left)",
            );
            self.live.set_message(source.to_owned());
            // The rate is that of this source.
            self.live.reset();
        }
        self.live.set_position(done as u64);
    }

    /// Shows `done` of `total` steps in the live line, with figures behind.
    pub(crate) fn advance(&self, done: u64, total: u64, figures: &str) {
        self.set_style("{spinner} [{bar:30}] {pos}/{len} steps ({elapsed}){msg}");
        self.live.set_length(total);
        self.live.set_position(done);
        self.live.set_message(figures.to_owned());
    }

    /// Takes the live line away.
    pub(crate) fn finish(&self) {
        self.live.finish_and_clear();
    }

    fn set_style(&self, template: &str) {
        // Our own templates are valid; an invalid one would leave the style as it is.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.live.set_style(style.progress_chars("=> ").tick_chars("-\\|/-"));
        }
    }

    fn print(&self, bytes: &[u8]) -> io::Result<()> {
        self.live.suspend(|| io::stderr().lock().write_all(bytes))
    }
}

impl io::Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.print(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Screen {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
