//! The command line, from the outside: exit status, stdout and stderr of the real binary on tiny models and chats.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod check;
mod checkpoints;
mod data;
mod faults;
mod full_disk;
mod help;
mod hosts;
mod launch;
mod recipes;
mod train;
mod workspace;
