//! Who a process is, as its launcher says.

use std::str::FromStr;

use crate::{
    env_vars::{
        GLOO_SOCKET_IFNAME, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT, RANK,
        TORCHELASTIC_RESTART_COUNT, TORCHELASTIC_USE_AGENT_STORE, WORLD_SIZE,
    },
    error::CommError,
};

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
    /// Reads torchrun's variables. With neither `RANK` nor `WORLD_SIZE` set, it is [`RankEnv::single`].
    ///
    /// # Errors
    ///
    /// [`CommError::MissingVariable`] if some are set but not all, [`CommError::InvalidVariable`] for a value that is no
    /// number or is out of range.
    pub fn from_env() -> Result<Self, CommError> {
        Self::from_lookup(|name| std::env::var(name).ok())
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

    fn from_lookup(lookup: impl Fn(&'static str) -> Option<String>) -> Result<Self, CommError> {
        if lookup(RANK).is_none() && lookup(WORLD_SIZE).is_none() {
            return Ok(Self::single());
        }
        let world_size = positive(&lookup, WORLD_SIZE)?;
        let local_world_size = positive(&lookup, LOCAL_WORLD_SIZE)?;
        Ok(Self {
            rank: below(&lookup, RANK, world_size)?,
            local_rank: below(&lookup, LOCAL_RANK, local_world_size)?,
            world_size,
            local_world_size,
            master_addr: lookup(MASTER_ADDR)
                .ok_or(CommError::MissingVariable { name: MASTER_ADDR })?,
            master_port: number(&lookup, MASTER_PORT, "a TCP port")?,
            launcher_serves_store: lookup(TORCHELASTIC_USE_AGENT_STORE)
                .is_some_and(|value| value == "True"),
            restart_count: match lookup(TORCHELASTIC_RESTART_COUNT) {
                Some(_) => number(&lookup, TORCHELASTIC_RESTART_COUNT, "a count")?,
                None => 0,
            },
            interface: lookup(GLOO_SOCKET_IFNAME).filter(|name| !name.is_empty()),
        })
    }
}

fn number<T: FromStr>(
    lookup: impl Fn(&'static str) -> Option<String>,
    name: &'static str,
    required: &'static str,
) -> Result<T, CommError> {
    let found = lookup(name).ok_or(CommError::MissingVariable { name })?;
    found.trim().parse().map_err(|_| CommError::InvalidVariable {
        name,
        found,
        required: required.to_owned(),
    })
}

fn positive(
    lookup: impl Fn(&'static str) -> Option<String>,
    name: &'static str,
) -> Result<usize, CommError> {
    match number(lookup, name, "a positive number")? {
        0 => Err(CommError::InvalidVariable {
            name,
            found: "0".to_owned(),
            required: "a positive number".to_owned(),
        }),
        value => Ok(value),
    }
}

fn below(
    lookup: impl Fn(&'static str) -> Option<String>,
    name: &'static str,
    limit: usize,
) -> Result<usize, CommError> {
    let value: usize = number(lookup, name, "a number")?;
    if value < limit {
        return Ok(value);
    }
    Err(CommError::InvalidVariable {
        name,
        found: value.to_string(),
        required: format!("a number below `{limit}`"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TORCHRUN: &[(&str, &str)] = &[
        ("RANK", "5"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "4"),
        ("MASTER_ADDR", "node-0"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ("TORCHELASTIC_RESTART_COUNT", "2"),
    ];

    fn read(changes: &[(&str, Option<&str>)]) -> Result<RankEnv, CommError> {
        RankEnv::from_lookup(|name| match changes.iter().find(|(changed, _)| *changed == name) {
            Some((_, value)) => value.map(str::to_owned),
            None => {
                TORCHRUN.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned())
            }
        })
    }

    #[test]
    fn torchrun_variables_are_read() {
        let env = read(&[]).unwrap();
        assert_eq!((env.rank, env.local_rank, env.world_size, env.local_world_size), (5, 1, 8, 4));
        assert_eq!((env.master_addr.as_str(), env.master_port), ("node-0", 29500));
        assert!(env.launcher_serves_store);
        assert_eq!(env.restart_count, 2);
    }

    #[test]
    fn without_a_launcher_the_job_is_one_process() {
        assert_eq!(read(&[("RANK", None), ("WORLD_SIZE", None)]).unwrap(), RankEnv::single());
    }

    #[test]
    fn a_half_set_environment_names_what_is_missing() {
        let error = read(&[("MASTER_PORT", None)]).unwrap_err();
        assert_eq!(error.to_string(), "environment variable `MASTER_PORT` is not set");
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for (name, found, required) in [
            ("RANK", "8", "a number below `8`"),
            ("LOCAL_RANK", "4", "a number below `4`"),
            ("WORLD_SIZE", "0", "a positive number"),
            ("MASTER_PORT", "65536", "a TCP port"),
            ("RANK", "-1", "a number"),
        ] {
            let error = read(&[(name, Some(found))]).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("environment variable `{name}` is `{found}`, must be {required}")
            );
        }
    }
}
