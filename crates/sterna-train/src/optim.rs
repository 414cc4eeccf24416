//! The optimizer's schedule and gradient clipping. The `AdamW` step itself is in [`crate::zero`], beside its state.

mod clip;
mod schedule;

pub use self::{clip::clip_scale, schedule::LrSchedule};
