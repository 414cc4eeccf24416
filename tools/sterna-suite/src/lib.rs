//! Proves and measures Sterna on a machine with a GPU: one command, one report.
//!
//! A section is a module that returns [`record::Findings`]; [`run`] gives each a process and a time limit of its own, so that one that
//! hangs or aborts costs only itself, and [`report`] writes what all of them found. Sections call the crates (`ops`, `ceilings`,
//! `attention`) or drive the `sterna` program as a user would (`equal`, `shape`, `longest`); `shape` runs other programs beside it on the same card.

pub mod attention;
pub mod baseline;
pub mod ceilings;
pub mod context;
pub mod contracts;
pub mod cost;
pub mod equal;
pub mod lease;
pub mod longest;
pub mod machine;
pub mod nccl;
pub mod ops;
pub mod recipe;
pub mod record;
pub mod report;
pub mod required;
pub mod run;
pub mod sanitizer;
pub mod sections;
pub mod shape;
pub mod timing;
