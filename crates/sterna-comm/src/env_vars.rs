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
