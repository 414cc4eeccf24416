//! What is kept of a micro-batch between its forward and its backward.

pub mod kept;
