//! The suite on a machine without a GPU.

mod fake_cuda;
mod tiny;
