//! Integration tests of the trainer.

mod schedule;
