//! `sterna` as users start it: finds libtorch, and becomes `sterna-engine`, the program beside it that is linked to libtorch.
//!
//! The loader of the system would end a program that it finds no libtorch for before its first line, with a message for people
//! who build programs. This one is linked to nothing but the C library, so it can look further, and say in words what is missing.
//! Libraries read their variables as they are loaded, so what these should be is set here as well.

mod libtorch;

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtorch::{Found, Places};

/// The program that does the work.
const ENGINE: &str = "sterna-engine";

/// Where the loader looks first.
const LOADER_PATH: &str = "LD_LIBRARY_PATH";

/// How often a thread of libtorch's pool looks for work before it sleeps.
///
/// libgomp's own number is 300,000, which is milliseconds: on a busy machine they are taken from the threads that it waits for. To
/// sleep at once costs a quarter of a step on an idle machine (docs/benchmarks/).
const SPIN_COUNT: (&str, &str) = ("GOMP_SPINCOUNT", "10000");

/// Variables with which a user decides it; libgomp reads them before the engine's first line.
const WAITING: [&str; 2] = [SPIN_COUNT.0, "OMP_WAIT_POLICY"];

/// The status of a mistake in how the program was started or installed.
const WRONG_USE: u8 = 2;

fn main() -> ExitCode {
    // Nothing below returns but what is wrong.
    let wrong = match program_folder() {
        Ok(folder) => start(&folder),
        Err(error) => format!("cannot find this program's own file: {error}"),
    };
    let _ = writeln!(io::stderr(), "error: {wrong}");
    ExitCode::from(WRONG_USE)
}

/// Becomes the engine; returns why it could not.
fn start(folder: &Path) -> String {
    let engine = folder.join(ENGINE);
    let mut arguments = env::args_os();
    let own_name = arguments.next().unwrap_or_else(|| OsString::from("sterna"));
    let mut command = Command::new(&engine);
    command.arg0(own_name).args(arguments);
    if WAITING.iter().all(|name| env::var_os(name).is_none()) {
        command.env(SPIN_COUNT.0, SPIN_COUNT.1);
    }
    // A build without LIBTORCH was linked to libraries of the system, which its loader finds.
    if let Some(built_with) = option_env!("LIBTORCH") {
        let places = Places {
            variable: env::var_os("LIBTORCH").filter(|value| !value.is_empty()).map(PathBuf::from),
            loader_path: env::var_os(LOADER_PATH).unwrap_or_default(),
            beside: folder.join("../libtorch/torch"),
            built_with: PathBuf::from(built_with),
            python: OsString::from("python3"),
        };
        match places.find() {
            Ok(Found::ByLoader) => {}
            Ok(Found::At(torch)) => {
                command.env(LOADER_PATH, prepended(&torch.lib(), &places.loader_path));
                if torch.is_for_cpu() && Path::new("/dev/nvidiactl").exists() {
                    let _ = writeln!(io::stderr(), "note: {}", torch.note_for_gpu());
                }
            }
            Err(wrong) => return wrong,
        }
    }
    let error = command.exec();
    format!(
        "cannot start `{}`, which belongs beside this program: {error}\n\nhint: install both files of the build, `sterna` and `{ENGINE}`",
        engine.display()
    )
}

/// `folder` before the folders that are there, unless it is the first of them already.
fn prepended(folder: &Path, path: &OsStr) -> OsString {
    if path.is_empty() || env::split_paths(path).next().is_some_and(|first| first == folder) {
        return if path.is_empty() { folder.into() } else { path.to_owned() };
    }
    let mut all = folder.as_os_str().to_owned();
    all.push(":");
    all.push(path);
    all
}

/// The folder of this file, symbolic links resolved, so that a link to it in a folder of programs works.
fn program_folder() -> io::Result<PathBuf> {
    let own = env::current_exe()?;
    Ok(own.parent().map(Path::to_owned).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_put_before_the_others_once() {
        let folder = Path::new("/torch/lib");
        for (before, after) in [
            ("", "/torch/lib"),
            ("/a", "/torch/lib:/a"),
            ("/a:/torch/lib", "/torch/lib:/a:/torch/lib"),
            ("/torch/lib:/a", "/torch/lib:/a"),
        ] {
            assert_eq!(prepended(folder, OsStr::new(before)), OsStr::new(after));
        }
    }
}
