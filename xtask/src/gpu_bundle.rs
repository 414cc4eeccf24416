//! One folder that proves and measures Sterna on a machine with a GPU that has nothing of ours: `bash run.sh` there does the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use sterna_bench::machine;

use crate::libtorch::Flavor;
use crate::{demo, libtorch, portable, stage};

/// Where the bundle goes, from the workspace root.
const BUNDLE: &str = ".sterna/gpu-bundle";

/// The crate of the suite, from the workspace root.
const SUITE: &str = "tools/sterna-suite";

/// What a bundle must stay under, bytes: machines are reached over slow lines.
const MOST_BYTES: u64 = 45_000_000;

/// Python packages that the baselines need and the machine may lack, as wheels for its Python 3.12. pydantic's two halves fit each other
/// only in these versions.
const WHEELS: [&str; 6] = [
    "liger-kernel==0.8.5",
    "hjson==3.1.0",
    "pydantic==2.14.3",
    "pydantic-core==2.50.4",
    "annotated-types==0.8.0",
    "typing-inspection==0.4.5",
];

/// Published as source only: built here, without its compiled ops, which nothing of the suite calls.
const DEEPSPEED: &str = "deepspeed==0.19.8";

/// Builds everything and says how large it is.
///
/// # Errors
///
/// A build or a copy that fails, or a bundle of 45 MB or more. A wheel that cannot be had is a warning: the report will say that the baseline
/// was not run.
pub(crate) fn run(root: &Path) -> Result<()> {
    stage::stage("libtorch", || libtorch::install(root, Flavor::Cuda).map(drop))?;
    let binaries =
        stage::stage("build sterna and its suite (release; 10 minutes the first time)", || {
            build(root)
        })?;
    let bundle = root.join(BUNDLE);
    // A file that is no longer made would still be carried.
    if bundle.exists() {
        fs::remove_dir_all(&bundle)
            .with_context(|| format!("cannot remove `{}`", bundle.display()))?;
    }
    stage::stage("programs, inputs and scripts", || copy(root, &binaries, &bundle))?;
    stage::stage("Python packages of the baselines", || {
        wheels(&bundle.join("wheels"));
        Ok(())
    })?;
    let bytes = size(&bundle)?;
    println!("{} is {:.1} MB", bundle.display(), bytes as f64 / 1e6);
    if bytes >= MOST_BYTES {
        bail!("a bundle must stay under {} MB", MOST_BYTES / 1_000_000);
    }
    println!(
        "Copy it to a machine with a GPU and a python3 with torch 2.11.0+cu130, and there: bash run.sh, or bash run.sh lease"
    );
    Ok(())
}

/// Package, program and features of a bundle's programs: the first becomes the second.
const PROGRAMS: [(&str, &str, &str); 3] = [
    ("sterna", "sterna", "cuda"),
    ("sterna", "sterna-engine", "cuda"),
    ("sterna-suite", "sterna-suite", "sterna-train/cuda"),
];

/// Builds the programs and returns where they are.
fn build(root: &Path) -> Result<[PathBuf; 3]> {
    let linker = portable::linker(root)?;
    let folder = demo::target_directory(root)?.join("release");
    for (package, program, features) in PROGRAMS {
        portable::build(root, &linker, package, program, features)?;
        portable::check(&folder.join(program))?;
    }
    Ok(PROGRAMS.map(|(_, program, _)| folder.join(program)))
}

fn copy(root: &Path, binaries: &[PathBuf], bundle: &Path) -> Result<()> {
    let bin = bundle.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot make `{}`", bin.display()))?;
    for binary in binaries {
        let name = binary.file_name().context("a program has a name")?;
        // Comes with every C++ compiler; without symbols a program is a ninth as large.
        stage::run(Command::new("strip").arg("-o").arg(bin.join(name)).arg(binary))?;
    }
    let suite = root.join(SUITE);
    for name in ["run.sh", "inputs", "baselines", "contracts"] {
        copy_all(&suite.join(name), &bundle.join(name))?;
    }
    let facts = machine::facts(root);
    let made = json!({"commit": facts["commit"], "date": facts["date"]});
    fs::write(bundle.join("bundle.json"), format!("{made:#}\n"))?;
    Ok(())
}

/// Copies a file, or a folder with all that is in it.
fn copy_all(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        fs::copy(from, to).with_context(|| format!("cannot copy `{}`", from.display()))?;
        return Ok(());
    }
    fs::create_dir_all(to).with_context(|| format!("cannot make `{}`", to.display()))?;
    let entries =
        fs::read_dir(from).with_context(|| format!("cannot read `{}`", from.display()))?;
    for entry in entries {
        let entry = entry?;
        // What running the script here leaves.
        if entry.file_name() != "__pycache__" {
            copy_all(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Fetches the wheels, each on its own, so that one that is not to be had costs only its baseline.
fn wheels(folder: &Path) {
    for package in WHEELS {
        let mut pip = pip("download", folder);
        pip.args(["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]);
        pip.args(["--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64"]);
        warn(&mut pip, package);
    }
    let mut pip = pip("wheel", folder);
    // Its script looks for a compiler of CUDA otherwise.
    pip.envs([("DS_BUILD_OPS", "0"), ("DS_ACCELERATOR", "cpu")]);
    warn(&mut pip, DEEPSPEED);
}

fn pip(what: &str, folder: &Path) -> Command {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--disable-pip-version-check", what, "--quiet", "--no-deps"]);
    pip.arg(if what == "wheel" { "--wheel-dir" } else { "--dest" }).arg(folder);
    pip
}

fn warn(pip: &mut Command, package: &str) {
    if let Err(err) = stage::run(pip.arg(package)) {
        println!("    {package} is left out, and the report will say so: {err}");
    }
}

/// Bytes of all files.
fn size(path: &Path) -> Result<u64> {
    if !path.is_dir() {
        return Ok(path.metadata()?.len());
    }
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        bytes += size(&entry?.path())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_copied_without_what_python_leaves() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::create_dir_all(from.join("a/__pycache__")).unwrap();
        fs::write(from.join("a/baseline.py"), "12345").unwrap();
        fs::write(from.join("a/__pycache__/baseline.pyc"), "1").unwrap();
        let to = folder.path().join("to");
        copy_all(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("a/baseline.py")).unwrap(), "12345");
        assert_eq!(size(&to).unwrap(), 5);
    }
}
