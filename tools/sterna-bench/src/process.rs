//! Runs one command and watches the memory of its processes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// How often memory is read. The kernel keeps the peak, so only growth in a process's last moments can be missed.
const PERIOD: Duration = Duration::from_millis(20);

/// How often new processes are looked for, in periods.
const SCAN_EVERY: u32 = 10;

/// Below this, in bytes, a machine without swap is about to kill something; we choose what.
const LEAST_AVAILABLE: u64 = 300_000_000;

/// Which processes of a command are ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranks {
    /// The process that was started.
    Itself,
    /// Its children, or itself where it has none.
    Children,
}

/// The memory of one process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peak {
    /// Resident, the kernel's high-water mark.
    pub resident: u64,
    /// Resident and not of a file, sampled.
    pub anonymous: u64,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With exit status 0.
    Done,
    /// Memory of the machine or of the GPU was not enough.
    OutOfMemory,
    /// By us, after its time.
    TimedOut,
    /// With what it said last.
    Failed(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => write!(f, "done"),
            Self::OutOfMemory => write!(f, "out of memory"),
            Self::TimedOut => write!(f, "failed: it was ended after its time"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// One run of a command.
#[derive(Clone, Debug, PartialEq)]
pub struct Watched {
    /// How it ended.
    pub end: End,
    /// One for each rank, in the order in which they were started.
    pub peaks: Vec<Peak>,
    /// From start to end.
    pub wall: Duration,
}

/// When a run is ended from outside.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// With less than so many bytes available on the machine, it counts as out of memory.
    pub least_available: u64,
    /// After so long, it counts as timed out.
    pub time: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { least_available: LEAST_AVAILABLE, time: None }
    }
}

/// Runs `command` to its end, its output in the file `log`.
///
/// # Errors
///
/// When it cannot be started, or the log cannot be written; that the command fails is not an error.
pub fn watch(command: &mut Command, ranks: Ranks, log: &Path, limits: Limits) -> Result<Watched> {
    let file = File::create(log).with_context(|| format!("cannot write `{}`", log.display()))?;
    let program = command.get_program().to_owned();
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot start `{}`", program.display()))?;
    let root = child.id();
    // By process id; the value's second half is the parent's.
    let mut found: BTreeMap<u32, (Peak, u32)> = BTreeMap::new();
    let mut stopped = None;
    let mut period = 0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if period % SCAN_EVERY == 0 {
            let alive = descendants(root);
            for (pid, parent) in &alive {
                found.entry(*pid).or_insert((Peak::default(), *parent));
            }
            if available().is_some_and(|bytes| bytes < limits.least_available) {
                stopped = Some(End::OutOfMemory);
                kill_with_children(root);
            }
            if limits.time.is_some_and(|limit| start.elapsed() > limit) {
                stopped = Some(End::TimedOut);
                kill_with_children(root);
            }
        }
        period += 1;
        for (pid, (peak, _)) in &mut found {
            update(peak, *pid);
        }
        sleep(PERIOD);
    };
    let said = fs::read(log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let end = stopped.unwrap_or_else(|| ended(status, &said));
    let children: Vec<Peak> =
        found.values().filter(|(_, parent)| *parent == root).map(|(peak, _)| *peak).collect();
    let peaks = match ranks {
        Ranks::Children if !children.is_empty() => children,
        _ => found.get(&root).map(|(peak, _)| *peak).into_iter().collect(),
    };
    Ok(Watched { end, peaks, wall: start.elapsed() })
}

/// The kernel's out-of-memory killer sends SIGKILL, which our launcher names; allocators of libtorch, C++ and Python say it in words.
const OUT_OF_MEMORY: [&str; 6] = [
    "ended by signal 9",
    "can't allocate memory",
    // libtorch's allocator on a GPU.
    "out of memory",
    "Cannot allocate memory",
    "std::bad_alloc",
    "MemoryError",
];

/// What an exit status and the last words of a command mean.
fn ended(status: ExitStatus, said: &str) -> End {
    use std::os::unix::process::ExitStatusExt as _;

    if status.success() {
        return End::Done;
    }
    if status.signal() == Some(9) || OUT_OF_MEMORY.iter().any(|word| said.contains(word)) {
        return End::OutOfMemory;
    }
    // Ours say `error: ...` and then where; Python says at the end what it was. Progress bars rewrite their line.
    let lines = said.lines().map(|line| line.rsplit('\r').next().unwrap_or(line).trim());
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let is_named = |line: &&str| line.starts_with("error:") || line.contains("] error:");
    let first = lines.iter().position(is_named).unwrap_or(lines.len().saturating_sub(1));
    let mut words = lines.get(first).copied().unwrap_or("it said nothing").to_owned();
    for cause in lines.iter().skip(first + 1).take_while(|line| line.starts_with("caused by:")) {
        words.push_str(", ");
        words.push_str(cause);
    }
    End::Failed(format!("{status}: {words}"))
}

/// `root` and all processes below it, each with its parent.
fn descendants(root: u32) -> Vec<(u32, u32)> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if let Ok(stat) = fs::read_to_string(entry.path().join("stat"))
            && let Some(parent) = parent_of(&stat)
        {
            parents.insert(pid, parent);
        }
    }
    let is_below = |pid: u32| {
        let mut at = pid;
        while at != root {
            match parents.get(&at) {
                Some(parent) => at = *parent,
                None => return false,
            }
        }
        true
    };
    parents.iter().filter(|(pid, _)| is_below(**pid)).map(|(pid, parent)| (*pid, *parent)).collect()
}

