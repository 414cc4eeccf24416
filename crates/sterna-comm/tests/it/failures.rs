use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use sterna_comm::{Comm, CommError, Failure, RankEnv, ReduceOp};
use sterna_testkit::{spawn_ranks, spawn_ranks_losing};
use tch::{Device, Kind, Tensor};

use crate::join;

/// A dead rank must end the others' operations within this time.
///
/// Less than the minute that an operation waits for a rank that says nothing.
const SOON: Duration = Duration::from_secs(45);

fn signal(name: &str, process: u32) {
    Command::new("kill").args(["-s", name, &process.to_string()]).status().unwrap();
}

fn floats(numel: i64) -> Tensor {
    Tensor::ones([numel], (Kind::Float, Device::Cpu))
}

/// Reduces over all ranks until that fails, and returns the failure.
fn reduce_until_failure(comm: &Comm) -> CommError {
    loop {
        if let Err(error) = comm.world().all_reduce_(&floats(1 << 16), ReduceOp::Sum) {
            return error;
        }
    }
}

#[test]
fn a_killed_rank_is_named_by_all_others() {
    // Rank 0 serves the store, so its death is noticed in another way.
    for lost in [2, 0] {
        spawn_ranks_losing(3, lost, |rank| {
            let comm = join(1);
            comm.world().barrier().unwrap();
            if rank.rank == lost {
                signal("KILL", std::process::id());
            }
            let started = Instant::now();
            let error = reduce_until_failure(&comm);
            let CommError::PeerFailed { site, failure } = &error else {
                panic!("{error}");
            };
            assert_eq!(failure.rank(), Some(lost), "{error}");
            assert_eq!((site.op, site.rank), ("all_reduce_", rank.rank));
            assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
            assert!(error.hint().unwrap().contains(&format!("rank {lost}")), "{error}");
            // Nothing is sent any more.
            let started = Instant::now();
            assert!(matches!(comm.world().barrier(), Err(CommError::PeerFailed { .. })));
            assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
        });
    }
}

#[test]
fn a_rank_that_gives_up_tells_the_others_why() {
    spawn_ranks(3, |rank| {
        let comm = join(1);
        let reason = "loss is NaN at step `7`";
        let told = |rank_idx: usize| rank.folder.join(format!("told-{rank_idx}"));
        if rank.rank == 1 {
            comm.abort(reason);
            // It keeps its connections until they know, so Gloo has nothing to notice.
            while ![0, 2].iter().all(|other| told(*other).exists()) {
                thread::sleep(Duration::from_millis(20));
            }
            return;
        }
        let error = reduce_until_failure(&comm);
        let CommError::PeerFailed { failure, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(failure, &Failure::Reported { rank: 1, reason: reason.to_owned() });
        fs::write(told(rank.rank), "").unwrap();
    });
}

/// Rank 0 serves the store, so its end must not come before the others have read the reason there.
#[test]
fn a_rank_that_looks_late_learns_the_reason_although_rank_0_has_left() {
    for failed in [1, 0] {
        spawn_ranks(3, |rank| {
            let comm = join(1);
            comm.world().barrier().unwrap();
            let reason = "loss is NaN at step `7`";
            if rank.rank == failed {
                comm.abort(reason);
                return;
            }
            if rank.rank == 2 {
                // Busy computing.
                thread::sleep(Duration::from_secs(2));
            }
            let error = reduce_until_failure(&comm);
            let CommError::PeerFailed { failure, .. } = &error else {
                panic!("{error}");
            };
            assert_eq!(failure, &Failure::Reported { rank: failed, reason: reason.to_owned() });
        });
    }
}

/// As above, where rank 0 has done its part without noticing anything.
#[test]
fn the_reason_of_a_late_failure_reaches_all_ranks_but_those_that_have_left() {
    spawn_ranks(3, |rank| {
        let comm = join(1);
        comm.world().barrier().unwrap();
        let reason = "no space left on device";
        match rank.rank {
            0 => return,
            1 => {
                thread::sleep(Duration::from_millis(500));
                comm.abort(reason);
                return;
            }
            _ => thread::sleep(Duration::from_secs(3)),
        }
        let error = comm.world().barrier().unwrap_err();
        let CommError::PeerFailed { failure, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(failure, &Failure::Reported { rank: 1, reason: reason.to_owned() });
    });
}

#[test]
fn a_rank_that_panics_tells_the_others() {
    spawn_ranks(2, |rank| {
        let comm = join(1);
        if rank.rank == 1 {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                let _comm = comm;
                panic!("on purpose");
            }));
            assert!(caught.is_err());
            return;
        }
        let error = reduce_until_failure(&comm);
        assert!(error.to_string().ends_with("rank `1` failed: panicked"), "{error}");
    });
}

#[test]
fn a_rank_that_does_not_come_is_a_timeout_that_tells_how_far_it_is() {
    spawn_ranks(2, |rank| {
        let env = RankEnv::from_env().unwrap();
        let comm = Comm::init(&env, 1, Duration::from_secs(3)).unwrap();
        comm.world().barrier().unwrap();
        if rank.rank == 1 {
            // Alive, but busy with something else.
            while !rank.folder.join("over").exists() {
                thread::sleep(Duration::from_millis(20));
            }
            comm.abort("the test is over");
            return;
        }
        let error = comm.world().all_reduce_(&floats(8), ReduceOp::Sum).unwrap_err();
        fs::write(rank.folder.join("over"), "").unwrap();
        let CommError::Timeout { site, .. } = &error else {
            panic!("{error}");
        };
        // Gloo's clock of 3 s starts a moment before ours, and both are read in milliseconds.
        let least = Duration::from_millis(2_900);
        assert!(site.elapsed >= least && site.elapsed < SOON, "{:?}: {error}", site.elapsed);
        assert!(
            error.to_string().ends_with(
                "timed out; rank `0` is at operation 2 (`all_reduce_ on world`), rank `1` is at operation 1 (`barrier on world`)"
            ),
            "{error}"
        );
    });
}

