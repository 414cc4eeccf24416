//! Tasks of a Slurm step: what one `srun` has started.
//!
//! A batch script has `SLURM_PROCID` and `SLURM_NTASKS` too, but is no task: only `SLURM_STEP_NUM_TASKS` tells them apart.
//!
//! # Source
//!
//! Slurm's man page `srun(1)`, "OUTPUT ENVIRONMENT VARIABLES", and `slurm.h` for the numbers of steps that are none.

use super::{Found, Launcher, RankEnv, interface, vars::Vars};
use crate::{
    env_vars::{
        MASTER_ADDR, MASTER_PORT, SLURM_DISTRIBUTION, SLURM_GTIDS, SLURM_JOB_ID, SLURM_LOCALID,
        SLURM_NODEID, SLURM_PROCID, SLURM_RESTART_COUNT, SLURM_STEP_ID, SLURM_STEP_NODELIST,
        SLURM_STEP_NUM_TASKS, SLURM_STEP_TASKS_PER_NODE,
    },
    error::CommError,
};

/// Names and numbers of steps that `srun` has not started: the batch script, the external and the interactive step.
const NO_STEPS: [&str; 6] =
    ["batch", "extern", "interactive", "4294967291", "4294967292", "4294967290"];
/// First of the ports that jobs get, below those that the system gives to clients.
const FIRST_PORT: u16 = 15000;

/// What Slurm says, if this is a task of a step.
pub(super) fn env(vars: &Vars<'_>) -> Result<Option<Found>, CommError> {
    let step = vars.get(SLURM_STEP_ID);
    if !vars.has(SLURM_STEP_NUM_TASKS) || step.is_some_and(|step| NO_STEPS.contains(&&*step)) {
        return Ok(None);
    }
    let world_size = vars.positive(SLURM_STEP_NUM_TASKS)?;
    let tasks_per_node = tasks_per_node(vars, world_size)?;
    let node = vars.below(SLURM_NODEID, tasks_per_node.len())?;
    let local_world_size = tasks_per_node[node];
    let local_rank = vars.below(SLURM_LOCALID, local_world_size)?;
    let rank = vars.below(SLURM_PROCID, world_size)?;
    check_tasks_of_node(vars, rank, local_world_size)?;
    let master_addr = match vars.get(MASTER_ADDR) {
        Some(given) => given,
        None if tasks_per_node.len() == 1 => "127.0.0.1".to_owned(),
        // The order of nodes is then that of the user's file, and task 0 may be on any of them.
        None if vars.get(SLURM_DISTRIBUTION).is_some_and(|way| way.contains("arbitrary")) => {
            return Err(CommError::MissingVariable {
                launcher: Launcher::Slurm,
                name: MASTER_ADDR,
            });
        }
        None => first_host(vars)?,
    };
    let master_port = match vars.get(MASTER_PORT) {
        Some(_) => vars.number(MASTER_PORT, "a TCP port")?,
        None => port(vars)?,
    };
    let env = RankEnv {
        rank,
        local_rank,
        world_size,
        local_world_size,
        master_addr,
        master_port,
        launcher_serves_store: false,
        restart_count: vars.number_or(SLURM_RESTART_COUNT, "a count", 0)?,
        interface: interface(vars),
    };
    let names = [SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, SLURM_STEP_TASKS_PER_NODE];
    Ok(Some(Found { launcher: Launcher::Slurm, names, env }))
}

/// The number of tasks on each node, from a list as `4(x2),3`; their sum is the number of tasks in the step.
fn tasks_per_node(vars: &Vars<'_>, world_size: usize) -> Result<Vec<usize>, CommError> {
    let name = SLURM_STEP_TASKS_PER_NODE;
    let text = vars.text(name)?;
    let required = format!(
        "counts as `4(x2),3` that add up to `{world_size}`, the value of `SLURM_STEP_NUM_TASKS`"
    );
    let invalid = || vars.invalid(name, text.clone(), &required);
    let mut counts = Vec::new();
    let mut sum = 0_usize;
    for part in text.split(',') {
        let (count, times) = match part.split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')').ok_or_else(invalid)?),
            None => (part, "1"),
        };
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|&number| number > 0);
        let (count, times) = number(count).zip(number(times)).ok_or_else(invalid)?;
        sum = count
            .checked_mul(times)
            .and_then(|tasks| sum.checked_add(tasks))
            .ok_or_else(invalid)?;
        // Before anything is repeated: the sum bounds the number of nodes.
        if sum > world_size {
            return Err(invalid());
        }
        counts.extend(std::iter::repeat_n(count, times));
    }
    if sum == world_size { Ok(counts) } else { Err(invalid()) }
}

/// Refuses the variables of a step that this process is not a task of: a script that was submitted from within a step has
/// inherited them, and only those that Slurm sets for scripts as well are its own.
fn check_tasks_of_node(
    vars: &Vars<'_>,
    rank: usize,
    local_world_size: usize,
) -> Result<(), CommError> {
    let Some(text) = vars.get(SLURM_GTIDS) else { return Ok(()) };
    let tasks: Vec<Option<usize>> = text.split(',').map(|task| task.trim().parse().ok()).collect();
    if tasks.len() == local_world_size && tasks.contains(&Some(rank)) {
        return Ok(());
    }
    let required = format!(
        "the `{local_world_size}` tasks of this node by SLURM_STEP_TASKS_PER_NODE, task `{rank}` among them"
    );
    Err(vars.invalid(SLURM_GTIDS, text, &required))
}

/// The first name of a list as `gpu[01-03,07],login1`.
fn first_host(vars: &Vars<'_>) -> Result<String, CommError> {
    let text = vars.text(SLURM_STEP_NODELIST)?;
    let invalid =
        || vars.invalid(SLURM_STEP_NODELIST, text.clone(), "nodes as `gpu[01-03,07],login1`");
    let mut host = String::new();
    let mut rest = text.as_str();
    loop {
        match rest.find([',', '[']) {
            Some(at) if rest[at..].starts_with('[') => {
                let (ranges, after) = rest[at + 1..].split_once(']').ok_or_else(invalid)?;
                let first = ranges.split([',', '-']).next().unwrap_or_default();
                if first.is_empty() || !first.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(invalid());
                }
                host.push_str(&rest[..at]);
                host.push_str(first);
                rest = after;
            }
            end => {
                host.push_str(&rest[..end.unwrap_or(rest.len())]);
                return if host.is_empty() { Err(invalid()) } else { Ok(host) };
            }
        }
    }
}

/// A port that all tasks of the step agree on, and that other jobs and other steps of this one likely do not use.
fn port(vars: &Vars<'_>) -> Result<u16, CommError> {
    let job: u64 = vars.number(SLURM_JOB_ID, "a number")?;
    let step: u64 = vars.number(SLURM_STEP_ID, "a number")?;
    // Ten steps at once of each of a thousand jobs in a row.
    Ok(FIRST_PORT + ((job % 1000) * 10 + step % 10) as u16)
}
