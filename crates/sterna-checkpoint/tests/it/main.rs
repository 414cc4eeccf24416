//! Checkpoints through the crate's public API.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod damage;
mod files;
mod folder;
