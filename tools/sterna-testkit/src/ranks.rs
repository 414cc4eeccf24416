//! Ranks as processes.
//!
//! c10d keeps state per process, and a rank must be able to die, so a rank is a process: the test binary itself, told
//! to run the same test again. There [`spawn_ranks`] finds in the environment that it is a rank, runs the closure, and
//! ends the process; so what a test does before the call is done by every rank too, and what it does after, by the
//! parent only.

use std::{
    cell::Cell,
    collections::BTreeSet,
    env, fs,
    io::{self, BufRead, BufReader, Read},
    net::TcpListener,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Time after which all ranks are killed. Generous: the tests of several crates may share two cores.
const LIMIT: Duration = Duration::from_mins(8);

const RANK: &str = "STERNA_TEST_RANK";
const CALL: &str = "STERNA_TEST_CALL";
const FOLDER: &str = "STERNA_TEST_FOLDER";

thread_local! {
    /// Calls of `spawn_ranks` made by this test so far: a test may make several.
    static NUM_CALLS: Cell<usize> = const { Cell::new(0) };
}

/// What a rank of a test knows. torchrun's variables are set as well: `RankEnv::from_env()` reads them.
#[derive(Debug, Clone)]
pub struct TestRank {
    /// This process's number.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
    /// A folder that all ranks share, empty at first and deleted afterwards.
    pub folder: PathBuf,
}

/// Runs `body` in `world_size` processes on this machine, and waits for all.
///
/// Call it from the test's own thread. Ranks compute with one thread each.
///
/// # Panics
///
/// If a rank panics or ends otherwise (the others are then killed), or after eight minutes. The message has what every
/// rank wrote, line by line with the rank's number.
pub fn spawn_ranks(world_size: usize, body: impl FnOnce(&TestRank)) {
    run(world_size, &BTreeSet::new(), body);
}

/// Like [`spawn_ranks`], but rank `lost` must end by a signal, and its end leaves the others alone.
///
/// # Panics
///
/// As [`spawn_ranks`], and if rank `lost` ends in any other way.
pub fn spawn_ranks_losing(world_size: usize, lost: usize, body: impl FnOnce(&TestRank)) {
    run(world_size, &BTreeSet::from([lost]), body);
}

fn run(world_size: usize, lost: &BTreeSet<usize>, body: impl FnOnce(&TestRank)) {
    let call = NUM_CALLS.get();
    NUM_CALLS.set(call + 1);
    let Some(rank) = env::var(RANK).ok() else {
        return watch(world_size, lost, call);
    };
    if env::var(CALL) != Ok(call.to_string()) {
        return;
    }
    let folder = PathBuf::from(env::var_os(FOLDER).expect("the parent sets the folder"));
    let rank = rank.parse().expect("the parent sets the rank to a number");
    end_with_parent();
    body(&TestRank { rank, world_size, folder: folder.join("shared") });
    fs::write(done_file(&folder, rank), "").expect("the parent's folder is writable");
    end(0);
}

#[expect(clippy::exit, reason = "what follows in the test is the parent's")]
fn end(code: i32) -> ! {
    std::process::exit(code)
}

/// Ends this process when the parent does, whose end closes the pipe.
fn end_with_parent() {
    thread::spawn(|| {
        let _ended = io::stdin().read_to_end(&mut Vec::new());
        end(1)
    });
}

/// Written by a rank that has run its body: an exit status of zero could also mean that no test had the name.
fn done_file(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("done-{rank}"))
}

fn watch(world_size: usize, lost: &BTreeSet<usize>, call: usize) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    fs::create_dir(folder.path().join("shared")).expect("the folder is new");
    let port = free_port();
    let mut ranks: Vec<Rank> = (0..world_size)
        .map(|rank| Rank::start(&rank_command(rank, world_size, call, port, folder.path())))
        .collect();
    let started = Instant::now();
    let verdict = loop {
        let mut num_running = 0;
        let mut verdict = None;
        for (number, rank) in ranks.iter_mut().enumerate() {
            match rank.child.try_wait().expect("a child can be asked for its status") {
                None => num_running += 1,
                Some(status) if lost.contains(&number) && status.signal().is_some() => {}
                Some(status) if lost.contains(&number) => {
                    verdict = Some(format!("rank {number} was to die, but ended with {status}"));
                }
                Some(status) if is_good(status, &done_file(folder.path(), number)) => {}
                Some(status) => verdict = Some(format!("rank {number} ended with {status}")),
            }
        }
        if verdict.is_some() || num_running == 0 {
            break verdict;
        }
        if started.elapsed() > LIMIT {
            break Some(format!("{num_running} ranks were still running after {LIMIT:?}"));
        }
        thread::sleep(Duration::from_millis(5));
    };
    if let Some(verdict) = verdict {
        let output: String =
            ranks.into_iter().enumerate().map(|(number, rank)| rank.finish(number)).collect();
        panic!("{verdict}\n{output}");
    }
}

fn is_good(status: ExitStatus, done: &Path) -> bool {
    status.success() && done.is_file()
}

/// A port that was free a moment ago. Rank 0 takes it at once.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

fn rank_command(
    rank: usize,
    world_size: usize,
    call: usize,
    port: u16,
    folder: &Path,
) -> Vec<(&'static str, String)> {
    vec![
        (RANK, rank.to_string()),
        (CALL, call.to_string()),
        (FOLDER, folder.to_str().expect("temporary folders have plain names").to_owned()),
        ("RANK", rank.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("WORLD_SIZE", world_size.to_string()),
        ("LOCAL_WORLD_SIZE", world_size.to_string()),
        ("MASTER_ADDR", "127.0.0.1".to_owned()),
        ("MASTER_PORT", port.to_string()),
        ("OMP_NUM_THREADS", "1".to_owned()),
        // c10d tells each lost connection with a stack; our errors tell it in a line.
        ("TORCH_CPP_LOG_LEVEL", "ERROR".to_owned()),
    ]
}

/// A rank's process and what it has written.
struct Rank {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Rank {
    fn start(variables: &[(&'static str, String)]) -> Self {
        let current = thread::current();
        // libtest names the thread of a test for the test.
        let test = current
            .name()
            .filter(|&name| name != "main")
            .expect("call it on the test's own thread");
        let mut child = Command::new(env::current_exe().expect("a test has an executable"))
            .args([test, "--exact", "--nocapture"])
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .env_remove("TORCHELASTIC_USE_AGENT_STORE")
            .env_remove("TORCHELASTIC_RESTART_COUNT")
            .env_remove("GLOO_SOCKET_IFNAME")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the test binary can be run again");
        let lines = Arc::default();
        let readers = vec![
            read_lines(child.stdout.take().expect("stdout is piped"), Arc::clone(&lines)),
            read_lines(child.stderr.take().expect("stderr is piped"), Arc::clone(&lines)),
        ];
        Self { child, lines, readers }
    }

    /// Kills the process and returns what it wrote.
    fn finish(mut self, number: usize) -> String {
        self.kill();
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader does not panic");
        }
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines
            .iter()
            .fold(String::new(), |output, line| output + &format!("[rank {number}] {line}\n"))
    }

    fn kill(&mut self) {
        // It may have ended by itself.
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_lines(
    stream: impl Read + Send + 'static,
    lines: Arc<Mutex<Vec<String>>>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    })
}
