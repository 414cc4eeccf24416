//! What a launch over several hosts is, as data.
//!
//! From the text of a hostfile and a selection to a [`Job`], which says who runs which ranks; which environment
//! variables the ranks of other hosts are given; the ssh command that starts an agent there; and the messages between
//! launcher and agent. Nothing here reads a file or the environment, starts a process or opens a connection: the
//! `sterna` binary does, and everything here is tested without a second host.

mod env_file;
mod error;
mod export;
mod hostfile;
mod job;
mod select;
mod ssh;
pub mod wire;

pub use env_file::parse_env_file;
pub use error::LaunchError;
pub use export::{ENV_FILE_NAME, exported, shown};
pub use hostfile::{Host, parse_hostfile};
pub use job::{Job, Node};
pub use select::{Selection, chosen_here};
pub use ssh::{SshOptions, quote};

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// SHA-256 of a recipe as typed, in hexadecimal: two hosts that train one recipe have the same.
pub fn fingerprint(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
