//! How one sequence is worked on by several ranks.

pub mod ulysses;
