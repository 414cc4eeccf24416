//! What can go wrong between ranks.

use std::{fmt, io, time::Duration};

use sterna_mesh::NotDivisible;
use sterna_torch_sys as torch;
use tch::Kind;

use crate::{env_vars::MASTER_ADDR, liveness::Failure, rank_env::Launcher};

/// Where and when an operation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The operation, by its name in [`crate::Group`].
    pub op: &'static str,
    /// The group it ran on: `world`, `sp` or `dp`.
    pub group: &'static str,
    /// The rank that tells, in the world.
    pub rank: usize,
    /// Time since that rank started the operation.
    pub elapsed: Duration,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, group, rank, elapsed } = self;
        write!(f, "`{op}` on group `{group}`, rank `{rank}`, after {:.1} s", elapsed.as_secs_f64())
    }
}

/// How far a rank has come, counted in operations it has started on any group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The rank in the world.
    pub rank: usize,
    /// Number of operations it has started.
    pub num_started: u64,
    /// The last of them, as `op on group`.
    pub last: String,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, num_started, last } = self;
        if *num_started == 0 {
            return write!(f, "rank `{rank}` has started none");
        }
        write!(f, "rank `{rank}` is at operation {num_started} (`{last}`)")
    }
}

/// A failure of communication.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    /// A launcher's variable is absent while others are set.
    #[error("environment variable `{name}` is not set")]
    MissingVariable {
        /// Who started this process, as the variables that are set say.
        launcher: Launcher,
        /// The variable.
        name: &'static str,
    },
    /// A launcher's variable has a value that makes no sense.
    #[error("environment variable `{name}` is `{found}`, must be {required}")]
    InvalidVariable {
        /// Who started this process, as the variables that are set say.
        launcher: Launcher,
        /// The variable.
        name: &'static str,
        /// Its value.
        found: String,
        /// What it must be.
        required: String,
    },
    /// Variables of two launchers say different things about this process.
    #[error(
        "environment variable `{name}` is `{found}`, but by `{other_name}`, which {other} sets, it must be `{required}`"
    )]
    ConflictingVariables {
        /// The variable.
        name: &'static str,
        /// Its value.
        found: String,
        /// The launcher that has set all of its variables.
        other: Launcher,
        /// Its variable of the same meaning.
        other_name: &'static str,
        /// The value of that.
        required: usize,
    },
    /// The world cannot be cut into sequence-parallel groups of this size.
    #[error(transparent)]
    Mesh(#[from] NotDivisible),
    /// The rendezvous address cannot be resolved or routed to.
    #[error("rank `{rank}` finds no route to the rendezvous address `{address}`")]
    NoRoute {
        /// This rank.
        rank: usize,
        /// `MASTER_ADDR:MASTER_PORT`.
        address: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The rendezvous address is this machine's loopback although the job spans machines.
    #[error(
        "rank `{rank}` reaches the rendezvous address `{address}` by loopback only, but the job has `{world_size}` ranks \
         of which `{local_world_size}` are on this machine"
    )]
    LoopbackAcrossMachines {
        /// This rank.
        rank: usize,
        /// `MASTER_ADDR:MASTER_PORT`.
        address: String,
        /// Number of processes in the job.
        world_size: usize,
        /// Number of processes on this machine.
        local_world_size: usize,
    },
    /// Rank 0 cannot serve the rendezvous store where the others look for it.
    #[error("rank `{rank}` cannot listen for the other ranks at `{address}`")]
    Listen {
        /// This rank.
        rank: usize,
        /// `MASTER_ADDR:MASTER_PORT`.
        address: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The ranks did not find each other.
    #[error("rank `{rank}` could not {step} at `{address}` within {limit:?}")]
    Rendezvous {
        /// This rank.
        rank: usize,
        /// What it was doing.
        step: &'static str,
        /// `MASTER_ADDR:MASTER_PORT`.
        address: String,
        /// The time limit.
        limit: Duration,
        /// libtorch's reason.
        #[source]
        source: torch::Error,
    },
    /// The GPUs of the ranks cannot be connected.
    #[error("rank `{rank}` cannot connect its GPU to those of the other ranks")]
    Gpus {
        /// This rank.
        rank: usize,
        /// What is missing, or libtorch's reason.
        #[source]
        source: torch::Error,
    },
    /// Another rank died or gave up.
    #[error("{site}: {failure}")]
    PeerFailed {
        /// The operation that could not complete.
        site: Site,
        /// The first failure known to the job.
        failure: Failure,
    },
    /// Some rank did not come to the operation in time, though all are alive.
    #[error("{site}: timed out; {}", .behind.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Timeout {
        /// The operation that could not complete.
        site: Site,
        /// This rank, then those that have started fewer operations; or all, if none has.
        behind: Vec<Progress>,
    },
    /// The engine failed although every rank is alive and none reported a failure.
    #[error("{site}: the engine failed")]
    Engine {
        /// The operation that could not complete.
        site: Site,
        /// libtorch's reason.
        #[source]
        source: torch::Error,
    },
    /// libtorch could not allocate or combine tensors around an operation.
    #[error("`{op}` on group `{group}`: tensor operation failed")]
    Tensor {
        /// The operation.
        op: &'static str,
        /// The group it was to run on.
        group: &'static str,
        /// libtorch's reason.
        #[source]
        source: tch::TchError,
    },
    /// A tensor has gaps in memory or another order than its shape.
    #[error("`{op}` on group `{group}`: `{tensor}` must be contiguous")]
    NotContiguous {
        /// The operation.
        op: &'static str,
        /// The group it was to run on.
        group: &'static str,
        /// The argument.
        tensor: &'static str,
    },
    /// Input and output differ in dtype.
    #[error(
        "`{op}` on group `{group}`: dtype of output is `{output:?}`, must be that of input, `{input:?}`"
    )]
    DTypeMismatch {
        /// The operation.
        op: &'static str,
        /// The group it was to run on.
        group: &'static str,
        /// The input's dtype.
        input: Kind,
        /// The output's dtype.
        output: Kind,
    },
    /// Input and output sizes do not fit the group's size.
    #[error("`{op}` on group `{group}`: output has `{found}` elements, must have `{required}`")]
    NumelMismatch {
        /// The operation.
        op: &'static str,
        /// The group it was to run on.
        group: &'static str,
        /// Elements of the output.
        found: i64,
        /// Elements it must have.
        required: i64,
    },
    /// The splits of an all-to-all do not describe the tensor.
    #[error(
        "`{op}` on group `{group}`: splits `{splits:?}` of `{tensor}` must be `{group_size}` numbers, none negative, \
         that add up to its first dim, `{num_rows}`"
    )]
    Splits {
        /// The operation.
        op: &'static str,
        /// The group it was to run on.
        group: &'static str,
        /// The argument.
        tensor: &'static str,
        /// Its splits.
        splits: Vec<i64>,
        /// Its first dim.
        num_rows: i64,
        /// Number of ranks in the group.
        group_size: usize,
    },
}