#[test]
fn a_stopped_rank_is_silent() {
    spawn_ranks_losing(2, 1, |rank| {
        let env = RankEnv::from_env().unwrap();
        let comm = Comm::init(&env, 1, Duration::from_secs(3)).unwrap();
        let processes = comm.world().all_gather_bytes(&std::process::id().to_le_bytes()).unwrap();
        if rank.rank == 1 {
            // Its connections stay open: only its silence tells.
            signal("STOP", std::process::id());
            // The signal may take a moment, in which it must not take part.
            loop {
                thread::sleep(Duration::from_secs(1));
            }
        }
        let error = comm.world().barrier().unwrap_err();
        signal("KILL", u32::from_le_bytes(processes[1][..].try_into().unwrap()));
        let CommError::PeerFailed { failure: Failure::Silent { rank: 1, .. }, .. } = &error else {
            panic!("{error}");
        };
    });
}

/// Gloo ends the process that receives more than its tensor holds, on a thread of its own: an exception nobody can
/// catch. So the ranks that are left learn of it as of any other death.
#[test]
fn sizes_that_disagree_end_a_rank_and_the_others_name_it() {
    spawn_ranks_losing(2, 0, |rank| {
        let comm = join(1);
        let tensor = floats(8 + rank.rank as i64);
        let error = comm.world().all_reduce_(&tensor, ReduceOp::Sum).unwrap_err();
        let CommError::PeerFailed { failure, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(failure.rank(), Some(0), "{error}");
    });
}

#[test]
fn ranks_that_do_not_start_are_a_rendezvous_error() {
    spawn_ranks(2, |rank| {
        if rank.rank == 1 {
            return;
        }
        let env = RankEnv::from_env().unwrap();
        let error = Comm::init(&env, 1, Duration::from_secs(2)).err().unwrap();
        assert!(
            matches!(&error, CommError::Rendezvous { step: "meet all other ranks", .. }),
            "{error}"
        );
        assert!(error.to_string().contains(&format!("127.0.0.1:{}", env.master_port)), "{error}");
    });
}

#[test]
fn a_taken_port_is_a_rendezvous_error() {
    spawn_ranks(1, |_| {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let env = RankEnv {
            world_size: 2,
            local_world_size: 2,
            master_port: listener.local_addr().unwrap().port(),
            ..RankEnv::single()
        };
        let error = Comm::init(&env, 1, Duration::from_secs(2)).err().unwrap();
        assert!(
            matches!(&error, CommError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse),
            "{error}"
        );
    });
}

/// What listens on a port of this machine, by the kernel's own list (`/proc/net/tcp`: hexadecimal, state `0A`).
fn listeners(port: u16) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .flat_map(|path| {
            let table = std::fs::read_to_string(path).unwrap_or_default();
            let rows: Vec<Vec<String>> = table
                .lines()
                .map(|line| line.split_whitespace().map(str::to_owned).collect())
                .collect();
            rows
        })
        .filter(|row| row.get(3).is_some_and(|state| state == "0A") && row[1].ends_with(&suffix))
        .map(|row| row[1].clone())
        .collect()
}

#[test]
fn the_rendezvous_listens_on_the_master_address_only() {
    spawn_ranks(2, |_| {
        let env = RankEnv::from_env().unwrap();
        let comm = Comm::init(&env, 1, Duration::from_mins(1)).unwrap();
        // 127.0.0.1, least significant byte first.
        assert_eq!(listeners(env.master_port), [format!("0100007F:{:04X}", env.master_port)]);
        let port = env.master_port;
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        let error = std::net::TcpStream::connect(("127.0.0.2", port)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        comm.world().barrier().unwrap();
    });
}

#[test]
fn ranks_that_find_the_master_elsewhere_listen_on_the_named_interface() {
    // 192.0.2.0/24 is nobody's, as a forwarded address is.
    spawn_ranks(1, |_| {
        let env = RankEnv {
            world_size: 2,
            local_world_size: 2,
            master_addr: "192.0.2.77".to_owned(),
            master_port: std::net::TcpListener::bind(("127.0.0.1", 0))
                .unwrap()
                .local_addr()
                .unwrap()
                .port(),
            interface: Some("lo".to_owned()),
            ..RankEnv::single()
        };
        // The other rank never comes; until then the store is up.
        let error = Comm::init(&env, 1, Duration::from_secs(1)).err().unwrap();
        assert!(
            matches!(&error, CommError::Rendezvous { step: "meet all other ranks", .. }),
            "{error}"
        );
        let nowhere = RankEnv { interface: Some("none0".to_owned()), ..env };
        let error = Comm::init(&nowhere, 1, Duration::from_secs(1)).err().unwrap();
        assert!(matches!(&error, CommError::Listen { .. }), "{error}");
    });
}
