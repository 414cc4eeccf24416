//! What launcher and agent say to each other: one JSON value a line, over ssh's stdin and stdout.
//!
//! ```text
//! launcher  prepare                          agent  ready, or refused
//! launcher  start, then ping every PING      agent  output and ended, for each rank
//! launcher  signal                           agent  (ranks end)
//! ```
//!
//! The agent ends its ranks when its stdin ends or when it hears nothing for [`SILENCE`]: however the launcher or the
//! link to it ends, no rank is left behind.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Time between two signs of life of the launcher.
pub const PING: Duration = Duration::from_secs(5);

/// Silence of the launcher after which an agent ends its ranks.
pub const SILENCE: Duration = Duration::from_mins(1);

/// From the launcher to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToAgent {
    /// The first line: what must be there.
    Prepare(Prepare),
    /// All hosts are ready: start the ranks.
    Start(Start),
    /// Send a signal, by its number, to every rank.
    Signal(i32),
    /// The launcher is alive.
    Ping,
}

/// What must be the same on all hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// Version of the launcher. Read before anything else, so it must never change its place.
    pub version: String,
    /// The working directory of the launcher.
    pub dir: String,
    /// The recipe as typed: a path from `dir`.
    pub recipe: String,
    /// [`crate::fingerprint`] of the launcher's recipe.
    pub fingerprint: String,
}

/// The ranks of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// What stands after the program on the command line of each rank.
    pub args: Vec<String>,
    /// What all its ranks are told.
    pub ranks: NodeRanks,
}

/// What the ranks of one host are told of themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRanks {
    /// Numbers in the world.
    pub ranks: Range<usize>,
    /// Ranks on all hosts.
    pub world_size: usize,
    /// Where rank 0 listens.
    pub master_addr: String,
    /// Where rank 0 listens.
    pub master_port: u16,
    /// How often the run was started before.
    pub restart_count: usize,
    /// `CUDA_VISIBLE_DEVICES`, where devices were chosen.
    pub visible_devices: Option<String>,
    /// Variables that come on top of those of the host.
    pub env: BTreeMap<String, String>,
}

/// From an agent to the launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromAgent {
    /// Everything is there, and the ranks could be started.
    Ready(Ready),
    /// Something is missing or different.
    Refused(Refusal),
    /// A rank wrote a line.
    Output {
        /// Number in the world.
        rank: usize,
        /// Which of its two streams it wrote to.
        stream: Stream,
        /// Without the end of the line.
        line: String,
    },
    /// A rank has ended.
    Ended {
        /// Number in the world.
        rank: usize,
        /// How.
        status: Status,
        /// What it left to say, in the form of the `sterna` binary.
        report: Option<serde_json::Value>,
    },
    /// The ranks could not be started.
    Failed(String),
}

/// What the launcher needs to know of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The address by which the launcher reached it, from `SSH_CONNECTION`.
    pub address: Option<String>,
    /// A TCP port that nobody listened on a moment ago.
    pub free_port: u16,
}

/// Why an agent will not start ranks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Another version of the program.
    Version {
        /// That of the agent.
        found: String,
    },
    /// The working directory is not there.
    Folder {
        /// The reason of the system.
        reason: String,
    },
    /// The recipe cannot be read.
    NoRecipe {
        /// The reason of the system.
        reason: String,
    },
    /// The recipe is another one.
    OtherRecipe {
        /// [`crate::fingerprint`] of the agent's recipe.
        found: String,
    },
    /// What the launcher said makes no sense, or something here does not work.
    Other {
        /// The reason.
        reason: String,
    },
}

/// Which stream a rank wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Data.
    Stdout,
    /// Everything else.
    Stderr,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

impl Status {
    /// Whether all was well.
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }
}

/// The version in a launcher's first line, whatever else stands there: another version may say the rest differently.
pub fn version_of(line: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    value["prepare"]["version"].as_str().map(str::to_owned)
}

/// A message as a line.
pub fn to_line(message: &impl Serialize) -> String {
    // Only maps with keys that are no strings cannot be written, and there are none in a message.
    let mut line = serde_json::to_string(message).unwrap_or_default();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    #[test]
    fn messages_are_one_line_each_and_survive() {
        let start = ToAgent::Start(Start {
            args: vec!["train".to_owned(), "a b\n.yaml".to_owned()],
            ranks: NodeRanks {
                ranks: 2..4,
                world_size: 4,
                master_addr: "10.0.0.1".to_owned(),
                master_port: 29500,
                restart_count: 1,
                visible_devices: Some("0,2".to_owned()),
                env: BTreeMap::from([("HF_HOME".to_owned(), "/hf".to_owned())]),
            },
        });
        for message in [start, ToAgent::Signal(15), ToAgent::Ping] {
            let line = to_line(&message);
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert_eq!(serde_json::from_str::<ToAgent>(&line).unwrap(), message);
        }
        let ended = FromAgent::Ended {
            rank: 3,
            status: Status::Signal(9),
            report: Some(serde_json::json!({"exit": "failed"})),
        };
        assert_snapshot!(to_line(&ended), @r#"{"ended":{"rank":3,"status":{"signal":9},"report":{"exit":"failed"}}}"#);
        assert_eq!(serde_json::from_str::<FromAgent>(&to_line(&ended)).unwrap(), ended);
    }

    #[test]
    fn the_version_is_found_in_a_line_of_another_version() {
        assert_eq!(
            version_of(r#"{"prepare": {"version": "9.0.0", "all": "else"}}"#),
            Some("9.0.0".to_owned())
        );
        assert_eq!(version_of(r#"{"ping": 1}"#), None);
        assert_eq!(version_of("hello"), None);
    }
}
