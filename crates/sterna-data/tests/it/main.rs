//! Everything that `sterna-data` promises, against what NumPy, PyTorch, Python, datasets, transformers and the reference computed.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod chats;
mod conformance;
mod formats;
mod masks;
mod orders;
mod packs;
mod prepare;
mod rng;
mod sources;
mod support;
mod texts;
mod traces;