/// The fourth field of `/proc/PID/stat`; the second is a name in parentheses that may hold anything.
fn parent_of(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Raises `peak` to what the process takes now; one that has ended has nothing to add.
fn update(peak: &mut Peak, pid: u32) {
    if let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) {
        peak.resident = peak.resident.max(field(&status, "VmHWM").unwrap_or(0));
        let anonymous = field(&status, "RssAnon").unwrap_or(0);
        let shared = field(&status, "RssShmem").unwrap_or(0);
        peak.anonymous = peak.anonymous.max(anonymous + shared);
    }
}

/// Bytes that a new process can have before something must be given up.
fn available() -> Option<u64> {
    field(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")
}

/// The bytes of a line `NAME: N kB`.
pub fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Ends `root` and all processes below it at once.
fn kill_with_children(root: u32) {
    // First held, so that it starts none that we do not see.
    signal("STOP", &[root]);
    let all: Vec<u32> = descendants(root).into_iter().map(|(pid, _)| pid).collect();
    signal("KILL", &all);
}

/// Sends a signal, by the shell: the standard library knows only the one that ends a child.
fn signal(name: &str, pids: &[u32]) {
    let mut shell = Command::new("sh");
    shell.args(["-c", "kill -s \"$@\" 2>/dev/null", "sh", name]);
    shell.args(pids.iter().map(u32::to_string));
    // One that has ended already needs no signal.
    drop(shell.status());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, ranks: Ranks) -> Watched {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        watch(Command::new("sh").args(["-c", script]), ranks, &log, Limits::default()).unwrap()
    }

    #[test]
    fn the_peak_is_of_the_rank_and_stays_after_its_memory_is_returned() {
        // A shell variable of 2^25 characters, dropped again.
        let grow = "x=0123456789abcdef0123456789abcdef; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do x=$x$x; done; x=; sleep 0.3";
        let itself = shell(grow, Ranks::Itself);
        assert_eq!(itself.end, End::Done);
        assert_eq!(itself.peaks.len(), 1);
        assert!(itself.peaks[0].resident > 33_000_000, "{itself:?}");
        // The same in a child, while the parent stays small.
        let script = format!("sh -c '{grow}' & sh -c 'sleep 0.5; true' & wait");
        let children = shell(&script, Ranks::Children);
        assert_eq!(children.peaks.len(), 2);
        assert!(children.peaks[0].resident > 33_000_000, "{children:?}");
        assert!(children.peaks[1].resident < 16_000_000, "{children:?}");
    }

    #[test]
    fn a_killed_process_and_an_allocator_that_gives_up_are_out_of_memory() {
        assert_eq!(shell("kill -KILL $$", Ranks::Itself).end, End::OutOfMemory);
        let script = "echo \"DefaultCPUAllocator: can't allocate memory\" >&2; exit 1";
        assert_eq!(shell(script, Ranks::Itself).end, End::OutOfMemory);
    }

    #[test]
    fn a_command_and_its_children_are_ended_before_the_machine_lacks_memory() {
        let dir = tempfile::tempdir().unwrap();
        let late = dir.path().join("late");
        let script = format!("(sleep 2; touch {}) & wait", late.display());
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        let limits = Limits { least_available: u64::MAX, ..Limits::default() };
        let watched =
            watch(&mut command, Ranks::Children, &dir.path().join("log"), limits).unwrap();
        assert_eq!(watched.end, End::OutOfMemory);
        sleep(Duration::from_millis(2500));
        assert!(!late.exists(), "the child went on");
    }

    #[test]
    fn a_command_that_hangs_is_ended_and_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { time: Some(Duration::from_millis(300)), ..Limits::default() };
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 60"]);
        let watched = watch(&mut command, Ranks::Itself, &dir.path().join("log"), limits).unwrap();
        assert_eq!(watched.end, End::TimedOut);
        assert!(watched.wall < Duration::from_secs(30));
    }

    #[test]
    fn a_failure_is_told_in_the_words_of_the_program() {
        let words = |script: &str| shell(script, Ranks::Itself).end;
        let failed = |words: &str| End::Failed(format!("exit status: 2: {words}"));
        assert_eq!(
            words("echo Traceback; echo ValueError: x; echo; exit 2"),
            failed("ValueError: x")
        );
        assert_eq!(
            words("echo error: unknown key; echo 1 error; exit 2"),
            failed("error: unknown key")
        );
        assert_eq!(
            words(
                "echo error: no device; echo '  caused by: no driver'; echo; echo hint: buy one; exit 2"
            ),
            failed("error: no device, caused by: no driver")
        );
        assert_eq!(words("exit 2"), failed("it said nothing"));
    }

    #[test]
    fn fields_of_proc_are_read() {
        assert_eq!(
            field("Name:\tsh\nVmHWM:\t  1024 kB\nRssAnon:\t 1 kB\n", "VmHWM"),
            Some(1_048_576)
        );
        assert_eq!(field("VmHWM:\t  1024 kB\n", "Vm"), None);
        assert_eq!(parent_of("12 (a) b) S 7 12 12"), Some(7));
    }
}
