//! `sterna train` on several processes, ours or torchrun's, and what happens when one of them dies.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use insta::assert_snapshot;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::workspace::{Workspace, show};

/// A run that is still at work after a few steps, whatever happens to it.
const LONG: [&str; 9] = [
    "train",
    "recipe.yaml",
    "--num_gpus",
    "3",
    "--set",
    "sequence_parallel_size=3",
    "--set",
    "train_iters=100_000",
    "--quiet",
];

/// Processes whose parent is `parent`.
pub(crate) fn children(parent: u32) -> Vec<i32> {
    fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// The child of `launcher` that is rank `rank`.
fn child_of_rank(launcher: u32, rank: usize) -> i32 {
    let variable = format!("RANK={rank}");
    let is_rank = |pid: &i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
    };
    children(launcher).into_iter().find(is_rank).expect("the rank runs")
}

/// Starts a long run on three ranks and returns when it has made a step; what it has written so far is dropped.
fn start_long_run(workspace: &Workspace) -> (Child, BufReader<ChildStderr>) {
    start_long_run_with(workspace, |_| ())
}

fn start_long_run_with(
    workspace: &Workspace,
    change: impl FnOnce(&mut Command),
) -> (Child, BufReader<ChildStderr>) {
    let mut command = workspace.sterna(&LONG);
    change(&mut command);
    let mut launcher = command.spawn().unwrap();
    let mut stderr = BufReader::new(launcher.stderr.take().unwrap());
    let mut seen = String::new();
    while !seen.contains("Train iter:") {
        assert!(stderr.read_line(&mut seen).unwrap() > 0, "the run ended early:\n{seen}");
    }
    (launcher, stderr)
}

fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The end of a run, and what it wrote to stderr since.
fn end(mut launcher: Child, mut stderr: BufReader<ChildStderr>) -> (Option<i32>, String) {
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    (launcher.wait().unwrap().code(), text)
}

#[test]
fn three_ranks_train_as_one_does() {
    let workspace = Workspace::new();
    let losses = |args: &[&str]| -> Vec<f64> {
        let _ = fs::remove_file(workspace.path("metrics.jsonl"));
        let output = workspace.run(&[&["train", "recipe.yaml"], args].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        workspace.rows("metrics.jsonl").iter().map(|row| row["loss"].as_f64().unwrap()).collect()
    };
    // With overfit_first_batch, so that the sampler's dependence on the world size does not matter.
    let one = losses(&["--set", "overfit_first_batch=true"]);
    // 4 query heads and 2 kv heads on 3 ranks, by default one process for each rank that shares a sequence.
    let three = losses(&["--set", "overfit_first_batch=true", "--set", "sequence_parallel_size=3"]);
    assert_eq!(one.len(), 2);
    for (one, three) in one.iter().zip(&three) {
        assert!((one - three).abs() <= 1e-5 * one, "{one} on one rank, {three} on three");
    }
}

#[test]
fn killing_one_of_the_ranks_ends_the_run_and_names_it() {
    let workspace = Workspace::new();
    let (launcher, stderr) = start_long_run(&workspace);
    let start = Instant::now();
    kill(Pid::from_raw(child_of_rank(launcher.id(), 1)), Signal::SIGKILL).unwrap();
    let (code, text) = end(launcher, stderr);
    // Well below the time that a collective waits for a rank.
    assert!(start.elapsed() < Duration::from_mins(2), "{:?}", start.elapsed());
    assert_eq!(code, Some(1));
    let error = &text[text.find("[rank").unwrap_or(0)..];
    assert_snapshot!(error, @r"
    [rank 1] error: the process was ended by signal 9 (SIGKILL)

    hint: someone killed it, or the system did because memory ran out (`dmesg | grep -i oom` tells); `sterna check` shows what a rank needs
    ");
}

#[test]
fn interrupting_the_launcher_ends_all_ranks() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let workspace = Workspace::new();
        let (launcher, stderr) = start_long_run(&workspace);
        let ranks = children(launcher.id());
        assert_eq!(ranks.len(), 3);
        kill(Pid::from_raw(launcher.id().cast_signed()), signal).unwrap();
        let (found, text) = end(launcher, stderr);
        assert_eq!(found, Some(code), "{text}");
        assert!(text.ends_with(&format!("error: interrupted by {signal}\n")), "{text}");
        assert!(
            ranks.iter().all(|pid| kill(Pid::from_raw(*pid), None).is_err()),
            "a rank lives on"
        );
    }
}

