//! Test helpers: ranks as processes, tiny models, real inputs, close-enough comparisons. A dev-dependency only.
//!
//! Everything here fails by panicking, with a message for the reader of the test's output.

mod close;
mod inputs;
mod ranks;
mod tiny_model;

pub use close::assert_close;
pub use inputs::real_inputs;
pub use ranks::{TestRank, spawn_ranks, spawn_ranks_losing};
pub use tiny_model::{tiny_config, tiny_model};