impl CommError {
    /// What the reader can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            CommError::MissingVariable { launcher, name } => Some(match (launcher, *name) {
                (Launcher::OpenMpi, MASTER_ADDR) => {
                    "the processes are on several machines: give them the name or address of the first one, \
                     `mpirun -x MASTER_ADDR=HOST ...`"
                        .to_owned()
                }
                (Launcher::Hydra, MASTER_ADDR) => {
                    "the processes are on several machines: give them the name or address of the first one, \
                     `mpiexec -genv MASTER_ADDR HOST ...`"
                        .to_owned()
                }
                (Launcher::Slurm, MASTER_ADDR) => {
                    "with this distribution of tasks, task 0 may be on any node: set MASTER_ADDR to the name of its node"
                        .to_owned()
                }
                _ => launcher.hint(),
            }),
            CommError::InvalidVariable { launcher, .. } => Some(launcher.hint()),
            CommError::ConflictingVariables { name, other, .. } => Some(format!(
                "it may come from another launcher or from a script: unset {name}, or start the job by one launcher, \
                 not through {other}"
            )),
            CommError::Mesh(_) => {
                Some("change sequence_parallel_size or the number of processes".to_owned())
            }
            CommError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => Some(
                "another program holds the port, perhaps a run that is still ending: set MASTER_PORT to a free one"
                    .to_owned(),
            ),
            CommError::Listen { .. } => {
                Some("check that MASTER_ADDR is the name or address of rank 0's machine".to_owned())
            }
            CommError::NoRoute { .. } => Some("check MASTER_ADDR".to_owned()),
            CommError::LoopbackAcrossMachines { .. } => Some(
                "set MASTER_ADDR to an address that the other machines reach, or name the interface in \
                 GLOO_SOCKET_IFNAME"
                    .to_owned(),
            ),
            CommError::Rendezvous { .. } => Some(
                "check that all ranks were started, that MASTER_ADDR and MASTER_PORT are the same for all, that no other \
                 program holds the port, and that no firewall is in between"
                    .to_owned(),
            ),
            CommError::PeerFailed { failure, .. } => Some(failure.hint()),
            CommError::Timeout { .. } => Some(
                "a rank that is behind is slow or stuck: look at its log and stack; if all are at the same operation, \
                 they disagree about its sizes"
                    .to_owned(),
            ),
            CommError::Engine { source, .. } | CommError::Gpus { source, .. } => source.hint(),
            CommError::Tensor { .. }
            | CommError::NotContiguous { .. }
            | CommError::DTypeMismatch { .. }
            | CommError::NumelMismatch { .. }
            | CommError::Splits { .. } => None,
        }
    }
}
