//! What passes between whoever starts a rank, launcher or agent, and the rank.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use sterna_comm::env_vars as comm_vars;
use sterna_launch::wire::NodeRanks;

use crate::env_vars;
use crate::report::{Exit, Failure};

/// Sets the variables that tell a rank who it is, and those that it is given besides.
pub(super) fn describe(command: &mut Command, node: &NodeRanks, rank: usize, reports: &Path) {
    command
        // Whatever started the launcher, the store is ours.
        .env_remove(comm_vars::TORCHELASTIC_USE_AGENT_STORE)
        .envs(&node.env)
        .envs(variables(node, rank))
        .env(env_vars::LAUNCHER_PID, std::process::id().to_string())
        .env(env_vars::FAILURE_DIR, reports);
    let is_open = |name: &str| !node.env.contains_key(name) && std::env::var_os(name).is_none();
    if is_open(env_vars::OMP_NUM_THREADS) {
        command.env(env_vars::OMP_NUM_THREADS, threads_per_rank(node.ranks.len()).to_string());
    }
    // What the user decides where the launcher runs goes before what `sterna` set here as it started.
    if node.env.contains_key(env_vars::OMP_WAIT_POLICY) {
        command.env_remove(env_vars::GOMP_SPINCOUNT);
    }
    // c10d warns of hosts without a name, and tells each lost connection with a stack; our errors tell it in a line.
    if is_open(env_vars::TORCH_LOG_LEVEL) {
        command.env(env_vars::TORCH_LOG_LEVEL, "ERROR");
    }
}

/// The variables that tell `rank` who it is, as torchrun names them.
pub(super) fn variables(node: &NodeRanks, rank: usize) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        (comm_vars::RANK, rank.to_string()),
        (comm_vars::LOCAL_RANK, (rank - node.ranks.start).to_string()),
        (comm_vars::WORLD_SIZE, node.world_size.to_string()),
        (comm_vars::LOCAL_WORLD_SIZE, node.ranks.len().to_string()),
        (comm_vars::MASTER_ADDR, node.master_addr.clone()),
        (comm_vars::MASTER_PORT, node.master_port.to_string()),
        (comm_vars::TORCHELASTIC_RESTART_COUNT, node.restart_count.to_string()),
    ];
    if let Some(devices) = &node.visible_devices {
        variables.push((env_vars::CUDA_VISIBLE_DEVICES, devices.clone()));
    }
    variables
}

/// Threads for each of `num_ranks` ranks on this host, where the user has not decided.
pub(super) fn threads_per_rank(num_ranks: usize) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (cores / num_ranks).max(1)
}

/// Ties this process to the launcher or agent that started it, if one did: it is killed when that ends, however it ends.
///
/// # Errors
///
/// When the launcher has ended already.
pub(crate) fn follow_launcher() -> Result<(), Failure> {
    let Some(launcher) =
        std::env::var(env_vars::LAUNCHER_PID).ok().and_then(|pid| pid.parse::<i32>().ok())
    else {
        return Ok(());
    };
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|err| {
        Failure::new(Exit::Failed, format!("cannot tie this rank to its launcher: {err}"))
    })?;
    // The launcher may have ended before the line above took effect.
    if getppid().as_raw() != launcher {
        return Err(Failure::new(Exit::Failed, "the launcher of this rank has ended"));
    }
    Ok(())
}

/// Whether our launcher started this rank.
pub(crate) fn has_launcher() -> bool {
    std::env::var_os(env_vars::LAUNCHER_PID).is_some()
}

/// Hands `failure` to the launcher, if one started this rank; returns whether it did.
pub(crate) fn report_to_launcher(failure: &Failure) -> bool {
    let rank = std::env::var(comm_vars::RANK).ok().and_then(|rank| rank.parse().ok());
    let (Some(reports), Some(rank)) = (std::env::var_os(env_vars::FAILURE_DIR), rank) else {
        return false;
    };
    let written = serde_json::to_vec(failure).map_err(std::io::Error::other);
    written.and_then(|json| std::fs::write(report_path(Path::new(&reports), rank), json)).is_ok()
}

/// What `rank` said before it ended.
pub(super) fn read_report(reports: &Path, rank: usize) -> Option<Failure> {
    serde_json::from_slice(&std::fs::read(report_path(reports, rank)).ok()?).ok()
}

fn report_path(reports: &Path, rank: usize) -> PathBuf {
    reports.join(format!("rank{rank}.json"))
}
