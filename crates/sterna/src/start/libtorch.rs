//! Where libtorch is on this machine, and whether it is the one that Sterna is built for.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The release whose headers the engine was compiled with; C++ promises nothing between two.
const RELEASE: &str = "2.11.0";

/// The build of that release whose CUDA libraries fit the engine's.
const CUDA_BUILD: &str = "cu130";

/// The build of that release without CUDA.
const CPU_BUILD: &str = "cpu";

/// A library that every libtorch has.
const LIBRARY: &str = "libtorch_cpu.so";

/// Prints the folder of the package `torch` without importing it, which takes seconds. The empty entry of the path is the current
/// folder, in which anything may be called `torch`.
const QUESTION: &str = "
import importlib.util, os, sys
sys.path = [entry for entry in sys.path if entry]
spec = importlib.util.find_spec('torch')
if spec and spec.origin:
    sys.stdout.buffer.write(os.fsencode(os.path.dirname(spec.origin)))
";

/// Where libtorch is looked for, in this order.
#[derive(Debug)]
pub(crate) struct Places {
    /// `LIBTORCH`: the user's own choice, a folder with `lib` in it.
    pub(crate) variable: Option<PathBuf>,
    /// `LD_LIBRARY_PATH`, in which the loader looks before everything below.
    pub(crate) loader_path: OsString,
    /// The place in an installed tree.
    pub(crate) beside: PathBuf,
    /// What the engine was linked with.
    pub(crate) built_with: PathBuf,
    /// The interpreter whose `torch` serves if nothing else does.
    pub(crate) python: OsString,
}

/// A libtorch that fits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The loader finds it by itself.
    ByLoader,
    /// The loader must be told where it is.
    At(Torch),
}

/// A folder of libtorch, its version checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Torch {
    folder: PathBuf,
    version: String,
}

impl Torch {
    /// Its shared libraries.
    pub(crate) fn lib(&self) -> PathBuf {
        self.folder.join("lib")
    }

    /// Whether it has no CUDA.
    pub(crate) fn is_for_cpu(&self) -> bool {
        build_of(&self.version) == Some(CPU_BUILD)
    }

    /// What to say of one without CUDA where there is a GPU.
    pub(crate) fn note_for_gpu(&self) -> String {
        format!(
            "`{}` is torch {}, which computes on the CPU only; for the GPU of this machine install torch {RELEASE}+{CUDA_BUILD}",
            self.folder.display(),
            self.version
        )
    }
}

impl Places {
    /// The first libtorch there is.
    ///
    /// # Errors
    ///
    /// What to tell the user: the first one found is another version, or there is none.
    pub(crate) fn find(&self) -> Result<Found, String> {
        if let Some(folder) = &self.variable {
            if !has_library(&folder.join("lib")) {
                return Err(format!(
                    "LIBTORCH is `{}`, and there is no `lib/{LIBRARY}` in it\n\nhint: unset it, or set it to the folder of libtorch {RELEASE}",
                    folder.display()
                ));
            }
            let origin = "LIBTORCH";
            return checked(folder, origin, "unset it, or set it to the one that Sterna needs")
                .map(Found::At);
        }
        if env::split_paths(&self.loader_path).any(|folder| has_library(&folder)) {
            return Ok(Found::ByLoader);
        }
        for folder in [&self.beside, &self.built_with] {
            if has_library(&folder.join("lib")) {
                let hint = "put the one there that Sterna was built with";
                return checked(folder, "libtorch of this installation", hint)
                    .map(|_| Found::ByLoader);
            }
        }
        let python = self.python.display();
        let install = format!("`{python} -m pip install torch=={RELEASE}`");
        match ask(&self.python) {
            Ok(folder) => {
                checked(&folder, &format!("the torch of `{python}`"), &install).map(Found::At)
            }
            Err(reason) => Err(format!(
                "there is no libtorch {RELEASE}: it is not in `{}`, not in `{}`, and {reason}\n\n\
                 hint: {install} brings it; or set LIBTORCH to the torch folder of a Python environment that has it",
                self.beside.display(),
                self.built_with.display()
            )),
        }
    }
}

fn has_library(lib: &Path) -> bool {
    lib.join(LIBRARY).exists()
}

/// `folder` as a libtorch that fits, or why it does not.
fn checked(folder: &Path, origin: &str, hint: &str) -> Result<Torch, String> {
    let shown = folder.display();
    let Some(version) = version_of(folder) else {
        return Err(format!(
            "{origin}, `{shown}`, has neither version.py nor build-version, so it is not known to be {RELEASE}\n\nhint: {hint}"
        ));
    };
    let release = version.split('+').next().unwrap_or_default();
    let fits = release == RELEASE
        && build_of(&version).is_none_or(|build| [CUDA_BUILD, CPU_BUILD].contains(&build));
    if !fits {
        return Err(format!(
            "{origin}, `{shown}`, is version `{version}`, required: `{RELEASE}+{CUDA_BUILD}`, or `{RELEASE}+{CPU_BUILD}` without a \
             GPU\n\nhint: {hint}"
        ));
    }
    Ok(Torch { folder: folder.to_owned(), version })
}

/// What stands behind the plus: for which device it was built. Builds from source have none.
fn build_of(version: &str) -> Option<&str> {
    version.split_once('+').map(|(_, build)| build)
}

/// The version that a wheel writes into version.py, and an archive of libtorch into build-version.
fn version_of(folder: &Path) -> Option<String> {
    if let Ok(text) = fs::read_to_string(folder.join("version.py")) {
        let line = text.lines().find_map(|line| line.strip_prefix("__version__"))?;
        return line.split(['\'', '"']).nth(1).map(str::to_owned);
    }
    let text = fs::read_to_string(folder.join("build-version")).ok()?;
    Some(text.trim().to_owned())
}

