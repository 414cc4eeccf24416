//! `sterna train` on two hosts, with a real sshd on each.
//!
//! They share this machine's files, as hosts of a cluster do. The tests need root, Debian's `openssh-server`,
//! `openssh-client` and `iproute2`; without, they say so and pass (`what_tests_of_two_hosts_need` shows it).

mod network;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use insta::assert_snapshot;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::json;

use self::network::{ADDRESSES, Hosts, say_skipped, what_is_missing};
use crate::workspace::Workspace;

/// A workspace with a hostfile of two hosts with two slots each.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    let [first, second] = ADDRESSES;
    workspace.write("hosts", &format!("# the two of us\n\n{first} slots=2\n{second}: slots=2\n"));
    workspace
}

/// A run on both hosts that is still at work after a few steps.
const LONG: [&str; 9] = [
    "train",
    "recipe.yaml",
    "-H",
    "hosts",
    "--quiet",
    "--set",
    "sequence_parallel_size=4",
    "--set",
    "train_iters=100_000",
];

/// Starts a run and returns when it has made a step, with what it has written so far.
fn start(mut command: Command) -> (Child, BufReader<ChildStderr>, String) {
    let mut launcher = command.spawn().unwrap();
    let mut stderr = BufReader::new(launcher.stderr.take().unwrap());
    let mut seen = String::new();
    while !seen.contains("Train iter:") {
        assert!(stderr.read_line(&mut seen).unwrap() > 0, "the run ended early:\n{seen}");
    }
    (launcher, stderr, seen)
}

/// The exit status of a run, and what it wrote that is no metrics, without the ranks' prefix.
fn end(mut launcher: Child, mut stderr: BufReader<ChildStderr>) -> (Option<i32>, String) {
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("Train iter:")).collect();
    (launcher.wait().unwrap().code(), lines.join("\n"))
}

fn losses(workspace: &Workspace) -> Vec<f64> {
    workspace.rows("metrics.jsonl").iter().map(|row| row["loss"].as_f64().unwrap()).collect()
}

fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_tests_of_two_hosts_need() {
    if let Some(reason) = what_is_missing() {
        say_skipped(&reason);
    }
}

