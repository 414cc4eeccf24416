//! The decoder against transformers, against itself cut in other ways, and against its own slope.

mod equivalence;
mod golden;
mod gradient;
mod initial;
mod leak;
mod params;
mod tiny;
