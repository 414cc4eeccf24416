//! Compiles `cpp/` to a shared library that is loaded in place of `libtorch_cuda.so`, against the libtorch that torch-sys found.
//!
//! Its path is `STERNA_FAKE_CUDA_LIBRARY` in the crate's environment.

use std::path::{Path, PathBuf};

#[path = "../sterna-torch-sys/rpath/build.rs"]
mod rpath;

const SOURCES: &[&str] = &["cpp/device.cc", "cpp/fallback.cc", "cpp/memory.cc"];

fn main() {
    let lib = PathBuf::from(
        std::env::var_os("DEP_TCH_LIBTORCH_LIB")
            .expect("torch-sys exports the folder of libtorch's libraries"),
    );
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let include = lib.parent().expect("libtorch's lib folder has a parent").join("include");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .pic(true)
        .files(SOURCES)
        .include("cpp")
        .flag("-Wall")
        .flag("-Wextra")
        .flag("-Werror")
        // libtorch's headers are not ours to keep free of warnings.
        .flag(format!("-isystem{}", include.display()))
        .flag(format!("-isystem{}", include.join("torch/csrc/api/include").display()))
        .define("_GLIBCXX_USE_CXX11_ABI", "1");
    // The name under which libtorch's own library would be opened: the dynamic linker then takes this one, which is loaded already.
    let library = out.join("libtorch_cuda.so");
    link(&build, &build.compile_intermediates(), &lib, &library);

    println!("cargo::rustc-env=STERNA_FAKE_CUDA_LIBRARY={}", library.display());
    for file in ["cpp", "build.rs"] {
        println!("cargo::rerun-if-changed={file}");
    }
    rpath::main();
}

/// Links `objects` to the shared library `library`.
fn link(build: &cc::Build, objects: &[PathBuf], lib: &Path, library: &Path) {
    let name = library.file_name().expect("the library has a name").display();
    let status = build
        .get_compiler()
        .to_command()
        .arg("-shared")
        .args(objects)
        .arg(format!("-Wl,-soname,{name}"))
        .arg(format!("-Wl,-rpath,{}", lib.display()))
        .arg("-L")
        .arg(lib)
        .args(["-ltorch_cpu", "-lc10", "-o"])
        .arg(library)
        .status()
        .expect("the compiler runs, as it has just compiled");
    assert!(status.success(), "linking `{}` failed: {status}", library.display());
}