/// What an agent says to a launcher that says `line` and leaves.
fn answer_of_agent(line: &str) -> String {
    let mut agent = Command::new(env!("CARGO_BIN_EXE_sterna"));
    agent.arg("agent").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut agent = agent.spawn().unwrap();
    writeln!(agent.stdin.take().unwrap(), "{line}").unwrap();
    let output = agent.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn an_agent_says_what_is_missing_or_different() {
    let workspace = Workspace::new();
    let prepare = |version: &str, dir: &str, recipe: &str| {
        let prepare =
            json!({"version": version, "dir": dir, "recipe": recipe, "fingerprint": "0123"});
        answer_of_agent(&json!({"prepare": prepare}).to_string())
    };
    let (version, dir) = (env!("CARGO_PKG_VERSION"), workspace.path("").display().to_string());
    let own = format!(r#"{{"refused":{{"version":{{"found":"{version}"}}}}}}"#);
    assert_eq!(prepare("9.9.9", &dir, "recipe.yaml"), own);
    assert_eq!(answer_of_agent(r#"{"prepare": {"version": "9.9.9", "else": []}}"#), own);
    let answers = [
        prepare(version, "/no/such/folder", "recipe.yaml"),
        prepare(version, &dir, "no.yaml"),
        prepare(version, &dir, "recipe.yaml"),
        answer_of_agent("hello"),
    ];
    assert_snapshot!(answers.join("\n"), @r#"
    {"refused":{"folder":{"reason":"No such file or directory (os error 2)"}}}
    {"refused":{"no_recipe":{"reason":"No such file or directory (os error 2)"}}}
    {"refused":{"other_recipe":{"found":"0f341307f512d14bdfcf7e8b2350bf6082b9dd475c3c4d11545ca2498aca7e79"}}}
    {"refused":{"other":{"reason":"the agent does not understand its launcher"}}}
    "#);
}

#[test]
fn ranks_on_two_hosts_train_as_on_one() {
    let Some(hosts) = Hosts::new() else { return };
    let split = ["--set", "sequence_parallel_size=4", "--set", "train_iters=4"];
    let one = workspace();
    let output = one.run(&[&["train", "recipe.yaml"], &split[..]].concat());
    assert!(output.status.success(), "{}", stderr_of(&output));
    let two = workspace();
    two.write(".deepspeed_env", "# for all ranks\n\nAT_LOG_LEVEL=INFO\n");
    let args = [&["train", "recipe.yaml", "-H", "hosts"], &split[..]].concat();
    let output = hosts.launcher(&two, &args).output().unwrap();
    let stderr = stderr_of(&output);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(losses(&two), losses(&one));

    let mut lines = stderr.lines();
    let announced: Vec<&str> = lines.by_ref().take(3).collect();
    assert_snapshot!(announced.join("\n"), @r"
    starting 4 ranks on 2 hosts:
      10.77.0.1: ranks 0 to 1
      10.77.0.2: ranks 2 to 3
    ");
    let lines: Vec<&str> = lines.collect();
    assert!(lines.iter().all(|line| line.starts_with("[rank ")), "{stderr}");
    assert!(
        lines.iter().any(|line| line.starts_with("[rank 0] Train iter: 4/4 100% | loss: ")),
        "{stderr}"
    );
    // Ranks of the second host have the variable of the file.
    assert!(lines.iter().any(|line| line.starts_with("[rank 2]  INFO ")), "{stderr}");
}

#[test]
fn interrupting_the_launcher_ends_ranks_on_both_hosts() {
    let Some(hosts) = Hosts::new() else { return };
    let workspace = workspace();
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGUSR1, 138)] {
        let (launcher, stderr, _) = start(hosts.launcher(&workspace, &LONG));
        // The launcher, an agent for each host, and four ranks.
        assert_eq!(hosts.processes().len(), 7);
        kill(Pid::from_raw(launcher.id().cast_signed()), signal).unwrap();
        let (found, text) = end(launcher, stderr);
        assert_eq!((found, text), (Some(code), format!("error: interrupted by {signal}")));
        hosts.await_end_of_processes(Duration::from_secs(45));
    }
}

/// A run that saves is asked to end by `ask`, in a process group of its own, and does so with `code` after a checkpoint.
fn saves_before_it_ends(signal: Signal, code: i32, ask: impl FnOnce(&Hosts, &Child)) {
    let Some(hosts) = Hosts::new() else { return };
    let workspace = workspace();
    let save = "checkpoint=[{type: sterna, output_dir: saved, save_every_n_steps: 100000, auto_resume: true}]";
    let mut launcher = hosts.launcher(&workspace, &[&LONG, &["--set", save][..]].concat());
    launcher.process_group(0);
    let (launcher, stderr, _) = start(launcher);
    ask(&hosts, &launcher);
    let (found, text) = end(launcher, stderr);
    assert_eq!(found, Some(code), "{text}");
    let expected =
        format!("error: interrupted by {signal}\n  caused by: stopped by SIGTERM after step ");
    assert!(text.contains(&expected), "{text}");
    assert!(workspace.path("saved").is_dir());
    hosts.await_end_of_processes(Duration::from_secs(45));
}

#[test]
fn ranks_that_save_do_so_before_control_c_ends_them() {
    // A terminal sends the signal to the whole group of the foreground job, and ssh must survive it.
    saves_before_it_ends(Signal::SIGINT, 130, |_, launcher| {
        killpg(Pid::from_raw(launcher.id().cast_signed()), Signal::SIGINT).unwrap();
    });
}

#[test]
fn ranks_that_save_do_so_when_every_process_of_the_job_is_asked_to_end() {
    // As a scheduler or a service manager does: launcher, the ssh of each host, agents and ranks.
    saves_before_it_ends(Signal::SIGTERM, 143, |hosts, launcher| {
        let of_launcher = crate::launch::children(launcher.id());
        let own = vec![launcher.id().cast_signed()];
        // Each once: a launcher that is asked again with the same signal ends its ranks at once.
        let all: BTreeSet<i32> =
            [own, of_launcher, hosts.processes()].concat().into_iter().collect();
        for pid in all {
            // One may be gone.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    });
}

#[test]
fn killing_the_launcher_ends_ranks_on_both_hosts() {
    let Some(hosts) = Hosts::new() else { return };
    let workspace = workspace();
    let (mut launcher, _stderr, _) = start(hosts.launcher(&workspace, &LONG));
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    hosts.await_end_of_processes(Duration::from_secs(45));
}

#[test]
fn killing_one_of_the_ranks_ends_the_others_and_names_it_and_its_host() {
    let Some(hosts) = Hosts::new() else { return };
    let workspace = workspace();
    let (launcher, stderr, _) = start(hosts.launcher(&workspace, &LONG));
    let is_rank_3 = |pid: &i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| entry == b"RANK=3")
    };
    let victim = hosts.processes().into_iter().find(is_rank_3).unwrap();
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    let (code, text) = end(launcher, stderr);
    assert_eq!(code, Some(1), "{text}");
    let error = "[rank 3 on 10.77.0.2] error: the process was ended by signal 9 (SIGKILL)\n";
    assert!(text.starts_with(error), "{text}");
    hosts.await_end_of_processes(Duration::from_secs(45));
}

#[test]
fn another_recipe_on_a_host_is_said() {
    let workspace = workspace();
    workspace.write("other.yaml", &crate::workspace::RECIPE.replace("1e-3", "2e-3"));
    let [other, recipe] =
        ["other.yaml", "recipe.yaml"].map(|name| workspace.path(name).display().to_string());
    let Some(hosts) = Hosts::with(&format!("mount --bind {other} {recipe}")) else { return };
    let args = ["train", "recipe.yaml", "-H", "hosts", "--quiet"];
    let output = hosts.launcher(&workspace, &args).output().unwrap();
    let folder = workspace.path("").display().to_string();
    let text = stderr_of(&output).replace(folder.trim_end_matches('/'), "[DIR]");
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert_snapshot!(text, @r"
    [10.77.0.2] error: the recipe `recipe.yaml` in `[DIR]` is another one: its SHA-256 is 4a67c890000249b5f46af8a3679ee5caa901267a3748a1333ec435498756d20d, required: 0f341307f512d14bdfcf7e8b2350bf6082b9dd475c3c4d11545ca2498aca7e79, as here

    hint: copy `recipe.yaml` to that host
    ");
    hosts.await_end_of_processes(Duration::from_secs(45));
}

#[test]
fn a_host_without_the_recipe_or_the_program_or_with_another_version_is_said() {
    let workspace = workspace();
    let folder = workspace.path("").display().to_string();
    let folder = folder.trim_end_matches('/');
    let program = env!("CARGO_BIN_EXE_sterna");
    let answer = r#"{"refused":{"version":{"found":"0.0.9"}}}"#;
    workspace.write("old", &format!("#!/bin/sh\necho '{answer}'\n"));
    workspace.write("none", "");
    let old = workspace.path("old");
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    let cases = [
        format!("mount -t tmpfs none {folder}"),
        format!("mount --bind {folder}/none {program}"),
        format!("mount --bind {folder}/old {program}"),
    ];
    let mut texts = Vec::new();
    for command in cases {
        let Some(hosts) = Hosts::with(&command) else { return };
        let args = ["train", "recipe.yaml", "-H", "hosts", "--quiet"];
        let output = hosts.launcher(&workspace, &args).output().unwrap();
        assert_ne!(output.status.code(), Some(0));
        let text = stderr_of(&output).replace(folder, "[DIR]").replace(program, "[STERNA]");
        // The causes are the words of the user's shell.
        let lines = text.lines().filter(|line| !line.starts_with("  caused by: "));
        texts.push(lines.collect::<Vec<_>>().join("\n"));
    }
    assert_snapshot!(texts.join("\n\n"), @r"
    [10.77.0.2] error: cannot read the recipe `recipe.yaml` in `[DIR]`: No such file or directory (os error 2)

    hint: put the recipe in a folder that all hosts share, or copy it to each

    [10.77.0.2] error: `[STERNA]` does not start there

    hint: install the same build on every host, at the same path; `ssh -o BatchMode=yes -p 2222 10.77.0.2 [STERNA] --version` shows what is wrong

    [10.77.0.2] error: `[STERNA]` there is sterna 0.0.9, required: 0.1.0, as here

    hint: install the same build on every host, at the same path
    ");
}

#[test]
fn a_host_that_cannot_be_reached_is_said() {
    let Some(hosts) = Hosts::new() else { return };
    let workspace = workspace();
    workspace.write("hosts", "10.77.0.1 slots=1\n10.77.0.9 slots=1\n");
    let output = hosts
        .launcher(&workspace, &["train", "recipe.yaml", "-H", "hosts", "--quiet"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_snapshot!(stderr_of(&output), @r"
    [10.77.0.9] error: ssh cannot reach the host
      caused by: ssh: connect to host 10.77.0.9 port 2222: No route to host

    hint: `ssh -o BatchMode=yes -p 2222 10.77.0.9 true` must work here without a question; see the hostfile, `--ssh_port` and ~/.ssh/config
    ");
}

#[test]
fn ranks_do_not_meet_where_only_the_first_host_is() {
    let Some(hosts) = Hosts::new() else { return };
    let workspace = workspace();
    workspace.write("hosts", "127.0.0.1 slots=1\n10.77.0.2 slots=1\n");
    let args = ["train", "recipe.yaml", "-H", "hosts", "--quiet"];
    let output = hosts.launcher(&workspace, &args).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_snapshot!(stderr_of(&output), @r"
    error: `127.0.0.1` is reached at 127.0.0.1, where the other hosts do not reach it

    hint: say with `--master_addr` by which address or name the other hosts reach the first, or write that into the hostfile instead of `127.0.0.1`
    ");
    let said = [&args[..], &["--master_addr", ADDRESSES[0]]].concat();
    let output = hosts.launcher(&workspace, &said).output().unwrap();
    assert!(output.status.success(), "{}", stderr_of(&output));
}

#[test]
fn ranks_of_hosts_that_start_their_own_meet() {
    let Some(hosts) = Hosts::new() else { return };
    let workspace = workspace();
    let args = "train recipe.yaml --num_nodes 2 --num_gpus 2 --set sequence_parallel_size=4";
    let args: Vec<&str> = args.split(' ').collect();
    // The first as a pod of Kubernetes, the second as users of the DeepSpeed launcher do.
    let mut first = hosts.sterna(0, &workspace, &args);
    first.envs([
        ("JOB_COMPLETION_INDEX", "0"),
        ("MASTER_ADDR", ADDRESSES[0]),
        ("MASTER_PORT", "29600"),
    ]);
    let second =
        ["--no_ssh", "--node_rank", "1", "--master_addr", ADDRESSES[0], "--master_port", "29600"];
    let mut second = hosts.sterna(1, &workspace, &[&args[..], &second].concat());
    let started = [first.spawn().unwrap(), second.spawn().unwrap()];
    let outputs = started.map(|child| child.wait_with_output().unwrap());
    let texts = outputs.each_ref().map(stderr_of);
    assert!(outputs.iter().all(|output| output.status.success()), "{texts:?}");
    assert!(texts[0].contains("Train iter: 2/2 100%"), "{}", texts[0]);
    assert_snapshot!(texts[1], @"starting 2 processes on this host, node 1 of 2: ranks 2 to 3 of 4, which meet at 10.77.0.1:29600");
}

#[test]
fn cutting_the_link_between_real_hosts_ends_all_ranks_and_names_the_peer() {
    let Some(hosts) = Hosts::new() else { return };
    // Started by our launcher, and by hand as torchrun would.
    let by_us = workspace();
    let mut launcher = hosts.launcher(&by_us, &LONG);
    launcher.env("DEEPSPEED_TIMEOUT", "1");
    let (launcher, launcher_stderr, _) = start(launcher);
    let by_hand = workspace();
    let rank = |rank: usize| {
        let args = [
            "train",
            "recipe.yaml",
            "--set",
            "sequence_parallel_size=2",
            "--set",
            "train_iters=100_000",
        ];
        let mut command = hosts.sterna(rank, &by_hand, &args);
        command.envs([("LOCAL_RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "1")]);
        command.envs([
            ("MASTER_ADDR", ADDRESSES[0]),
            ("MASTER_PORT", "29600"),
            ("DEEPSPEED_TIMEOUT", "1"),
        ]);
        command.env("RANK", rank.to_string());
        command
    };
    let second = rank(1).spawn().unwrap();
    let (first, first_stderr, _) = start(rank(0));

    hosts.cut_cable();
    let cut = Instant::now();
    let first = thread::spawn(move || end(first, first_stderr));
    let second = thread::spawn(move || second.wait_with_output().unwrap());
    let launcher = thread::spawn(move || end(launcher, launcher_stderr));
    // The time-out of collectives is a minute, and whoever is to blame is found out within seconds.
    hosts.await_end_of_processes(Duration::from_secs(140));
    let took = cut.elapsed();

    let (code, text) = launcher.join().unwrap();
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("10.77.0.2") || text.contains("rank `2`") || text.contains("rank `3`"),
        "{text}"
    );
    let (code, text) = first.join().unwrap();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("rank `1` has given no sign of life for"), "{text}");
    let text = stderr_of(&second.join().unwrap());
    assert!(
        text.contains("rank `0`, which serves the rendezvous store, is gone: it has not answered"),
        "{text}"
    );
    assert!(took > Duration::from_secs(50), "ended by something else after {took:?}");
}
