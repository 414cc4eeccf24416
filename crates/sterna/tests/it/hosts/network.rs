//! Two hosts: network namespaces with a cable between them and a real sshd in each.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::workspace::Workspace;

pub(super) const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const SSHD: &str = "/usr/sbin/sshd";
const PORT: &str = "2222";

/// Two hosts that last as long as this.
pub(super) struct Hosts {
    /// Names of their namespaces.
    names: [String; 2],
    /// Keys, configurations and logs.
    folder: TempDir,
    sshds: Vec<Child>,
}

/// Why there can be no hosts here.
pub(super) fn what_is_missing() -> Option<String> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return Some("they make network namespaces, and this is not root".to_owned());
    }
    let has = |args: &[&str]| Command::new(args[0]).args(&args[1..]).output().is_ok();
    if !Path::new(SSHD).exists() || !has(&["ssh", "-V"]) || !has(&["ip", "-V"]) {
        return Some("install openssh-server, openssh-client and iproute2".to_owned());
    }
    let probe = unique_name("probe");
    let added = Command::new("ip").args(["netns", "add", &probe]).output().unwrap();
    if !added.status.success() {
        let reason = String::from_utf8_lossy(&added.stderr).trim().to_owned();
        return Some(format!("network namespaces are not allowed here: {reason}"));
    }
    run("ip", &["netns", "del", &probe]);
    None
}

/// Says why the test that calls it does nothing.
#[expect(clippy::print_stderr, reason = "for the reader of the test's output")]
pub(super) fn say_skipped(reason: &str) {
    eprintln!("SKIPPED, the tests of two hosts: {reason}");
}

/// Other tests of this run, and of other runs, make hosts at the same time.
fn unique_name(what: &str) -> String {
    static NUM: AtomicUsize = AtomicUsize::new(0);
    format!("st{}{what}{}", std::process::id(), NUM.fetch_add(1, Ordering::Relaxed))
}

#[track_caller]
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {stderr}", args.join(" "));
}

impl Hosts {
    /// Two hosts with a cable, or none and the reason said.
    pub(super) fn new() -> Option<Self> {
        Self::with(":")
    }

    /// The same, where the second has run a command of its own before it took guests: mounts are seen there alone.
    pub(super) fn with(command_on_second: &str) -> Option<Self> {
        if let Some(reason) = what_is_missing() {
            say_skipped(&reason);
            return None;
        }
        let hosts = Self {
            names: [unique_name("a"), unique_name("b")],
            folder: tempfile::tempdir().unwrap(),
            sshds: Vec::new(),
        };
        hosts.lay_cable();
        hosts.write_keys();
        let mut hosts = hosts;
        for (host, command) in [(0, ":"), (1, command_on_second)] {
            hosts.start_sshd(host, command);
        }
        for address in ADDRESSES {
            hosts.await_sshd(address);
        }
        Some(hosts)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn lay_cable(&self) {
        let [a, b] = &self.names;
        // Names of devices are short, and these are alone in their namespaces but for a moment.
        let ends = ["0", "1"].map(|end| format!("{}v{end}", a.trim_end_matches(char::is_numeric)));
        run("ip", &["netns", "add", a]);
        run("ip", &["netns", "add", b]);
        run(
            "ip",
            &[
                "link", "add", &ends[0], "netns", a, "type", "veth", "peer", "name", &ends[1],
                "netns", b,
            ],
        );
        for (host, end) in [(0, &ends[0]), (1, &ends[1])] {
            let name = &self.names[host];
            run("ip", &["-n", name, "link", "set", end, "name", "cable"]);
            run(
                "ip",
                &["-n", name, "addr", "add", &format!("{}/24", ADDRESSES[host]), "dev", "cable"],
            );
            run("ip", &["-n", name, "link", "set", "cable", "up"]);
            run("ip", &["-n", name, "link", "set", "lo", "up"]);
        }
    }

    fn write_keys(&self) {
        for key in ["host_key", "user_key"] {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &self.path(key)]);
        }
        let config = format!(
            "Host *\n IdentityFile {}\n IdentitiesOnly yes\n UserKnownHostsFile {}\n StrictHostKeyChecking accept-new\n LogLevel ERROR\n",
            self.path("user_key"),
            self.path("known_hosts")
        );
        fs::write(self.path("ssh_config"), config).unwrap();
        // What a user has in ~/.ssh/config: ssh finds that by the user's entry in the system, whatever HOME says.
        fs::create_dir(self.path("bin")).unwrap();
        let ssh = self.path("bin/ssh");
        let script =
            format!("#!/bin/sh\nexec /usr/bin/ssh -F {} \"$@\"\n", self.path("ssh_config"));
        fs::write(&ssh, script).unwrap();
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn start_sshd(&mut self, host: usize, command: &str) {
        fs::create_dir_all(self.path("home")).unwrap();
        // Debian's sshd wants it, and only its service makes it.
        fs::create_dir_all("/run/sshd").unwrap();
        let config = format!(
            "Port {PORT}\nListenAddress {}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}.pub\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPermitUserEnvironment no\nPasswordAuthentication no\nPidFile none\nSetEnv HOME={}\n",
            ADDRESSES[host],
            self.path("host_key"),
            self.path("user_key"),
            // Without the user's startup files, which may write to stderr: pyenv's do when two shells begin at once.
            self.path("home"),
        );
        let path = self.path(&format!("sshd{host}"));
        fs::write(&path, config).unwrap();
        let script = format!("{command} && exec {SSHD} -D -f {path} -E {path}.log");
        let mut sshd = self.on(host, &Command::new("sh"));
        sshd.args(["-c", &script]).stdin(Stdio::null());
        self.sshds.push(sshd.spawn().unwrap());
    }

