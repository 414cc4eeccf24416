//! The reference, arctic-training over DeepSpeed and PyTorch, in a virtual environment of its own.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::stage;

/// Where the environment is, from the workspace root.
const HOME: &str = ".sterna/reference";

/// Packages that depend on torch, and what torch's CUDA build links, without their dependencies: triton, cuSOLVER and the CUDA
/// compiler would come too (1 GB), and a run on the CPU opens none of them.
const ALONE: [&str; 17] = [
    "arctic-training==0.8.0",
    "deepspeed==0.19.8",
    "peft==0.19.1",
    "accelerate==1.15.0",
    "torch==2.11.0",
    "nvidia-cublas==13.1.0.3",
    "nvidia-cuda-cupti==13.0.85",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cudnn-cu13==9.19.0.56",
    "nvidia-cufft==12.0.0.61",
    "nvidia-cufile==1.15.1.6",
    "nvidia-curand==10.4.0.35",
    "nvidia-cusparse==12.6.3.3",
    "nvidia-cusparselt-cu13==0.8.0",
    "nvidia-nccl-cu13==2.28.9",
    "nvidia-nvjitlink==13.0.88",
    "nvidia-nvshmem-cu13==3.4.5",
];

/// Everything else that a run imports, with dependencies.
const WHOLE: [&str; 27] = [
    "transformers==4.57.6",
    "datasets==5.0.1",
    "devtools",
    "einops",
    "filelock",
    "fsspec",
    "hjson",
    "jinja2",
    "jsonlines",
    "loguru",
    "msgpack",
    "networkx",
    "ninja",
    "numpy",
    "nvidia-ml-py",
    "packaging",
    "psutil",
    "py-cpuinfo",
    "pydantic>=2.10",
    "pyyaml",
    "safetensors",
    "setuptools<82",
    "sympy",
    "tabulate",
    "tqdm",
    "typing-extensions>=4.10",
    "wandb",
];

/// DeepSpeed compiles its C++ parts when they are first used; doing it here keeps that out of the first run, and shows early when
/// a compiler or Python's headers are missing.
const COMPILE: &str = "\
from deepspeed.ops.op_builder import CPUAdamBuilder
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
CPUAdamBuilder().load()
ShareMemCommBuilder().load()
";

/// The versions that a run will use, as JSON.
const VERSIONS: &str = "\
import importlib.metadata, json, platform
names = ['arctic-training', 'deepspeed', 'torch', 'transformers', 'datasets', 'accelerate', 'peft']
print(json.dumps({'python': platform.python_version()} | {n: importlib.metadata.version(n) for n in names}))
";

/// The reference reads folders of Arrow files, not of JSON lines.
const TO_ARROW: &str = "\
import datasets, json, sys
rows = [json.loads(line) for line in open(sys.argv[1], encoding='utf-8')]
datasets.Dataset.from_list(rows).save_to_disk(sys.argv[2])
";

/// An environment that can run the reference.
pub(super) struct Reference {
    venv: PathBuf,
    /// Package and version.
    pub(super) versions: Value,
}

/// Makes sure that the environment is there: `own`, or one that is installed under the workspace root.
///
/// # Errors
///
/// No python3, no module `venv`, a failed download or compilation, or an environment of one's own without the packages.
pub(super) fn install(root: &Path, own: Option<&Path>) -> Result<Reference> {
    let venv = match own {
        Some(own) => {
            let own = std::path::absolute(own)?;
            if !own.join("bin/arctic_training_run").is_file() {
                bail!(
                    "`{}` lacks `bin/arctic_training_run`: it is no virtual environment with arctic-training",
                    own.display()
                );
            }
            own
        }
        None => make(root)?,
    };
    let mut reference = Reference { venv, versions: Value::Null };
    // Nothing to do but for an environment that has not run yet.
    let compiled = reference.python(1).args(["-c", COMPILE]).output()?;
    if !compiled.status.success() {
        bail!(
            "DeepSpeed's C++ parts do not build, which needs a C++ compiler and Python's headers (on Debian: apt install g++ python3-dev): {}",
            last_line(&compiled.stderr)
        );
    }
    let versions = stage::output(reference.python(1).args(["-c", VERSIONS]))?;
    reference.versions =
        serde_json::from_str(&versions).context("the packages' versions are not JSON")?;
    println!("reference is in {}", reference.venv.display());
    Ok(reference)
}

