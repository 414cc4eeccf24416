//! What would be started, for people to read and to paste.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use sterna_launch::{quote, shown};

use super::{Launch, Place, child, describe, hosts, list_of_ranks, own_program};
use crate::report::{Exit, Failure};

/// Writes the commands of `launch` to stdout, and what each rank is told; secrets are `***`.
pub(crate) fn print(launch: &Launch) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text(launch)?.as_bytes()) {
        // The reader has seen enough.
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written
            .map_err(|err| Failure::new(Exit::Failed, format!("cannot write to stdout: {err}"))),
    }
}

fn text(launch: &Launch) -> Result<String, Failure> {
    let program = own_program()?;
    let Launch { job, place, master_addr, master_port, rank_args, .. } = launch;
    let words: Vec<String> =
        [program.display().to_string()].iter().chain(rank_args).map(|word| quote(word)).collect();
    let (nodes, addr, env) = match place {
        Place::Here { node_rank } => {
            let node =
                job.node(*node_rank).map_err(|err| Failure::from_error(Exit::Usage, &err))?;
            (vec![node], master_addr.as_deref().unwrap_or("127.0.0.1").to_owned(), None)
        }
        Place::Hosts { env, .. } => {
            let first = job.nodes().first().map_or("", |node| node.host.as_str());
            let addr = master_addr.clone().unwrap_or_else(|| format!("<address of {first}>"));
            (job.nodes().iter().collect(), addr, Some(env))
        }
    };
    let mut text = String::new();
    for node in nodes {
        let ranks = list_of_ranks(&node.ranks);
        // Writing to a string cannot fail.
        let _ = match place {
            Place::Here { .. } => writeln!(text, "# here: {ranks} of {}", job.world_size()),
            Place::Hosts { ssh, .. } => {
                let args = ssh.args(&node.host, &hosts::agent_command(&program));
                let args: Vec<String> = args.iter().map(|word| quote(word)).collect();
                writeln!(
                    text,
                    "# {}: {ranks} of {}\nssh {}",
                    node.host,
                    job.world_size(),
                    args.join(" ")
                )
            }
        };
        for (name, value) in env.into_iter().flatten() {
            let _ = writeln!(text, "#   {name}={}", quote(shown(name, value)));
        }
        let described = describe(job, node, (&addr, 0), 0, std::collections::BTreeMap::new());
        for rank in node.ranks.clone() {
            let variables = child::variables(&described, rank).into_iter().map(|(name, value)| {
                let value = match (name, master_port) {
                    (sterna_comm::env_vars::MASTER_PORT, None) => "<free port>".to_owned(),
                    (sterna_comm::env_vars::MASTER_PORT, Some(port)) => port.to_string(),
                    _ => value,
                };
                format!("{name}={value}")
            });
            let variables: Vec<String> = variables.collect();
            let mark = if env.is_some() { "#   " } else { "" };
            let _ = writeln!(text, "{mark}{} {}", variables.join(" "), words.join(" "));
        }
    }
    Ok(text)
}
