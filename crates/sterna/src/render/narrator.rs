//! Tells a person how a run goes.

use std::path::Path;

use sterna_comm::RankEnv;
use sterna_data::{PrepareReport, Progress};
use sterna_plan::Plan;
use sterna_recipe::Recipe;
use sterna_train::{EarlyExit, EvalMetrics, IterationMetrics, Observer, Processor, TrainSummary};

use super::{Screen, banner, eval_line, iteration_line};
use crate::logging;

/// Prints what a run reports, on the one rank that prints, and writes it to the log files of those that have one.
pub(crate) struct Narrator {
    screen: Screen,
    /// Figures are the same on all ranks, so rank 0 prints them, unless `logger.print_output_ranks` silences it.
    is_printing: bool,
    /// Whether the recipe asks for a line of figures at each step; the live line comes in any case.
    prints_metrics: bool,
    has_started: bool,
    /// Seconds of all steps of this run, for the time that is left.
    time: f64,
    num_steps: u64,
}

impl Narrator {
    pub(crate) fn new(recipe: &Recipe, env: &RankEnv) -> Self {
        let is_printing =
            env.rank == 0 && recipe.logger.print_output_ranks.contains(env.local_rank);
        let screen = if is_printing { Screen::with_live_line() } else { Screen::plain() };
        screen.doing("reading model and data");
        Self {
            screen,
            is_printing,
            prints_metrics: recipe.train_log_metrics,
            has_started: false,
            time: 0.0,
            num_steps: 0,
        }
    }

    pub(crate) fn screen(&self) -> &Screen {
        &self.screen
    }

    /// Whether everything was found in order and training began.
    pub(crate) fn has_started(&self) -> bool {
        self.has_started
    }

    /// Says what the data is.
    pub(crate) fn data(&self, report: &PrepareReport) {
        for line in banner::data(report) {
            self.say(&line);
        }
    }

    /// Says how the run ended, and takes the live line away.
    pub(crate) fn finish(&self, summary: &TrainSummary) {
        self.screen.finish();
        match &summary.early_exit {
            None => self.say("*** Training finished normally."),
            Some(EarlyExit::KillSwitch(path)) => {
                let path = path.display();
                self.say(&format!("*** Exiting training early because training found `{path}`"));
            }
            // The error that follows says it.
            Some(EarlyExit::Signal(_)) => {}
        }
    }

    fn say(&self, line: &str) {
        if self.is_printing {
            self.screen.line(line);
        }
        tracing::info!(target: logging::RUN, "{line}");
    }
}

/// What the first step says of the rest, where that is worth knowing: someone who waits for minutes decides whether to.
fn first_estimate(num_steps_left: u64, seconds_left: f64) -> Option<String> {
    let minutes = (seconds_left / 60.0).round();
    let time = match minutes {
        ..2.0 => return None,
        ..120.0 => format!("{minutes} minutes"),
        _ => format!("{:.1} hours", minutes / 60.0),
    };
    let steps = if num_steps_left == 1 { "step" } else { "steps" };
    Some(format!("About {time} for {num_steps_left} more {steps}."))
}

impl Observer for Narrator {
    fn on_reference(&mut self, done: usize, total: usize) {
        self.screen.doing(&format!("reference model: {done} of {total} micro-batches"));
    }

    fn on_tokenize(&mut self, progress: Progress<'_>) {
        self.screen.tokenizing(progress);
        if progress.done == progress.total {
            self.screen.doing("reading model and data");
        }
    }

    fn on_start(
        &mut self,
        plan: &Plan,
        report: &PrepareReport,
        num_steps: u64,
        processor: &Processor,
    ) {
        self.has_started = true;
        for line in banner::run(plan, num_steps, processor) {
            self.say(&line);
        }
        self.data(report);
        self.screen.advance(0, num_steps, "");
    }

    fn on_iteration(&mut self, metrics: &IterationMetrics) {
        self.time += metrics.iter_time;
        self.num_steps += 1;
        let num_left = metrics.max_iter - metrics.iter;
        let left = num_left as f64 * self.time / self.num_steps as f64;
        if self.num_steps == 1
            && let Some(line) = first_estimate(num_left, left)
        {
            self.say(&line);
        }
        if self.prints_metrics {
            self.say(&iteration_line(metrics));
        }
        let figures = format!(
            "  loss {:.4}  {:.0} tok/s  about {}:{:02} left",
            metrics.loss,
            metrics.tokens_per_second,
            left as u64 / 60,
            left as u64 % 60
        );
        self.screen.advance(metrics.iter, metrics.max_iter, &figures);
    }

    fn on_eval(&mut self, metrics: &EvalMetrics) {
        self.say(&eval_line(metrics));
    }

    fn on_export(&mut self, dir: &Path) {
        self.say(&format!("The model is in {}", dir.display()));
    }

    fn on_resume(&mut self, dir: &Path, step: u64) {
        self.say(&format!("Going on after step {step}, from {}", dir.display()));
    }

    fn on_checkpoint(&mut self, dir: &Path) {
        self.say(&format!("Checkpoint {} is complete", dir.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_long_run_is_estimated() {
        assert_eq!(first_estimate(9, 80.0), None);
        let of = |left, seconds| first_estimate(left, seconds).unwrap();
        assert_eq!(of(9, 9.0 * 40.0), "About 6 minutes for 9 more steps.");
        assert_eq!(of(1, 150.0), "About 3 minutes for 1 more step.");
        assert_eq!(of(999, 9000.0), "About 2.5 hours for 999 more steps.");
    }
}
