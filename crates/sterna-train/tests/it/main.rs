//! Integration tests of the trainer.

mod adapters;
mod by_source;
mod conformance;
mod disk;
mod dpo;
mod equivalence;
mod fake_cuda;
mod families;
mod gpu_figures;
mod kto;
mod nonfinite;
mod objective;
mod one_batch;
mod optimizer;
mod plan;
mod policies;
mod resume;
mod schedule;
mod tiles;
mod timeline;
mod tiny;
mod wrappers;
