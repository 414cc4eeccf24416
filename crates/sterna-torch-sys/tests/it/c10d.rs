//! The store and the engine between threads of one process. `sterna-comm` tests them between processes.

use std::{
    net::{TcpListener, TcpStream},
    sync::Barrier,
    thread,
    time::Duration,
};

use sterna_torch_sys::{
    Error,
    c10d::{Endpoint, ProcessGroup, ReduceOp, Store},
};
use tch::{Device, Kind, Tensor};

const LIMIT: Duration = Duration::from_secs(20);

/// A store, and its port on loopback.
fn serve() -> (Store, u16) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (Store::serve(listener, LIMIT).unwrap(), port)
}

/// Connects two ranks and runs `body` as each, on a thread of its own.
fn as_two_ranks(timeout: Duration, body: impl Fn(usize, ProcessGroup) + Sync) {
    let (_server, port) = serve();
    // One that leaves at once would be missed by the other, which is still connecting.
    let are_connected = Barrier::new(2);
    thread::scope(|scope| {
        for rank in 0..2 {
            let (body, are_connected) = (&body, &are_connected);
            scope.spawn(move || {
                let store = Store::connect("127.0.0.1", port, LIMIT).unwrap();
                let loopback = Endpoint::Address("127.0.0.1".to_owned());
                let group = ProcessGroup::gloo(&store, rank, 2, timeout, &loopback).unwrap();
                are_connected.wait();
                body(rank, group);
            });
        }
    });
}

#[test]
fn the_store_keeps_what_its_clients_set() {
    let (server, port) = serve();
    let client = Store::connect("127.0.0.1", port, LIMIT).unwrap();
    let bytes = [0, 255, 10, 0];
    client.set("key", &bytes).unwrap();
    assert_eq!(server.get("key").unwrap(), bytes);
    assert!(!server.contains("other").unwrap());
    assert_eq!(server.set_if_absent("other", b"first").unwrap(), b"first");
    assert_eq!(client.set_if_absent("other", b"second").unwrap(), b"first");
    assert_eq!((client.add("count", 3).unwrap(), server.add("count", -1).unwrap()), (3, 2));
    let prefixed = client.prefixed("part").unwrap();
    assert!(!prefixed.contains("key").unwrap());
    prefixed.set("key", b"x").unwrap();
    assert_eq!(server.prefixed("part").unwrap().reconnected().unwrap().get("key").unwrap(), b"x");
    assert_eq!(server.get("key").unwrap(), bytes);
}

#[test]
fn the_store_is_served_where_its_listener_is_and_nowhere_else() {
    let (_server, port) = serve();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    // All of 127.0.0.0/8 is this machine, so that a store that listens everywhere would answer.
    let error = TcpStream::connect(("127.0.0.2", port)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_key_nobody_sets_is_a_timeout_and_a_lost_server_a_lost_connection() {
    let (server, port) = serve();
    let client = Store::connect("127.0.0.1", port, Duration::from_millis(300)).unwrap();
    let error = client.get("nobody").unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    drop(server);
    let error = client.get("nobody").unwrap_err();
    assert!(matches!(error, Error::Connection { .. }), "{error}");
}

#[test]
fn a_server_that_is_not_there_is_an_error_within_the_limit() {
    let error = Store::connect("127.0.0.1", 1, Duration::from_secs(1)).err().unwrap();
    assert!(matches!(error, Error::Timeout { .. } | Error::Connection { .. }), "{error}");
}

#[test]
fn ranks_reduce() {
    as_two_ranks(LIMIT, |rank, group| {
        let tensor = Tensor::from_slice(&[1.5, 2.0]).to_kind(Kind::BFloat16) * (rank as f64 + 1.0);
        let work = group.all_reduce(&tensor, ReduceOp::Sum).unwrap();
        assert!(work.wait_for(LIMIT).unwrap());
        assert!(work.is_completed().unwrap());
        assert_eq!(Vec::<f32>::try_from(tensor.to_kind(Kind::Float)).unwrap(), [4.5, 6.0]);
    });
}

#[test]
fn a_peer_that_leaves_is_a_lost_connection() {
    as_two_ranks(LIMIT, |rank, group| {
        if rank == 1 {
            return;
        }
        let error = loop {
            match group.barrier().and_then(|work| work.wait_for(LIMIT)) {
                Ok(done) => assert!(done, "nothing ends the barrier"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Connection { .. }), "{error}");
    });
}

#[test]
fn a_peer_that_does_not_come_is_a_timeout() {
    as_two_ranks(Duration::from_secs(1), |rank, group| {
        if rank == 1 {
            thread::sleep(Duration::from_secs(3));
            return;
        }
        let work = group.barrier().unwrap();
        assert!(!work.wait_for(Duration::from_millis(100)).unwrap(), "nobody else is there");
        let error = work.wait_for(LIMIT).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    });
}

#[test]
fn splits_that_do_not_add_up_are_refused() {
    as_two_ranks(LIMIT, |_, group| {
        let tensor = Tensor::ones([4], (Kind::Float, Device::Cpu));
        // c10d looks at the splits only when it comes to the operation.
        let work = group.all_to_all_single(&tensor, &tensor, &[1, 1], &[2, 2]).unwrap();
        let error = work.wait_for(LIMIT).unwrap_err();
        assert!(matches!(error, Error::Torch { .. }), "{error}");
    });
}

#[test]
fn an_address_of_another_machine_is_refused() {
    let (server, _) = serve();
    let elsewhere = Endpoint::Address("192.0.2.1".to_owned());
    assert!(ProcessGroup::gloo(&server, 0, 2, LIMIT, &elsewhere).is_err());
}

/// See `cpp/gloo/README.md`: our declarations of gloo's classes must not become definitions.
#[test]
fn no_vtable_of_gloo_is_ours() {
    let binary = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    // Spelled backwards, so that the test does not find itself.
    let contains = |reversed: &str| {
        let symbol: Vec<u8> = reversed.bytes().rev().collect();
        binary.windows(symbol.len()).any(|window| window == symbol)
    };
    assert!(contains("EnoitpecxEoI11oolg4NITZ_"), "the binary has no symbols to look at");
    assert!(!contains("oolg4NVTZ_"));
    assert!(!contains("EerotSoolG9oolGpuorGssecorP61d01c4NVTZ_"));
}
