//! The C++ boundary: c10d, vector-Jacobian products, the libtorch kernels tch lacks, and the memory of tensors.
//!
//! All unsafe code of the workspace lives here; every public function is safe and takes [`tch::Tensor`]s.
//! The C++ under `cpp/` translates and decides nothing; one file computes, [`attention`]'s kernel. An exception becomes an [`Error`] with a kind, so that a full
//! device, a late peer and a lost peer can be told apart.
//!
//! # Linking
//!
//! libtorch is found by `LIBTORCH` (torch-sys's rule). A package with executables, tests included, names `rpath/build.rs` of
//! this folder as its build script, so that they find libtorch at run time.

pub mod attention;
mod autograd;
#[expect(unreachable_pub, reason = "cxx gives every generated item the visibility `pub`")]
#[expect(
    clippy::too_many_arguments,
    reason = "an attention's backward reads what the forward read and wrote"
)]
#[expect(clippy::struct_field_names, reason = "gradients are named as they are everywhere else")]
mod bridge;
pub mod c10d;
pub mod copies;
pub mod cuda;
pub mod cuda_attention;
mod error;
mod event;
pub mod file;
pub mod kernels;
pub mod library;
pub mod memory;
mod optimizer;
pub mod products;
pub mod random;
mod rounding;
mod tensor;

pub use autograd::vjp;
pub use error::Error;
pub use optimizer::{AdamW, fused_adamw_};
pub use rounding::round_stochastically;
