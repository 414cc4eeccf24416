//! Integration tests of the trainer.

mod conformance;
mod equivalence;
mod schedule;
mod tiles;
mod tiny;
