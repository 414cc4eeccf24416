//! How ranks find each other: the store, and the address each one listens on.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket},
    time::{Duration, Instant},
};

use sterna_torch_sys::{
    self as torch,
    c10d::{Endpoint, Store},
};

use crate::{error::CommError, rank_env::RankEnv};

/// Joins the job's store, which rank 0 serves unless the launcher does.
pub(crate) fn join_store(env: &RankEnv, timeout: Duration) -> Result<Store, CommError> {
    let store = if env.rank == 0 && !env.launcher_serves_store {
        Store::serve(listen(env)?, timeout)
    } else {
        Store::connect(&env.master_addr, env.master_port, timeout)
    };
    store
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
    Ok(Endpoint::Address(route(env)?.to_string()))
}

/// The address from which this process reaches rank 0's machine.
fn route(env: &RankEnv) -> Result<IpAddr, CommError> {
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
    Ok(local)
}

/// The addresses of `MASTER_ADDR`. Where ranks span machines it may be a name that is about to be known: a pod's, for one, only
/// once its service has seen it.
fn resolve_master(env: &RankEnv) -> io::Result<Vec<SocketAddr>> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let spans_machines = env.local_world_size < env.world_size;
    let started = Instant::now();
    loop {
        match (env.master_addr.as_str(), env.master_port).to_socket_addrs() {
            Err(_) if spans_machines && started.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_secs(1));
            }
            resolved => return resolved.map(Iterator::collect),
        }
    }
}

/// Listens where the other ranks look for the store and nowhere else: whoever reaches it is trusted.
///
/// That is the address that `MASTER_ADDR` has on this machine. Where it has none (a forwarded address, or a machine that
/// knows its own name as loopback only), it is the one of the interface that the user names, else the one by which this
/// machine reaches `MASTER_ADDR`.
fn listen(env: &RankEnv) -> Result<TcpListener, CommError> {
    let error = |source| CommError::Listen { rank: env.rank, address: address(env), source };
    let spans_machines = env.local_world_size < env.world_size;
    let resolved = resolve_master(env).map_err(error)?.into_iter();
    for candidate in resolved.filter(|found| !(spans_machines && found.ip().is_loopback())) {
        match TcpListener::bind(candidate) {
            Err(err) if err.kind() == io::ErrorKind::AddrNotAvailable => {}
            bound => return bound.map_err(error),
        }
    }
    let ip = match &env.interface {
        Some(name) => interface_address(name).map_err(error)?,
        None => route(env)?,
    };
    tracing::warn!(
        "`{}` is no address of this machine, the rendezvous listens on `{ip}` instead",
        env.master_addr
    );
    TcpListener::bind((ip, env.master_port)).map_err(error)
}

/// The first IPv4 address of an interface, else its first one.
fn interface_address(name: &str) -> io::Result<IpAddr> {
    let addresses: Vec<IpAddr> = nix::ifaddrs::getifaddrs()?
        .filter(|interface| interface.interface_name == name)
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect();
    let found = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    found.copied().ok_or_else(|| io::Error::other(format!("interface `{name}` has no address")))
}

fn local_address(env: &RankEnv) -> io::Result<IpAddr> {
    let master = resolve_master(env)?
        .into_iter()
        .next()
        .ok_or_else(|| io::Error::other("the name has no address"))?;
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
