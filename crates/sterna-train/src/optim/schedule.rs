//! Learning-rate schedules: those of transformers' `get_scheduler`, by name and with its arguments.
//!
//! A schedule is a pure function of the optimizer step, so a resumed run needs to restore nothing. It spans the
//! optimizer steps that really run (the reference counts micro-batches, so with gradient accumulation it never
//! reaches the end of its decay).
//!
//! Source: transformers 4.57 `optimization.py`.

use std::f64::consts::PI;

use sterna_recipe::{Ramp, Schedule, SchedulerOptions};

/// A learning rate as a function of the optimizer step.
#[derive(Debug, Clone, PartialEq)]
pub struct LrSchedule {
    /// The curve.
    pub schedule: Schedule,
    /// The optimizer's learning rate, which the curve scales.
    pub base_lr: f64,
    /// Optimizer steps of warm-up.
    pub num_warmup_steps: u64,
    /// Optimizer steps of the whole run.
    pub num_training_steps: u64,
}

impl LrSchedule {
    /// The schedule of a run of `num_training_steps` optimizer steps.
    pub fn new(options: &SchedulerOptions, base_lr: f64, num_training_steps: u64) -> Self {
        let num_warmup_steps = match options.schedule {
            Schedule::WarmupStableDecay { num_warmup_steps: Some(steps), .. } => steps as u64,
            _ => (options.warmup_ratio * num_training_steps as f64) as u64,
        };
        Self { schedule: options.schedule.clone(), base_lr, num_warmup_steps, num_training_steps }
    }

    /// The learning rate of optimizer step `step`, counted from 0.
    pub fn lr(&self, step: u64) -> f64 {
        self.base_lr * self.factor(step)
    }

    /// The share of the warm-up that is done at `step`.
    fn warmup_progress(&self, step: u64) -> f64 {
        step as f64 / self.num_warmup_steps.max(1) as f64
    }

    /// The share of the decay that is done at `step`.
    fn decay_progress(&self, step: u64) -> f64 {
        (step - self.num_warmup_steps) as f64
            / self.num_training_steps.saturating_sub(self.num_warmup_steps).max(1) as f64
    }

    fn factor(&self, step: u64) -> f64 {
        let is_warmup = step < self.num_warmup_steps;
        match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::CosineWarmupWithMinLr { num_cycles, min_lr_rate, warmup_lr_rate } => {
                let num_warmup_steps = self.num_warmup_steps as f64;
                if is_warmup {
                    return match warmup_lr_rate {
                        None => (step as f64 + 1.0) / num_warmup_steps.max(1.0),
                        Some(rate) => {
                            rate + (1.0 - rate) * step as f64 / (num_warmup_steps - 1.0).max(1.0)
                        }
                    };
                }
                let decay_steps = (self.num_training_steps as f64 - num_warmup_steps).max(1.0);
                cosine_to_floor(
                    (step as f64 - num_warmup_steps + 1.0) / decay_steps,
                    num_cycles,
                    min_lr_rate,
                )
            }
            Schedule::WarmupStableDecay {
                num_warmup_steps: _,
                num_decay_steps,
                num_stable_steps,
                warmup_type,
                decay_type,
                min_lr_ratio,
                num_cycles,
            } => {
                let num_decay_steps = num_decay_steps as u64;
                let num_stable_steps = num_stable_steps.map_or_else(
                    || {
                        self.num_training_steps
                            .saturating_sub(self.num_warmup_steps + num_decay_steps)
                    },
                    |steps| steps as u64,
                );
                let decay_start = self.num_warmup_steps + num_stable_steps;
                let factor = if is_warmup {
                    let progress = self.warmup_progress(step);
                    match warmup_type {
                        Ramp::Linear => progress,
                        Ramp::Cosine => 0.5 * (1.0 - (PI * progress).cos()),
                        Ramp::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
                    }
                } else if step < decay_start {
                    1.0
                } else if step < decay_start + num_decay_steps {
                    let progress = (step - decay_start) as f64 / num_decay_steps as f64;
                    match decay_type {
                        Ramp::Linear => 1.0 - progress,
                        Ramp::Cosine => 0.5 * (1.0 + (PI * num_cycles * 2.0 * progress).cos()),
                        Ramp::OneMinusSqrt => 1.0 - progress.sqrt(),
                    }
                } else {
                    0.0
                };
                (factor * (1.0 - min_lr_ratio) + min_lr_ratio).max(0.0)
            }
            _ if is_warmup => self.warmup_progress(step),
            Schedule::ConstantWithWarmup => 1.0,
            Schedule::Linear => (1.0 - self.decay_progress(step)).max(0.0),
            Schedule::Cosine { num_cycles } => {
                cosine_to_floor(self.decay_progress(step), num_cycles, 0.0)
            }
            Schedule::CosineWithMinLr { num_cycles, min_lr_rate } => {
                cosine_to_floor(self.decay_progress(step), num_cycles, min_lr_rate)
            }
            Schedule::CosineWithRestarts { num_cycles } => {
                let progress = self.decay_progress(step);
                if progress < 1.0 {
                    (0.5 * (1.0 + (PI * ((num_cycles as f64 * progress) % 1.0)).cos())).max(0.0)
                } else {
                    0.0
                }
            }
            Schedule::Polynomial { lr_end, power } => {
                let remaining = (1.0 - self.decay_progress(step)).max(0.0);
                ((self.base_lr - lr_end) * remaining.powf(power) + lr_end) / self.base_lr
            }
            Schedule::InverseSqrt { timescale } => {
                let warmup_or_default = if self.num_warmup_steps == 0 {
                    10_000.0
                } else {
                    self.num_warmup_steps as f64
                };
                let timescale = timescale.map_or(warmup_or_default, |steps| steps as f64);
                let shift = timescale - self.num_warmup_steps as f64;
                1.0 / ((step as f64 + shift) / timescale).sqrt()
            }
        }
    }
}

/// `num_cycles` cosine waves over `progress` 0 to 1, scaled to end at `min_lr_rate`.
fn cosine_to_floor(progress: f64, num_cycles: f64, min_lr_rate: f64) -> f64 {
    let factor = 0.5 * (1.0 + (PI * num_cycles * 2.0 * progress).cos());
    (factor * (1.0 - min_lr_rate) + min_lr_rate).max(0.0)
}