    fn await_sshd(&self, address: &str) {
        let start = Instant::now();
        loop {
            let mut ssh = self.on(0, &Command::new(self.path("bin/ssh")));
            let output =
                ssh.args(["-p", PORT, "-o", "BatchMode=yes", address, "true"]).output().unwrap();
            if output.status.success() {
                return;
            }
            let log = ["sshd0.log", "sshd1.log"]
                .map(|log| fs::read_to_string(self.path(log)).unwrap_or_default());
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(start.elapsed() < Duration::from_secs(30), "{address}: {stderr}{log:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// `command` on host 0 or 1, without its output and environment, which are to be set on what this returns.
    fn on(&self, host: usize, command: &Command) -> Command {
        let mut wrapped = Command::new("ip");
        wrapped
            .args(["netns", "exec", &self.names[host]])
            .arg(command.get_program())
            .args(command.get_args());
        if let Some(folder) = command.get_current_dir() {
            wrapped.current_dir(folder);
        }
        wrapped
    }

    /// `sterna ARGS` on host 0 or 1.
    pub(super) fn sterna(&self, host: usize, workspace: &Workspace, args: &[&str]) -> Command {
        let plain = workspace.sterna(args);
        let path = std::env::var("PATH").unwrap();
        let mut command = self.on(host, &plain);
        command.env_clear();
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("PATH", format!("{}:{path}", self.path("bin")));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// `sterna ARGS` on host 0, with the hosts' port of sshd.
    pub(super) fn launcher(&self, workspace: &Workspace, args: &[&str]) -> Command {
        self.sterna(0, workspace, &[args, &["--ssh_port", PORT]].concat())
    }

    /// Ids of the processes on either host whose program is `sterna`, or the engine that it becomes.
    pub(super) fn processes(&self) -> Vec<i32> {
        let of_host = |name: &String| {
            let listed = Command::new("ip").args(["netns", "pids", name]).output().unwrap();
            String::from_utf8(listed.stdout).unwrap()
        };
        let listed: String = self.names.iter().map(of_host).collect();
        listed
            .split_whitespace()
            .filter(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name.starts_with("sterna"))
            })
            .map(|pid| pid.parse().unwrap())
            .collect()
    }

    pub(super) fn await_end_of_processes(&self, limit: Duration) {
        let start = Instant::now();
        while !self.processes().is_empty() {
            assert!(start.elapsed() < limit, "{:?} still run after {limit:?}", self.processes());
            thread::sleep(Duration::from_millis(50));
        }
    }

    pub(super) fn cut_cable(&self) {
        run("ip", &["-n", &self.names[1], "link", "set", "cable", "down"]);
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for sshd in &mut self.sshds {
            let _ = sshd.kill();
            let _ = sshd.wait();
        }
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}