/// Where an interpreter has torch, or why it has none.
fn ask(python: &OsStr) -> Result<PathBuf, String> {
    let shown = python.display();
    let output = Command::new(python)
        .args(["-c", QUESTION])
        .output()
        .map_err(|error| format!("`{shown}` cannot be started: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.trim().lines().last().unwrap_or_default().to_owned();
        return Err(format!(
            "`{shown}` could not be asked for its torch ({}): {last}",
            output.status
        ));
    }
    let folder = PathBuf::from(OsStr::from_bytes(output.stdout.trim_ascii()));
    if folder.as_os_str().is_empty() {
        return Err(format!("`{shown}` has no torch"));
    }
    if !has_library(&folder.join("lib")) {
        return Err(format!(
            "the torch of `{shown}`, `{}`, has no `lib/{LIBRARY}`",
            folder.display()
        ));
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A folder that looks like an installed wheel.
    fn wheel(folder: &Path, version: &str) {
        fs::create_dir_all(folder.join("lib")).unwrap();
        fs::write(folder.join("lib").join(LIBRARY), "").unwrap();
        fs::write(folder.join("__init__.py"), "raise ImportError('torch was imported')").unwrap();
        fs::write(folder.join("version.py"), format!("__version__ = '{version}'\n")).unwrap();
    }

    /// Nothing is anywhere, but for an interpreter that is not there.
    fn nowhere(root: &Path) -> Places {
        Places {
            variable: None,
            loader_path: OsString::new(),
            beside: root.join("libtorch/torch"),
            built_with: root.join("build/torch"),
            python: root.join("python3").into(),
        }
    }

    fn interpreter(path: &Path, script: &str) {
        fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_first_place_that_has_it_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let mut places = nowhere(dir.path());
        let site = dir.path().join("site/torch");
        wheel(&site, "2.11.0+cu130");
        interpreter(&dir.path().join("python3"), &format!("printf %s '{}'", site.display()));
        let at = |folder: &Path, version: &str| {
            Ok(Found::At(Torch { folder: folder.to_owned(), version: version.to_owned() }))
        };
        assert_eq!(places.find(), at(&site, "2.11.0+cu130"));
        wheel(&places.built_with, "2.11.0+cu130");
        assert_eq!(places.find(), Ok(Found::ByLoader));
        // What the user names wins, and is refused rather than passed over.
        places.variable = Some(dir.path().join("own"));
        assert!(places.find().unwrap_err().contains("no `lib/libtorch_cpu.so` in it"));
        let own = dir.path().join("own");
        wheel(&own, "2.11.0");
        assert_eq!(places.find(), at(&own, "2.11.0"));
        places.variable = None;
        // The loader would take these before its run path, whatever they are.
        fs::remove_dir_all(&places.built_with).unwrap();
        places.loader_path =
            env::join_paths([Path::new("/nonexistent"), &own.join("lib")]).unwrap();
        assert_eq!(places.find(), Ok(Found::ByLoader));
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let site = dir.path().join("site/torch");
        wheel(&site, "2.11.0+cu130");
        interpreter(&dir.path().join("python3"), &format!("printf %s '{}'", site.display()));
        let places = nowhere(dir.path());
        for (version, fits) in [
            ("2.11.0+cu130", true),
            ("2.11.0+cpu", true),
            ("2.11.0", true),
            ("2.10.0+cu130", false),
            ("2.11.0+cu128", false),
            ("2.11.1", false),
        ] {
            wheel(&site, version);
            let found = places.find();
            assert_eq!(found.is_ok(), fits, "{version}: {found:?}");
            if let Err(wrong) = &found {
                assert!(wrong.contains(&format!("is version `{version}`")), "{wrong}");
                assert!(wrong.contains("pip install torch==2.11.0"), "{wrong}");
            }
            if let Ok(Found::At(torch)) = &found {
                assert_eq!(torch.is_for_cpu(), version.ends_with("+cpu"));
            }
        }
    }

    #[test]
    fn what_an_interpreter_lacks_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let places = nowhere(dir.path());
        assert!(places.find().unwrap_err().contains("cannot be started"));
        let python = dir.path().join("python3");
        interpreter(&python, "exit 0");
        assert!(places.find().unwrap_err().contains("python3` has no torch"));
        interpreter(&python, "echo 'SyntaxError: odd' >&2; exit 1");
        assert!(places.find().unwrap_err().contains("SyntaxError: odd"));
        interpreter(&python, &format!("printf %s '{}'", dir.path().display()));
        assert!(places.find().unwrap_err().contains("has no `lib/libtorch_cpu.so`"));
    }

    /// The question itself, to a real interpreter: torch is found where its path says, without being imported, and not in the
    /// current folder.
    #[test]
    fn a_real_interpreter_finds_torch_without_importing_it() {
        let dir = tempfile::tempdir().unwrap();
        let real = Command::new("python3").arg("--version").output();
        if !real.is_ok_and(|output| output.status.success()) {
            return;
        }
        let site = dir.path().join("site");
        let here = dir.path().join("here");
        wheel(&site.join("torch"), "2.11.0+cu130");
        wheel(&here.join("torch"), "1.0");
        let python = dir.path().join("python3");
        interpreter(
            &python,
            &format!(
                "cd '{}' && PYTHONPATH='{}' exec python3 \"$@\"",
                here.display(),
                site.display()
            ),
        );
        assert_eq!(ask(python.as_os_str()), Ok(site.join("torch")));
    }
}