/// Installs into a folder that is marked complete at the end.
fn make(root: &Path) -> Result<PathBuf> {
    let venv = root.join(HOME);
    let mark = venv.join("complete");
    let packages = [ALONE.join("\n"), WHOLE.join("\n")].join("\n");
    if fs::read_to_string(&mark).is_ok_and(|found| found == packages) {
        return Ok(venv);
    }
    println!("reference: downloading about 2 GB into {} (4 GB unpacked; once)", venv.display());
    let output = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv).output();
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) => bail!(
            "python3 makes no virtual environment (on Debian: apt install python3-venv): {}",
            last_line(&[output.stdout, output.stderr].concat())
        ),
        Err(err) => {
            bail!("the reference is a Python program, and python3 cannot be started: {err}")
        }
    }
    let reference = Reference { venv: venv.clone(), versions: Value::Null };
    let pip = || {
        let mut pip = reference.python(1);
        pip.args(["-m", "pip", "--disable-pip-version-check", "install", "--quiet"]);
        pip.env("PIP_USER", "0");
        pip
    };
    stage::run(pip().args(WHOLE))
        .and_then(|()| stage::run(pip().arg("--no-deps").args(ALONE)))
        .context("the reference was not installed")?;
    fs::write(&mark, packages).with_context(|| format!("cannot write `{}`", mark.display()))?;
    Ok(venv)
}

impl Reference {
    /// The command that trains `recipe` in one process on the CPU.
    ///
    /// # Errors
    ///
    /// When no port is free for the rendezvous of that one process with itself.
    pub(super) fn train(&self, recipe: &Path, threads: usize) -> Result<Command> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = self.python(threads);
        command.arg(self.venv.join("bin/arctic_training_run")).arg("--config").arg(recipe);
        command.envs([
            ("RANK", "0"),
            ("LOCAL_RANK", "0"),
            ("WORLD_SIZE", "1"),
            ("LOCAL_SIZE", "1"),
            ("MASTER_ADDR", "127.0.0.1"),
        ]);
        command.env("MASTER_PORT", port.to_string());
        Ok(command)
    }

    /// Writes the chats of `folder` beside it as Arrow, if they are not there, and returns that folder.
    ///
    /// # Errors
    ///
    /// When the script fails.
    pub(super) fn to_arrow(&self, folder: &Path) -> Result<PathBuf> {
        let arrow = folder.with_extension("arrow");
        // Written last.
        if arrow.join("state.json").is_file() {
            return Ok(arrow);
        }
        let mut script = self.python(1);
        script.args(["-c", TO_ARROW]).arg(folder.join("train.jsonl")).arg(&arrow);
        let output = script.output()?;
        if !output.status.success() {
            bail!("the chats were not written as Arrow: {}", last_line(&output.stderr));
        }
        Ok(arrow)
    }

    /// The environment's python, with what DeepSpeed needs on a CPU.
    fn python(&self, threads: usize) -> Command {
        let bin = self.venv.join("bin");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(bin.clone()).chain(std::env::split_paths(&path));
        let mut python = Command::new(bin.join("python"));
        // ninja, which compiles, is found by PATH.
        if let Ok(path) = std::env::join_paths(paths) {
            python.env("PATH", path);
        }
        python.envs([
            ("DS_ACCELERATOR", "cpu"),
            ("HF_HUB_OFFLINE", "1"),
            ("WANDB_MODE", "disabled"),
            ("TOKENIZERS_PARALLELISM", "false"),
        ]);
        python.env("TORCH_EXTENSIONS_DIR", self.venv.join("extensions"));
        python.env("HF_HOME", self.venv.join("huggingface"));
        python.env("OMP_NUM_THREADS", threads.to_string());
        python
    }
}

/// The last line that says something.
fn last_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
}
