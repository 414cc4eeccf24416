//! The build script of every crate that links libtorch: it writes libtorch's folder into the crate's binaries.
//!
//! Link arguments do not travel from a library to the binaries that use it, so each package that produces an executable
//! (a test counts) names this file as its build script: `build = "../sterna-torch-sys/rpath/build.rs"`,
//! from `tools/` `build = "../../crates/sterna-torch-sys/rpath/build.rs"`.
//! The run path has two entries, in this order:
//!
//! 1. `$ORIGIN/../libtorch/torch/lib`, the place in an installed tree: `libtorch`, unpacked from its wheels, beside `bin`;
//! 2. `$LIBTORCH/lib` as it was at build time, resolved to an absolute path, which is what a checkout needs.
//!
//! libtorch's own run path leads it to its CUDA libraries, so no `LD_LIBRARY_PATH` is needed. The program `sterna` sets that for
//! its engine where neither place has libtorch (`sterna/src/start/main.rs`).

use std::path::Path;

pub(crate) fn main() {
    println!("cargo::rerun-if-changed=../../crates/sterna-torch-sys/rpath/build.rs");
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../libtorch/torch/lib");
    // Without LIBTORCH, torch-sys has found a libtorch in the system's own library path, which needs no run path.
    if let Some(libtorch) = std::env::var_os("LIBTORCH") {
        let lib = Path::new(&libtorch).join("lib");
        let lib = lib
            .canonicalize()
            .unwrap_or_else(|error| panic!("LIBTORCH has no folder `{}`: {error}", lib.display()));
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }
}
