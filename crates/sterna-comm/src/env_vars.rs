//! The environment variables this crate reads. Nothing else in the library crates reads the environment.

/// Number of this process among all, from 0. Set by torchrun and by our launcher.
pub const RANK: &str = "RANK";
/// Number of processes in the job.
pub const WORLD_SIZE: &str = "WORLD_SIZE";
/// Number of this process among those of its machine, from 0.
pub const LOCAL_RANK: &str = "LOCAL_RANK";
/// Number of processes on this machine.
pub const LOCAL_WORLD_SIZE: &str = "LOCAL_WORLD_SIZE";
/// Name or address of the machine of rank 0.
pub const MASTER_ADDR: &str = "MASTER_ADDR";
/// TCP port of the rendezvous store on that machine.
pub const MASTER_PORT: &str = "MASTER_PORT";
/// `True` when torchrun's agent serves the store, so that no rank has to.
pub const TORCHELASTIC_USE_AGENT_STORE: &str = "TORCHELASTIC_USE_AGENT_STORE";
/// How often the launcher has restarted the job; keeps the keys of one attempt apart from another's.
pub const TORCHELASTIC_RESTART_COUNT: &str = "TORCHELASTIC_RESTART_COUNT";
/// Network interface Gloo listens on, for machines where the route to `MASTER_ADDR` is the wrong one.
pub const GLOO_SOCKET_IFNAME: &str = "GLOO_SOCKET_IFNAME";

/// Slurm: the job. Set in batch scripts and in steps.
pub const SLURM_JOB_ID: &str = "SLURM_JOB_ID";
/// Slurm: how often the job was put back into the queue.
pub const SLURM_RESTART_COUNT: &str = "SLURM_RESTART_COUNT";
/// Slurm: number of this task in its step. Batch scripts have it as well, where it is 0.
pub const SLURM_PROCID: &str = "SLURM_PROCID";
/// Slurm: number of this task among those of its node.
pub const SLURM_LOCALID: &str = "SLURM_LOCALID";
/// Slurm: number of this node among those of the step.
pub const SLURM_NODEID: &str = "SLURM_NODEID";
/// Slurm: numbers of the tasks on this node.
pub const SLURM_GTIDS: &str = "SLURM_GTIDS";
/// Slurm: how tasks are laid out over nodes, if `srun` was told so.
pub const SLURM_DISTRIBUTION: &str = "SLURM_DISTRIBUTION";
/// Slurm: number of the step, which one `srun` starts.
pub const SLURM_STEP_ID: &str = "SLURM_STEP_ID";
/// Slurm: number of tasks in the step.
pub const SLURM_STEP_NUM_TASKS: &str = "SLURM_STEP_NUM_TASKS";
/// Slurm: number of tasks on each node of the step, as `4(x2),3`.
pub const SLURM_STEP_TASKS_PER_NODE: &str = "SLURM_STEP_TASKS_PER_NODE";
/// Slurm: the nodes of the step, as `gpu[01-03,07],login1`.
pub const SLURM_STEP_NODELIST: &str = "SLURM_STEP_NODELIST";

/// Open MPI: number of this process among all.
pub const OMPI_COMM_WORLD_RANK: &str = "OMPI_COMM_WORLD_RANK";
/// Open MPI: number of processes.
pub const OMPI_COMM_WORLD_SIZE: &str = "OMPI_COMM_WORLD_SIZE";
/// Open MPI: number of this process among those of its machine.
pub const OMPI_COMM_WORLD_LOCAL_RANK: &str = "OMPI_COMM_WORLD_LOCAL_RANK";
/// Open MPI: number of processes on this machine.
pub const OMPI_COMM_WORLD_LOCAL_SIZE: &str = "OMPI_COMM_WORLD_LOCAL_SIZE";

/// MPICH and Intel MPI: number of this process among all. Slurm's PMI plugins set it as well.
pub const PMI_RANK: &str = "PMI_RANK";
/// MPICH and Intel MPI: number of processes.
pub const PMI_SIZE: &str = "PMI_SIZE";
/// MPICH and Intel MPI: number of this process among those of its machine.
pub const MPI_LOCALRANKID: &str = "MPI_LOCALRANKID";
/// MPICH and Intel MPI: number of processes on this machine.
pub const MPI_LOCALNRANKS: &str = "MPI_LOCALNRANKS";
