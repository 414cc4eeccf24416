//! NCCL in a world of one: every collective, what its time limit does, and an abort. One card is all that it needs; ranks that share a
//! card go through Gloo, which `equal` runs.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use sterna_bench::process::{self, End, Limits, Ranks};
use sterna_torch_sys::c10d::{ProcessGroup, ReduceOp, Store, Work};
use sterna_torch_sys::cuda;
use tch::{Device, Kind, Tensor};

use crate::context::Context;
use crate::record::{Findings, Table};

/// What is checked, each in a process of its own: the second ends with the process.
const CHECKS: [(&str, &str, u64); 3] = [
    (
        "collectives",
        "every collective of one rank gives what it was given, in bf16, fp32 and int64",
        20,
    ),
    ("time-out", "an operation beyond the time limit of its group ends the process", 25),
    ("abort", "an abort from another thread ends what is under way", 20),
];

/// The time limit of the group that is to reach it.
const SHORT: Duration = Duration::from_secs(2);

/// How long the device is kept busy before an operation that is not to end in time.
const BUSY: Duration = Duration::from_secs(6);

/// Runs the checks.
///
/// # Errors
///
/// When the program cannot be started.
pub fn run(context: &Context) -> Result<Findings> {
    let mut findings = Findings::default();
    if !context.device.is_cuda() {
        findings.skipped = Some("it needs a GPU".to_owned());
        return Ok(findings);
    }
    let folder = context.out.join("runs/nccl");
    std::fs::create_dir_all(&folder)?;
    let mut table = Table::new(&["what", "result", "s"]);
    let mut data = Vec::new();
    for (name, what, seconds) in CHECKS {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["nccl", name]);
        // Before it ends the process, the watchdog waits four times so long for a dump that nobody asked for: a minute by default.
        command.env("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "250");
        let log = folder.join(format!("{name}.txt"));
        let limit = Duration::from_secs(seconds).min(context.time_left());
        let limits = Limits { least_available: 0, time: Some(limit) };
        let watched = process::watch(&mut command, Ranks::Itself, &log, limits)?;
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let (is_right, result) = match (name, &watched.end) {
            // NCCL's watchdog throws where nobody catches: the process has to end, and say why.
            ("time-out", End::Failed(_)) if said.contains("timeout") => {
                (true, "the watchdog ended the process, and said of its time limit".to_owned())
            }
            ("time-out", end) => (false, format!("not ended by its time limit: {end}")),
            (_, End::Done) => (true, said.lines().last().unwrap_or("done").to_owned()),
            (_, end) => (false, end.to_string()),
        };
        if !is_right {
            findings.fail(&format!("{name}: {result}"));
        }
        let seconds = watched.wall.as_secs_f64();
        data.push(
            json!({"check": name, "is_right": is_right, "result": result, "seconds": seconds}),
        );
        table.rows.push(vec![what.to_owned(), result, format!("{seconds:.1}")]);
    }
    findings.tables = vec![table];
    findings.data = json!(data);
    Ok(findings)
}

/// Runs a check by its name, in this process: `collectives`, `time-out` or `abort`.
///
/// # Errors
///
/// What is wrong.
pub fn check(name: &str) -> Result<String> {
    cuda::load()?;
    cuda::set_device(0)?;
    match name {
        "collectives" => collectives(),
        "time-out" => time_out(),
        "abort" => abort(),
        _ => bail!("no check is named `{name}`"),
    }
}

fn group(timeout: Duration) -> Result<ProcessGroup> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("a port of this machine")?;
    let store = Store::serve(listener, Duration::from_secs(10))?;
    Ok(ProcessGroup::nccl(&store, 0, 1, timeout)?)
}

fn collectives() -> Result<String> {
    let group = group(Duration::from_secs(15))?;
    let device = Device::Cuda(0);
    let done = |work: std::result::Result<Work, sterna_torch_sys::Error>| -> Result<()> {
        ensure!(work?.wait_for(Duration::from_secs(10))?, "an operation does not end");
        Ok(())
    };
    for kind in [Kind::BFloat16, Kind::Float, Kind::Int64] {
        let given = Tensor::arange(96, (kind, device));
        let is_given = |what: &str, found: &Tensor| {
            ensure!(found.equal(&given), "{what} in {kind:?} changes what one rank has");
            Ok(())
        };
        let empty = || given.zeros_like();
        for op in [ReduceOp::Sum, ReduceOp::Max] {
            let reduced = given.copy();
            done(group.all_reduce(&reduced, op))?;
            is_given("all_reduce", &reduced)?;
        }
        let (gathered, scattered, exchanged, sent) = (empty(), empty(), empty(), given.copy());
        done(group.all_gather_into_tensor(&gathered, &given))?;
        is_given("all_gather_into_tensor", &gathered)?;
        done(group.reduce_scatter_tensor(&scattered, &given, ReduceOp::Sum))?;
        is_given("reduce_scatter_tensor", &scattered)?;
        done(group.all_to_all_single(&exchanged, &given, &[96], &[96]))?;
        is_given("all_to_all_single", &exchanged)?;
        done(group.broadcast(&sent, 0))?;
        is_given("broadcast", &sent)?;
    }
    done(group.barrier())?;
    tch::Cuda::synchronize(0);
    Ok("7 collectives in 3 dtypes".to_owned())
}

/// Gives the device products to compute for about so long, and returns at once.
fn keep_busy(duration: Duration) -> Tensor {
    // A tenth of a second each on an H200: the launch queue holds a thousand, and a host that waits for room in it is not ahead.
    let random = || Tensor::randn([32_768, 32_768], (Kind::BFloat16, Device::Cuda(0)));
    let (a, b) = (random(), random());
    let mut product = a.mm(&b);
    tch::Cuda::synchronize(0);
    let started = Instant::now();
    product = product.mm(&b);
    tch::Cuda::synchronize(0);
    let count =
        (duration.as_secs_f64() / started.elapsed().as_secs_f64()).ceil().min(500.0) as usize;
    for _ in 0..count {
        product = a.mm(&b);
    }
    product
}

/// Ends the process, if it is right.
fn time_out() -> Result<String> {
    let group = group(SHORT)?;
    let x = Tensor::ones([1024], (Kind::Float, Device::Cuda(0)));
    // The first one connects.
    let _ = group.all_reduce(&x, ReduceOp::Sum)?.wait_for(SHORT)?;
    tch::Cuda::synchronize(0);
    let _product = keep_busy(BUSY);
    let _ = group.all_reduce(&x, ReduceOp::Sum)?.wait_for(SHORT)?;
    std::thread::sleep(Duration::from_mins(1));
    bail!("the process has outlived the time limit of its group");
}

fn abort() -> Result<String> {
    let group = group(Duration::from_mins(1))?;
    let x = Tensor::ones([1024], (Kind::Float, Device::Cuda(0)));
    let _ = group.all_reduce(&x, ReduceOp::Sum)?.wait_for(SHORT)?;
    tch::Cuda::synchronize(0);
    let _product = keep_busy(BUSY);
    let work = group.all_reduce(&x, ReduceOp::Sum)?;
    let other = group.shared()?;
    let started = Instant::now();
    let aborted = std::thread::spawn(move || other.abort());
    let outcome =
        aborted.join().map_err(|_| anyhow::anyhow!("the thread that aborts has panicked"))?;
    outcome?;
    let seconds = started.elapsed().as_secs_f64();
    drop(work);
    ensure!(seconds < 10.0, "an abort took {seconds:.1} s");
    Ok(format!("aborted within {seconds:.2} s"))
}
