//! What does not fit in memory, and where it waits.

pub mod disk;
