//! The random orders of NumPy, PyTorch and Python, bit for bit.
//!
//! The reference shuffles with NumPy's `default_rng`, samples rows with Python's `random.Random` and orders batches with
//! PyTorch's `randperm`. The order of the data decides the loss curve, so each of the three generators is written out here
//! instead of taking another generator with the same name: a crate's PCG64 gives the right stream, but the bounded draw and the
//! shuffle on top of it are NumPy's own.

mod mt19937;
mod pcg64;
mod python;
mod torch;

pub use pcg64::numpy_permutation;
pub use python::PythonRandom;
pub use torch::{MAX_RANDPERM_LEN, torch_randperm};
