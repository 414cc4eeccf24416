//! The decoder against transformers, against itself cut in other ways, and against its own slope.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as a test does")]

mod equivalence;
mod golden;
mod gradient;
mod head;
mod initial;
mod large;
mod leak;
mod memory;
mod params;
mod route;
mod tiny;
mod ulysses;
mod wrappers;
