//! Processes that an MPI's launcher has started.
//!
//! # Source
//!
//! Open MPI's documentation, "Environment variables set for MPI applications"; for MPICH and Intel MPI, whose `mpiexec` is
//! Hydra, what it sets (`pm/hydra`: `PMI_RANK` and `PMI_SIZE` of its PMI-1, `MPI_LOCALRANKID` and `MPI_LOCALNRANKS`).

use super::{DEFAULT_PORT, Found, Launcher, RankEnv, interface, vars::Vars};
use crate::{
    env_vars::{
        MASTER_ADDR, MASTER_PORT, MPI_LOCALNRANKS, MPI_LOCALRANKID, OMPI_COMM_WORLD_LOCAL_RANK,
        OMPI_COMM_WORLD_LOCAL_SIZE, OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE, PMI_RANK, PMI_SIZE,
        SLURM_STEP_NUM_TASKS,
    },
    error::CommError,
};

const OPEN_MPI: [&str; 4] = [
    OMPI_COMM_WORLD_RANK,
    OMPI_COMM_WORLD_SIZE,
    OMPI_COMM_WORLD_LOCAL_RANK,
    OMPI_COMM_WORLD_LOCAL_SIZE,
];
const HYDRA: [&str; 4] = [PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS];

/// What an MPI says, if one has started us.
pub(super) fn env(open_mpi: &Vars<'_>, hydra: &Vars<'_>) -> Result<Option<Found>, CommError> {
    let found = if OPEN_MPI.iter().any(|name| open_mpi.has(name)) {
        read(open_mpi, OPEN_MPI)?
    } else if [MPI_LOCALRANKID, MPI_LOCALNRANKS].iter().any(|name| hydra.has(name)) {
        return read(hydra, HYDRA).map(Some);
    } else if hydra.has(PMI_RANK) && !hydra.has(SLURM_STEP_NUM_TASKS) {
        // Slurm's own PMI says no more than that, and `srun` the rest. Here nobody does.
        return Err(CommError::MissingVariable {
            launcher: Launcher::Hydra,
            name: MPI_LOCALRANKID,
        });
    } else {
        return Ok(None);
    };
    // One MPI inside another: which is the inner one, nobody can tell.
    let [rank, size, ..] = OPEN_MPI;
    hydra.agrees(PMI_RANK, Launcher::OpenMpi, rank, found.env.rank)?;
    hydra.agrees(PMI_SIZE, Launcher::OpenMpi, size, found.env.world_size)?;
    Ok(Some(found))
}

/// Reads the four `names`: rank, world size, local rank and local world size.
fn read(vars: &Vars<'_>, names: [&'static str; 4]) -> Result<Found, CommError> {
    let [rank, size, local_rank, local_size] = names;
    let world_size = vars.positive(size)?;
    let local_world_size = vars.positive(local_size)?;
    if local_world_size > world_size {
        let required = format!("at most `{world_size}`, the value of `{size}`");
        return Err(vars.invalid(local_size, local_world_size.to_string(), &required));
    }
    let is_one_machine = local_world_size == world_size;
    let master_addr = match vars.get(MASTER_ADDR) {
        None if is_one_machine => "127.0.0.1".to_owned(),
        _ => vars.text(MASTER_ADDR)?,
    };
    let env = RankEnv {
        rank: vars.below(rank, world_size)?,
        local_rank: vars.below(local_rank, local_world_size)?,
        world_size,
        local_world_size,
        master_addr,
        master_port: vars.number_or(MASTER_PORT, "a TCP port", DEFAULT_PORT)?,
        launcher_serves_store: false,
        restart_count: 0,
        interface: interface(vars),
    };
    Ok(Found { launcher: vars.launcher, names, env })
}
