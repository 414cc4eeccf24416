//! Programs that start where the C library is older than here.
//!
//! A program asks for each function of the C library in the version that the library had where it was linked. zig knows the functions and
//! versions of every glibc, and its linker takes those of the one that is named. Only the link is done with it: the objects are those of
//! the compilers that build everything else, and the C++ library stays the one that libtorch shares.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::stage;

/// The oldest C library that libtorch's own wheel starts with.
pub(crate) const GLIBC: (u32, u32) = (2, 28);

/// The package of pip that is zig.
const ZIG: &str = "ziglang==0.13.0";

/// Where it goes, from the workspace root.
const FOLDER: &str = ".sterna/zig";

/// Stands in for the linker: takes what rustc gives a `cc`.
///
/// `-lstdc++` would be zig's own C++ library, and libgomp is named by its file, which zig looks for elsewhere. libgcc has what
/// `target_clones` asks the processor with. The C++ headers here ask whether there is one thread only, which an older C library does not
/// answer: the answer is no, so that counters are counted as among threads.
const LINKER: &str = r#"#!/usr/bin/env bash
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
arguments=() folders=() previous=
for argument in "$@"; do
    [[ $previous == -L ]] && folders+=("$argument")
    [[ $argument == -L?* ]] && folders+=("${argument#-L}")
    previous=$argument
done
openmp=
for folder in "${folders[@]}"; do
    [[ -e $folder/libgomp.so.1 ]] && openmp=$folder/libgomp.so.1 && break
done
for argument in "$@"; do
    case $argument in
    -lstdc++) arguments+=("$(c++ -print-file-name=libstdc++.so)") ;;
    -lgomp | -l:libgomp.so.1) arguments+=("${openmp:?"no folder of the link has libgomp.so.1"}") ;;
    -Wl,-Bstatic | -Wl,-Bdynamic) ;;
    *) arguments+=("$argument") ;;
    esac
done
export PYTHONPATH=$here
exec python3 -m ziglang cc -target x86_64-linux-gnu.VERSION "${arguments[@]}" "$here/one_thread.c" \
    "$(c++ -print-libgcc-file-name)" -Wl,--allow-shlib-undefined
"#;

const ONE_THREAD: &str = "char __libc_single_threaded;\n";

/// Fetches zig, and returns the linker that [`build`] takes.
///
/// # Errors
///
/// When pip cannot fetch it or a file not be written.
pub(crate) fn linker(root: &Path) -> Result<PathBuf> {
    let folder = root.join(FOLDER);
    if !folder.join("ziglang").is_dir() {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]);
        stage::run(pip.arg("--target").arg(&folder).arg(ZIG))?;
    }
    // rustc takes the kind of a linker from its name.
    let linker = folder.join("cc");
    let (major, minor) = GLIBC;
    let text = LINKER.replace("VERSION", &format!("{major}.{minor}"));
    let write = || -> std::io::Result<()> {
        fs::write(&linker, text)?;
        fs::set_permissions(&linker, fs::Permissions::from_mode(0o755))?;
        fs::write(folder.join("one_thread.c"), ONE_THREAD)
    };
    write().with_context(|| format!("cannot write to `{}`", folder.display()))?;
    Ok(linker)
}

/// Builds a program in release and links it with `linker`.
///
/// # Errors
///
/// A build that fails.
pub(crate) fn build(
    root: &Path,
    linker: &Path,
    package: &str,
    program: &str,
    features: &str,
) -> Result<()> {
    let mut cargo = stage::cargo(root);
    cargo.args(["rustc", "--release", "--locked", "--package", package, "--bin", program]);
    cargo.args(["--features", features, "--", "-C"]);
    // Of this program only: other artefacts are those of the ordinary build.
    stage::run(cargo.arg(format!("linker={}", linker.display())))
}

/// Makes sure that `program` asks for no version of the C library above [`GLIBC`].
///
/// # Errors
///
/// What it asks for beyond it.
pub(crate) fn check(program: &Path) -> Result<()> {
    let symbols = stage::output(Command::new("objdump").arg("-T").arg(program))?;
    let newer = newer_than(GLIBC, &symbols);
    if !newer.is_empty() {
        let (major, minor) = GLIBC;
        bail!(
            "`{}` needs a C library newer than {major}.{minor}: {}",
            program.display(),
            newer.join(", ")
        );
    }
    Ok(())
}

/// The symbols of `objdump -T` that are of a newer version, with it. A weak one may be missing.
fn newer_than(version: (u32, u32), symbols: &str) -> Vec<String> {
    let is_newer = |line: &&str| {
        let found = line.split_once("(GLIBC_").and_then(|(_, rest)| rest.split_once(')'));
        let mut numbers = found.map(|(text, _)| text.split('.').map(str::parse::<u32>));
        let mut next = || numbers.as_mut()?.next()?.ok();
        match (next(), next()) {
            (Some(major), Some(minor)) => (major, minor) > version && !line.contains("  w  "),
            _ => false,
        }
    };
    let shown = |line: &str| line.split_whitespace().rev().take(2).collect::<Vec<_>>().join(" ");
    symbols.lines().filter(is_newer).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_version_is_found_and_a_weak_symbol_is_none() {
        let symbols = "\
0000000000000000      DF *UND*	0000000000000000 (GLIBC_2.34) dlsym
0000000000000000      DF *UND*	0000000000000000 (GLIBC_2.2.5) memcpy
0000000000000000      DF *UND*	0000000000000000 (GLIBC_2.28) renameat2
0000000000000000  w   DF *UND*	0000000000000000 (GLIBC_2.30) gettid
0000000000000000      DF *UND*	0000000000000000 (GLIBCXX_3.4.29) _ZSt28__throw_bad_array_new_lengthv
";
        assert_eq!(newer_than((2, 28), symbols), ["dlsym (GLIBC_2.34)"]);
        assert!(newer_than((2, 34), symbols).is_empty());
    }
}
