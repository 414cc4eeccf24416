//! How ranks find each other: the store, and the address each one listens on.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    time::Duration,
};

use sterna_torch_sys::{
    self as torch,
    c10d::{Endpoint, Store},
};

use crate::{error::CommError, rank_env::RankEnv};

/// Joins the job's store, which rank 0 serves unless the launcher does.
pub(crate) fn join_store(env: &RankEnv, timeout: Duration) -> Result<Store, CommError> {
    let is_server = env.rank == 0 && !env.launcher_serves_store;
    Store::tcp(&env.master_addr, env.master_port, is_server, timeout)
        .and_then(|store| store.prefixed(&format!("sterna/{}", env.restart_count)))
        .map_err(|source| rendezvous_error(env, "join the rendezvous store", timeout, source))
}

pub(crate) fn rendezvous_error(
    env: &RankEnv,
    step: &'static str,
    limit: Duration,
    source: torch::Error,
) -> CommError {
    CommError::Rendezvous { rank: env.rank, step, address: address(env), limit, source }
}

/// The address peers can reach this process by: the one from which it reaches rank 0's machine.
///
/// Gloo's own default, the address of this machine's name, is often loopback or does not resolve.
pub(crate) fn endpoint(env: &RankEnv) -> Result<Endpoint, CommError> {
    if let Some(interface) = &env.interface {
        return Ok(Endpoint::Interface(interface.clone()));
    }
    let local = local_address(env).map_err(|source| CommError::NoRoute {
        rank: env.rank,
        address: address(env),
        source,
    })?;
    if local.is_loopback() && env.local_world_size < env.world_size {
        return Err(CommError::LoopbackAcrossMachines {
            rank: env.rank,
            address: address(env),
            world_size: env.world_size,
            local_world_size: env.local_world_size,
        });
    }
    Ok(Endpoint::Address(local.to_string()))
}

fn local_address(env: &RankEnv) -> std::io::Result<IpAddr> {
    let master = (env.master_addr.as_str(), env.master_port)
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| std::io::Error::other("the name has no address"))?;
    let any: SocketAddr = match master {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // Connecting a UDP socket sends nothing; the kernel only picks the route.
    let socket = UdpSocket::bind(any)?;
    socket.connect(master)?;
    Ok(socket.local_addr()?.ip())
}

fn address(env: &RankEnv) -> String {
    format!("{}:{}", env.master_addr, env.master_port)
}
