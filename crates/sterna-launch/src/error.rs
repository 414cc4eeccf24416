//! What can be wrong with what a launch was told.

use thiserror::Error;

/// What can be wrong with a hostfile, a selection of hosts, a file of variables, or their combination.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LaunchError {
    /// A line of the hostfile is none.
    #[error("{path}:{line}: found `{found}`, required: {required}")]
    HostfileLine {
        /// The hostfile.
        path: String,
        /// Counted from 1.
        line: usize,
        /// What stands there.
        found: String,
        /// What may stand there.
        required: &'static str,
    },
    /// A host has two lines.
    #[error("{path}:{line}: `{host}` stands in line {first} already")]
    DuplicateHost {
        /// The hostfile.
        path: String,
        /// Counted from 1.
        line: usize,
        /// The host.
        host: String,
        /// Where it stands first.
        first: usize,
    },
    /// The hostfile names no host.
    #[error("`{path}` names no host")]
    NoHosts {
        /// The hostfile.
        path: String,
    },
    /// A line of a file of variables is none.
    #[error(
        "{path}:{line}: this line is no NAME=VALUE, no comment that starts with #, and not empty"
    )]
    EnvLine {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
    },
    /// A part of `--include` or `--exclude` is none.
    #[error(
        "`{option}`: found `{found}`, required: HOST or HOST:SLOT,SLOT,... with @ between hosts"
    )]
    SelectionSyntax {
        /// `--include` or `--exclude`.
        option: &'static str,
        /// The part.
        found: String,
    },
    /// A selected host is not in the hostfile.
    #[error("`{option}` names the host `{host}`, the hosts are: {hosts}")]
    UnknownHost {
        /// `--include` or `--exclude`.
        option: &'static str,
        /// The host.
        host: String,
        /// Those that there are.
        hosts: String,
    },
    /// A selected slot is not one of its host's.
    #[error("`{option}` names slot `{slot}` of `{host}`, which has slots 0 to {last}")]
    UnknownSlot {
        /// `--include` or `--exclude`.
        option: &'static str,
        /// The host.
        host: String,
        /// The slot.
        slot: usize,
        /// The last one that there is.
        last: usize,
    },
    /// Nothing is left to run on.
    #[error("`{option} {found}` leaves no host to run on")]
    NothingLeft {
        /// `--include` or `--exclude`.
        option: &'static str,
        /// The selection.
        found: String,
    },
    /// More hosts are asked for than there are.
    #[error("`--num_nodes` is `{asked}`, but there are `{found}` hosts")]
    TooFewHosts {
        /// How many are asked for.
        asked: usize,
        /// How many there are.
        found: usize,
    },
    /// More ranks are asked for than a host has slots.
    #[error("`--num_gpus` is `{asked}`, but `{host}` has `{found}` slots")]
    TooFewSlots {
        /// How many are asked for.
        asked: usize,
        /// The host.
        host: String,
        /// How many it has.
        found: usize,
    },
    /// The number of this host is none of the hosts'.
    #[error(
        "`--node_rank` is `{found}`, required: a number below `{num_nodes}`, the number of hosts"
    )]
    NodeRank {
        /// What was said.
        found: usize,
        /// How many hosts there are.
        num_nodes: usize,
    },
}

impl LaunchError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::HostfileLine { .. } | Self::DuplicateHost { .. } | Self::NoHosts { .. } => {
                "a hostfile has one line for each host, such as `node-1 slots=8`: a name that ssh knows and how many \
                 ranks to start there"
                    .to_owned()
            }
            Self::EnvLine { .. } => {
                "every line gives the ranks one environment variable, such as `NCCL_DEBUG=WARN`".to_owned()
            }
            Self::SelectionSyntax { .. } | Self::UnknownHost { .. } | Self::UnknownSlot { .. } => {
                "an example: `--include node-1@node-2:0,2` is all slots of node-1, and slots 0 and 2 of node-2"
                    .to_owned()
            }
            Self::NothingLeft { .. } => "exclude less".to_owned(),
            Self::TooFewHosts { .. } => {
                "lower `--num_nodes`, or leave it out to run on all hosts of the hostfile".to_owned()
            }
            Self::TooFewSlots { .. } => {
                "lower `--num_gpus`, or change `slots=` of that host in the hostfile".to_owned()
            }
            Self::NodeRank { .. } => "hosts are counted from 0, in the order of the hostfile".to_owned(),
        }
    }
}
