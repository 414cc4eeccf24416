//! The boundary against libtorch's own definitions.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod autograd;
mod c10d;
mod file;
mod kernels;
mod memory;
mod optimizer;
mod random;
mod rounding;
