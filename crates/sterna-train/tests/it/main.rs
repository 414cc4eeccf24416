//! Integration tests of the trainer.

mod conformance;
mod equivalence;
mod plan;
mod schedule;
mod tiles;
mod tiny;
