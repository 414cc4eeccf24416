//! Everything that must hold before a change is merged, cheapest first.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::{demo, inputs, libtorch, stage, tidy};

/// The variable that decides how a CPU multiplies bf16.
const BF16_PRODUCTS: &str = "STERNA_BF16_PRODUCTS";

/// What computes in bf16, as nextest selects it.
const BF16_TESTS: &str = "(package(sterna-ops) | package(sterna-model) | package(sterna-train)) & \
    test(/half|weight_gradients|streamed|golden|bf16|memory::|timeline|places_change_nothing|a_resumed_run_in_one_process/)";

/// Runs all checks, or only the tests that a filter selects, or with `--large` those that are too large for every day.
///
/// Two builds in all: clippy and rustdoc share all metadata, tests and doctests share the compiled crates. Both are the dev
/// profile, whose dependencies are optimised a little: a release build would cost CI more than it saves, since the tensor work is
/// libtorch's in every profile. What computes in bf16 is tested once more with each way to multiply it, so that every path is tested
/// whatever the processor.
///
/// # Errors
///
/// The first stage that fails.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let start = Instant::now();
    let (large, filter): (Vec<&String>, Vec<&String>) =
        args.iter().partition(|arg| *arg == "--large");
    if !large.is_empty() {
        if !filter.is_empty() {
            bail!("`--large` selects the tests itself and takes no filter");
        }
        return run_large(root);
    }
    let only_tests = !filter.is_empty();
    if !only_tests {
        stage::stage("format", || {
            stage::run(stage::cargo(root).args(["fmt", "--all", "--check"]))
        })?;
        stage::stage("tidy", || tidy::run(root))?;
    }
    let (features, real_inputs) = stage::stage("libtorch and real inputs", || {
        let torch = libtorch::install(root, libtorch::Flavor::Cpu)?;
        Ok((features(&torch), inputs::fetch(root)?))
    })?;
    if !only_tests {
        stage::stage("lints", || {
            let mut clippy = stage::cargo(root);
            clippy.args(["clippy", "--workspace", "--all-targets", "--locked", "--quiet"]);
            stage::run(clippy.args(features).args(["--", "-D", "warnings"]))
        })?;
        stage::stage("docs", || {
            let mut doc = stage::cargo(root);
            doc.args(["doc", "--workspace", "--no-deps", "--locked", "--quiet"])
                .args(features)
                .envs(clippy_environment(root)?)
                .env("RUSTDOCFLAGS", "-D warnings");
            stage::run(&mut doc)
        })?;
    }
    let tests = |args: &[&str]| {
        let mut command = stage::cargo(root);
        command
            .args(args)
            .args(["--workspace", "--locked"])
            .args(features)
            .env(inputs::VARIABLE, &real_inputs);
        // One thread for each process: deterministic, and polite where several ranks share few cores.
        if std::env::var_os("OMP_NUM_THREADS").is_none() {
            command.env("OMP_NUM_THREADS", "1");
        }
        command
    };
    stage::stage("tests", || {
        if has_nextest(root) {
            return stage::run(tests(&["nextest", "run"]).args(&filter));
        }
        // No benchmarks, and one test at a time: there are no groups to keep multi-rank tests apart.
        let mut command = tests(&["test", "--lib", "--bins", "--tests"]);
        stage::run(command.env("RUST_TEST_THREADS", "1").args(&filter))
    })?;
    if !only_tests && !has_nextest(root) {
        println!("without nextest, bf16 is tested with this processor's way to multiply it only");
    } else if !only_tests {
        for products in ["bf16", "fp32"] {
            stage::stage(&format!("tests of bf16, products in {products}"), || {
                let mut command = tests(&["nextest", "run"]);
                command.args(["--filterset", BF16_TESTS]).env(BF16_PRODUCTS, products);
                stage::run(&mut command)
            })?;
        }
    }
    if !only_tests {
        stage::stage("the calls of a leased GPU, tiny", || lease(root, features))?;
        stage::stage("doctests", || stage::run(&mut tests(&["test", "--doc", "--quiet"])))?;
    }
    println!("all passed in {}", stage::seconds(start.elapsed()));
    Ok(())
}

/// Both calls of `run.sh lease` at tiny sizes, on the CPU where there is no GPU: that each step runs, and leaves what a report needs.
fn lease(root: &Path, features: &[&str]) -> Result<()> {
    let mut build = stage::cargo(root);
    stage::run(
        build.args(["build", "--workspace", "--bins", "--locked", "--quiet"]).args(features),
    )?;
    let target = demo::target_directory(root)?;
    let out = target.join("lease-tiny");
    if out.exists() {
        std::fs::remove_dir_all(&out)?;
    }
    let suite = root.join("tools/sterna-suite");
    for call in ["lease", "lease-2"] {
        let mut command = Command::new(target.join("debug/sterna-suite"));
        command.args(["run", call, "--tiny", "--out"]).arg(&out);
        for folder in ["inputs", "baselines", "contracts"] {
            command.arg(format!("--{folder}")).arg(suite.join(folder));
        }
        stage::run(command.arg("--sterna").arg(target.join("debug/sterna")))?;
    }
    Ok(())
}

/// What `cargo clippy` sets for cargo, so that rustdoc takes the metadata of our crates that it left: cargo keeps apart what another
/// compiler made, and would build all of them, C++ included, once more.
fn clippy_environment(root: &Path) -> Result<[(&'static str, String); 2]> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let sysroot =
        stage::output(Command::new(rustc).current_dir(root).args(["--print", "sysroot"]))?;
    let driver = Path::new(sysroot.trim()).join("bin/clippy-driver");
    Ok([
        ("RUSTC_WORKSPACE_WRAPPER", driver.display().to_string()),
        ("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__".to_owned()),
    ])
}

/// What is built: NCCL too, where libtorch has what that needs.
fn features(torch: &Path) -> &'static [&'static str] {
    if libtorch::has_cuda(torch) {
        return &["--features", "cuda"];
    }
    println!("the feature `cuda` is left out: `cargo xtask libtorch --cuda` fetches what it needs");
    &[]
}

/// Runs the tests whose names contain `large` and which are ignored elsewhere, one at a time: tensors of more than 2^31 elements.
fn run_large(root: &Path) -> Result<()> {
    libtorch::install(root, libtorch::Flavor::Cpu)?;
    stage::stage("large tests", || {
        let mut command = stage::cargo(root);
        command.args(["test", "-p", "sterna-model", "--test", "it", "--locked", "--", "large"]);
        stage::run(command.args(["--ignored", "--test-threads", "1"]))
    })
}

/// cargo-nextest is faster and isolates each test in a process; `cargo test` does where it is not installed.
fn has_nextest(root: &Path) -> bool {
    let mut probe: Command = stage::cargo(root);
    probe.args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}