#[test]
fn control_c_ends_launcher_and_ranks_as_one() {
    let workspace = Workspace::new();
    // A terminal sends the signal to the whole group of the foreground job.
    let (launcher, stderr) = start_long_run_with(&workspace, |command| {
        command.process_group(0);
    });
    killpg(Pid::from_raw(launcher.id().cast_signed()), Signal::SIGINT).unwrap();
    let (code, text) = end(launcher, stderr);
    assert_eq!(code, Some(130), "{text}");
    assert!(text.ends_with("error: interrupted by SIGINT\n"), "{text}");
}

#[test]
fn ranks_die_with_a_killed_launcher() {
    let workspace = Workspace::new();
    let (mut launcher, _stderr) = start_long_run(&workspace);
    let ranks = children(launcher.id());
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    // An orphan that has ended is a zombie until its new parent takes notice: its command line is empty then.
    let is_gone =
        |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().is_empty();
    wait_until("all ranks have ended", Duration::from_mins(1), || ranks.iter().all(is_gone));
}

#[test]
fn ranks_described_by_torchrun_start_nothing_and_meet() {
    let workspace = Workspace::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
        .to_string();
    let start = |rank: &str| {
        let mut command =
            workspace.sterna(&["train", "recipe.yaml", "--set", "sequence_parallel_size=2"]);
        command.envs([
            ("RANK", rank),
            ("LOCAL_RANK", rank),
            ("WORLD_SIZE", "2"),
            ("LOCAL_WORLD_SIZE", "2"),
        ]);
        command.envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port.as_str())]);
        command.spawn().unwrap()
    };
    let outputs: Vec<Output> =
        ["0", "1"].map(start).into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let stderrs = [0, 1].map(|rank| String::from_utf8_lossy(&outputs[rank].stderr).into_owned());
    assert!(outputs.iter().all(|output| output.status.success()), "{stderrs:?}");
    assert!(stderrs[0].contains("Train iter: 2/2 100%"), "{}", stderrs[0]);
    // Figures are printed once, by rank 0.
    assert!(!stderrs[1].contains("Train iter:"), "{}", stderrs[1]);
}

#[test]
fn ranks_that_see_other_data_do_not_train() {
    let workspace = Workspace::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = |rank: usize| {
        let seed = format!("data.seed={rank}");
        let mut command = workspace.sterna(&["train", "recipe.yaml", "--set", &seed]);
        for name in ["RANK", "LOCAL_RANK"] {
            command.env(name, rank.to_string());
        }
        command.envs([
            ("WORLD_SIZE", "2"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "127.0.0.1"),
        ]);
        command.env("MASTER_PORT", port.to_string());
        command.spawn().unwrap()
    };
    for child in [0, 1].map(start) {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{text}");
        assert!(
            text.contains("ranks `[1]` have another recipe, model or data than rank `0`"),
            "{text}"
        );
    }
}

