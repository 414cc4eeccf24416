//! Who a process is, as its launcher says.
//!
//! Launchers run inside each other: `mpirun` in a Slurm job starts its daemons by `srun`, and what they start has
//! inherited the variables of a Slurm task that it is not; `sterna train` under any of them may start ranks of its own. So
//! the innermost counts: torchrun's variables if they are complete, else those of an MPI, else Slurm's.

mod mpi;
mod slurm;
mod vars;

use std::fmt;

use self::vars::Vars;
use crate::{
    env_vars::{
        GLOO_SOCKET_IFNAME, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT, RANK,
        TORCHELASTIC_RESTART_COUNT, TORCHELASTIC_USE_AGENT_STORE, WORLD_SIZE,
    },
    error::CommError,
};

/// Port of the store where neither the user nor the launcher says one, as in torch.distributed.
const DEFAULT_PORT: u16 = 29500;

/// What started the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// torchrun, our own launcher, or whatever else sets torchrun's variables.
    Torchrun,
    /// Slurm's `srun`.
    Slurm,
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// Hydra: the `mpiexec` of MPICH and Intel MPI.
    Hydra,
}

impl Launcher {
    /// What to do about variables of this launcher that make no sense.
    pub(crate) fn hint(self) -> String {
        match self {
            Self::Torchrun => {
                "start the job with `sterna train` or torchrun, which set RANK, WORLD_SIZE, LOCAL_RANK, \
                 LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
            }
            Self::Slurm => {
                "start the job with `srun`, as a step of tasks that all run `sterna train`; where variables of another \
                 step were inherited, `sbatch --export=NONE` keeps them out"
            }
            Self::OpenMpi => {
                "start the job with Open MPI's `mpirun`, which sets OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE, \
                 OMPI_COMM_WORLD_LOCAL_RANK and OMPI_COMM_WORLD_LOCAL_SIZE"
            }
            Self::Hydra => {
                "start the job with the `mpiexec` of MPICH or Intel MPI, which sets PMI_RANK, PMI_SIZE, MPI_LOCALRANKID \
                 and MPI_LOCALNRANKS"
            }
        }
        .to_owned()
    }
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Torchrun => "torchrun",
            Self::Slurm => "srun",
            Self::OpenMpi => "Open MPI's mpirun",
            Self::Hydra => "MPICH's mpiexec",
        })
    }
}

/// The place of this process in the job, in torchrun's terms (see [`crate::env_vars`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankEnv {
    /// Number of this process among all, `0..world_size`.
    pub rank: usize,
    /// Number of this process among those of its machine, `0..local_world_size`.
    pub local_rank: usize,
    /// Number of processes in the job.
    pub world_size: usize,
    /// Number of processes on this machine.
    pub local_world_size: usize,
    /// Name or address of the machine of rank 0.
    pub master_addr: String,
    /// TCP port of the rendezvous store on that machine.
    pub master_port: u16,
    /// Whether the launcher serves the store. If not, rank 0 does.
    pub launcher_serves_store: bool,
    /// How often the launcher has restarted the job.
    pub restart_count: usize,
    /// The network interface to listen on, where the user names one.
    pub interface: Option<String>,
}

impl RankEnv {
    /// Who the launcher says that this process is; [`RankEnv::single`] if it is no rank of several.
    ///
    /// # Errors
    ///
    /// As [`RankEnv::discover`].
    pub fn from_env() -> Result<Self, CommError> {
        Ok(Self::discover()?.unwrap_or_else(Self::single))
    }

    /// Reads the variables of torchrun, Slurm steps, Open MPI, and MPICH or Intel MPI. `None` if this process is no rank:
    /// nobody has started it as one, or a scheduler has started it alone, so that it may start ranks itself.
    ///
    /// # Errors
    ///
    /// [`CommError::MissingVariable`] if a launcher's variables are set but not all, [`CommError::InvalidVariable`] for a
    /// value that is no number or is out of range, [`CommError::ConflictingVariables`] if two launchers disagree.
    pub fn discover() -> Result<Option<Self>, CommError> {
        Self::from_lookup(&|name| std::env::var(name).ok())
    }

    /// A job of one process, which needs no network.
    pub fn single() -> Self {
        Self {
            rank: 0,
            local_rank: 0,
            world_size: 1,
            local_world_size: 1,
            master_addr: "127.0.0.1".to_owned(),
            master_port: 0,
            launcher_serves_store: false,
            restart_count: 0,
            interface: None,
        }
    }

    fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, CommError> {
        let vars = |launcher| Vars { launcher, lookup };
        let torchrun = vars(Launcher::Torchrun);
        if [RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE].iter().all(|name| torchrun.has(name)) {
            return torchrun_env(&torchrun).map(Some);
        }
        let env = match mpi::env(&vars(Launcher::OpenMpi), &vars(Launcher::Hydra))? {
            Some(found) => Some(found),
            None => slurm::env(&vars(Launcher::Slurm))?,
        };
        let Some(Found { launcher, names, env }) = env else {
            // Scripts export WORLD_SIZE or RANK for programs that know nothing else; alone they say too little.
            let is_rank = torchrun.has(RANK) || torchrun.has(WORLD_SIZE);
            return is_rank.then(|| torchrun_env(&torchrun)).transpose();
        };
        let ours = [env.rank, env.world_size, env.local_rank, env.local_world_size];
        for (i, name) in [RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE].into_iter().enumerate() {
            torchrun.agrees(name, launcher, names[i], ours[i])?;
        }
        Ok((env.world_size > 1).then_some(env))
    }
}

/// What a launcher other than torchrun says.
struct Found {
    launcher: Launcher,
    /// Its names for rank, world size, local rank and local world size.
    names: [&'static str; 4],
    env: RankEnv,
}

fn torchrun_env(vars: &Vars<'_>) -> Result<RankEnv, CommError> {
    let world_size = vars.positive(WORLD_SIZE)?;
    let local_world_size = vars.positive(LOCAL_WORLD_SIZE)?;
    Ok(RankEnv {
        rank: vars.below(RANK, world_size)?,
        local_rank: vars.below(LOCAL_RANK, local_world_size)?,
        world_size,
        local_world_size,
        master_addr: vars.text(MASTER_ADDR)?,
        master_port: vars.number(MASTER_PORT, "a TCP port")?,
        launcher_serves_store: vars
            .get(TORCHELASTIC_USE_AGENT_STORE)
            .is_some_and(|value| value == "True"),
        restart_count: vars.number_or(TORCHELASTIC_RESTART_COUNT, "a count", 0)?,
        interface: interface(vars),
    })
}

fn interface(vars: &Vars<'_>) -> Option<String> {
    vars.get(GLOO_SOCKET_IFNAME)
}

#[cfg(test)]
mod tests;
