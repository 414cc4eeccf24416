//! What passes between the launcher and a rank that it started.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use sterna_comm::env_vars as comm_vars;

use super::Launch;
use crate::env_vars;
use crate::report::{Exit, Failure};

/// Sets the variables that tell a rank who it is.
pub(super) fn describe(
    command: &mut Command,
    launch: &Launch<'_>,
    rank: usize,
    port: u16,
    reports: &Path,
) {
    let world_size = launch.world_size.to_string();
    command
        .env(comm_vars::RANK, rank.to_string())
        .env(comm_vars::LOCAL_RANK, rank.to_string())
        .env(comm_vars::WORLD_SIZE, &world_size)
        .env(comm_vars::LOCAL_WORLD_SIZE, &world_size)
        .env(comm_vars::MASTER_ADDR, launch.master_addr)
        .env(comm_vars::MASTER_PORT, port.to_string())
        .env(env_vars::LAUNCHER_PID, std::process::id().to_string())
        .env(env_vars::FAILURE_DIR, reports);
    if let Some(num_threads) = launch.num_threads {
        command.env(env_vars::OMP_NUM_THREADS, num_threads.to_string());
    }
}

/// Ties this process to the launcher that started it, if one did: it is killed when the launcher ends, however that ends.
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