#[test]
fn torchrun_and_num_gpus_may_not_disagree() {
    let workspace = Workspace::new();
    let mut command = workspace.sterna(&["train", "recipe.yaml", "--num_gpus", "4"]);
    command.envs([
        ("RANK", "0"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_WORLD_SIZE", "2"),
    ]);
    command.envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_snapshot!(String::from_utf8_lossy(&output.stderr), @r"
    error: `--num_gpus` is `4`, but this is one of `2` processes that a launcher has started on this host

    hint: leave `--num_gpus` out under torchrun, srun and mpirun, which say themselves how many processes they start
    ");
}

#[test]
fn a_rank_refuses_what_is_for_starting_ranks() {
    let workspace = Workspace::new();
    let refused = |args: &[&str]| {
        let mut command = workspace.sterna(&[&["train", "recipe.yaml"], args].concat());
        command.envs([
            ("RANK", "1"),
            ("LOCAL_RANK", "1"),
            ("WORLD_SIZE", "2"),
            ("LOCAL_WORLD_SIZE", "2"),
        ]);
        command.envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).lines().next().unwrap().to_owned()
    };
    let errors = [
        refused(&["--hostfile", "hosts"]),
        refused(&["--max-restarts", "2"]),
        refused(&["--local_rank", "0"]),
    ];
    assert_snapshot!(errors.join("\n"), @r"
    error: `--hostfile` is for starting ranks, but this process is rank `1` of `2`, as its launcher says
    error: `--max-restarts` is for starting ranks, but this process is rank `1` of `2`, as its launcher says
    error: `--local_rank` is `0`, but LOCAL_RANK is `1`
    ");
}

#[test]
fn an_error_that_all_ranks_meet_is_said_once() {
    let workspace = Workspace::new();
    fs::remove_file(workspace.path("model/model.safetensors")).unwrap();
    let output =
        workspace.run(&["train", "recipe.yaml", "--quiet", "--set", "sequence_parallel_size=2"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.matches("error:").count(), 1, "{text}");
    assert_eq!(output.status.code(), Some(2), "{text}");
}

#[test]
fn a_world_that_the_sequence_cannot_be_split_over_starts_nothing() {
    let args = ["train", "recipe.yaml", "--num_gpus", "3", "--set", "sequence_parallel_size=2"];
    assert_snapshot!(Workspace::new().show(&args), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: `sequence_parallel_size` `2` does not divide the `3` ranks of this run, required: a number of ranks that is a multiple of it
     --> --set
      |
      | sequence_parallel_size=2
      |                        ^
      = hint: start 4 ranks, or set `sequence_parallel_size` to a divisor of 3

    1 error in `recipe.yaml`
    ");
}

#[test]
fn arguments_that_contradict_each_other_or_the_hosts_start_nothing() {
    let workspace = Workspace::new();
    workspace.write("hosts", "node-1 slots=2\nnode-2 slots=2\n");
    let refused = |args: &str| {
        let args: Vec<&str> = ["train", "recipe.yaml"].into_iter().chain(args.split(' ')).collect();
        let output = workspace.run(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("\n\nhint: "), "{text}");
        text.lines().next().unwrap().to_owned()
    };
    let errors = [
        "-H no-hosts",
        "-H recipe.yaml",
        "-H hosts --num_nodes 3",
        "-H hosts --num_gpus 3",
        "-H hosts --include node-3",
        "-H hosts --include node-1 --exclude node-2",
        "-H hosts --include node-1 --num_gpus 1",
        "-H hosts --no_ssh",
        "-H hosts --node_rank 1",
        "-H hosts --no_ssh --node_rank 2",
        "--exclude localhost:0",
        "--num_nodes 2",
        "--num_nodes 2 --num_gpus 1",
        "--num_nodes 2 --num_gpus 1 --no_ssh --node_rank 0",
        "--local_rank 1",
        "--num_gpus 2 --max-restarts 1",
    ]
    .map(refused);
    assert_snapshot!(errors.join("\n"), @r"
    error: cannot read the hostfile `no-hosts`: No such file or directory (os error 2)
    error: recipe.yaml:1: found `type: sft`, required: a host and its slots, such as `node-1 slots=8`
    error: `--num_nodes` is `3`, but there are `2` hosts
    error: `--num_gpus` is `3`, but `node-1` has `2` slots
    error: `--include` names the host `node-3`, the hosts are: node-1, node-2
    error: `--include` and `--exclude` contradict each other
    error: `--include` and `--exclude` choose slots themselves, and take neither `--num_nodes` nor `--num_gpus`
    error: `--no_ssh` needs `--node_rank`: which of the hosts is this
    error: `--node_rank` is for `--no_ssh`: without that, this command starts the ranks of all hosts
    error: `--node_rank` is `2`, required: a number below `2`, the number of hosts
    error: `--exclude` needs a hostfile, which says how many slots there are
    error: `--num_nodes` without a hostfile needs `--num_gpus`
    error: `--num_nodes` is `2`, but nothing says which hosts these are
    error: `--master_addr` is missing: ranks of several hosts must know where to meet
    error: `--local_rank` is `1`, but nothing says that this process is a rank
    error: `--max-restarts` needs a checkpoint to go on from, and the recipe has none with `auto_resume`
    ");
}

#[test]
fn what_would_be_started_is_shown_without_secrets() {
    let workspace = Workspace::new();
    workspace.write("hosts", "node-1 slots=1\nme@node-2: slots=2\n");
    workspace.write(".deepspeed_env", "export NCCL_DEBUG=WARN\nMY_API_KEY=hunter2\n");
    let mut command = workspace.sterna(&[
        "launch",
        "recipe.yaml",
        "--print",
        "-H",
        "hosts",
        "--set",
        "logger.output_dir=my logs",
    ]);
    command.env("HF_TOKEN", "hunter2");
    let output = command.output().unwrap();
    let text = show(&output, Path::new(env!("CARGO_BIN_EXE_sterna")).parent().unwrap());
    assert_snapshot!(text, @r"
    exit status: 0
    ----- stdout -----
    # node-1: rank 0 of 3
    ssh -T -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=12 -o ServerAliveCountMax=4 -- node-1 'exec [DIR]/sterna agent'
    #   HF_HUB_OFFLINE=1
    #   HF_TOKEN='***'
    #   MY_API_KEY='***'
    #   NCCL_DEBUG=WARN
    #   OMP_NUM_THREADS=1
    #   RANK=0 LOCAL_RANK=0 WORLD_SIZE=3 LOCAL_WORLD_SIZE=1 MASTER_ADDR=<address of node-1> MASTER_PORT=<free port> TORCHELASTIC_RESTART_COUNT=0 [DIR]/sterna train recipe.yaml --device auto --set 'logger.output_dir=my logs'
    # me@node-2: ranks 1 to 2 of 3
    ssh -T -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=12 -o ServerAliveCountMax=4 -- me@node-2 'exec [DIR]/sterna agent'
    #   HF_HUB_OFFLINE=1
    #   HF_TOKEN='***'
    #   MY_API_KEY='***'
    #   NCCL_DEBUG=WARN
    #   OMP_NUM_THREADS=1
    #   RANK=1 LOCAL_RANK=0 WORLD_SIZE=3 LOCAL_WORLD_SIZE=2 MASTER_ADDR=<address of node-1> MASTER_PORT=<free port> TORCHELASTIC_RESTART_COUNT=0 [DIR]/sterna train recipe.yaml --device auto --set 'logger.output_dir=my logs'
    #   RANK=2 LOCAL_RANK=1 WORLD_SIZE=3 LOCAL_WORLD_SIZE=2 MASTER_ADDR=<address of node-1> MASTER_PORT=<free port> TORCHELASTIC_RESTART_COUNT=0 [DIR]/sterna train recipe.yaml --device auto --set 'logger.output_dir=my logs'
    ----- stderr -----
    ");
    assert_snapshot!(workspace.show(&["launch", "recipe.yaml", "--print", "--include", "localhost:1,3"]).replace(env!("CARGO_BIN_EXE_sterna"), "[STERNA]"), @r"
    exit status: 0
    ----- stdout -----
    # here: ranks 0 to 1 of 2
    RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=<free port> TORCHELASTIC_RESTART_COUNT=0 CUDA_VISIBLE_DEVICES=1,3 [STERNA] train recipe.yaml --device auto
    RANK=1 LOCAL_RANK=1 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=<free port> TORCHELASTIC_RESTART_COUNT=0 CUDA_VISIBLE_DEVICES=1,3 [STERNA] train recipe.yaml --device auto
    ----- stderr -----
    ");
}

#[test]
fn ranks_of_a_run_with_restarts_go_on_where_they_were() {
    let train = |workspace: &Workspace, change: &[&str]| {
        let save = "checkpoint=[{type: sterna, output_dir: ckpt, save_every_n_steps: 5, auto_resume: true}]";
        let args = [
            "train",
            "recipe.yaml",
            "--num_gpus",
            "2",
            "--quiet",
            "--set",
            save,
            "--set",
            "train_iters=60",
        ];
        workspace.sterna(&[&args[..], change].concat())
    };
    let whole = Workspace::new();
    assert!(train(&whole, &[]).output().unwrap().status.success());

    let workspace = Workspace::new();
    let mut launcher = train(&workspace, &["--max-restarts", "1"]).spawn().unwrap();
    let mut stderr = BufReader::new(launcher.stderr.take().unwrap());
    let mut seen = String::new();
    while !seen.contains("Train iter: 12/60") {
        assert!(stderr.read_line(&mut seen).unwrap() > 0, "the run ended early:\n{seen}");
    }
    kill(Pid::from_raw(child_of_rank(launcher.id(), 1)), Signal::SIGKILL).unwrap();
    let (code, text) = end(launcher, stderr);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains(
            "restart 1 of 1: [rank 1] error: the process was ended by signal 9 (SIGKILL)\n"
        ),
        "{text}"
    );
    let last =
        |workspace: &Workspace| workspace.rows("metrics.jsonl").pop().unwrap()["loss"].clone();
    assert_eq!(last(&workspace), last(&whole));
}

/// As many ranks as GPUs that the driver's library shows, and the variable lets be seen.
#[cfg(feature = "cuda")]
#[test]
fn a_rank_is_started_on_each_gpu() {
    let workspace = Workspace::new();
    let library = Path::new(sterna_fake_cuda::NVML).parent().unwrap();
    let num_ranks = |visible: Option<&str>, args: &[&str]| {
        let args = [&["launch", "recipe.yaml", "--print"], args].concat();
        let mut command = workspace.sterna(&args);
        command.env("LD_LIBRARY_PATH", library).env("STERNA_FAKE_NUM_GPUS", "4");
        match visible {
            Some(visible) => command.env("CUDA_VISIBLE_DEVICES", visible),
            None => command.env_remove("CUDA_VISIBLE_DEVICES"),
        };
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        text.matches(" LOCAL_RANK=").count()
    };
    assert_eq!(num_ranks(None, &[]), 4);
    assert_eq!(num_ranks(Some("1,3"), &[]), 2);
    assert_eq!(num_ranks(Some("GPU-00000000-0000-0000-0000-000000000002"), &[]), 1);
    // Not to be on a GPU, or told how many: as without one.
    assert_eq!(num_ranks(Some(""), &[]), 1);
    assert_eq!(num_ranks(None, &["--device", "cpu"]), 1);
    assert_eq!(num_ranks(None, &["--num_gpus", "3"]), 3);
}
