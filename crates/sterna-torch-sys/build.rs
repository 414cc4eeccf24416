//! Compiles `cpp/` and the cxx bridge against the libtorch that torch-sys found.
//!
//! Exports to crates that depend on this one directly (`links = "sterna_torch"`):
//! `DEP_STERNA_TORCH_LIBTORCH_LIB`, the folder of libtorch's shared libraries.
//! The run path of this crate's own tests, and of everybody else's binaries, is the business of `rpath/build.rs`.

use std::path::PathBuf;

#[path = "rpath/build.rs"]
mod rpath;

const SOURCES: &[&str] = &[
    "cpp/attention.cc",
    "cpp/autograd.cc",
    "cpp/memory.cc",
    "cpp/optimizer.cc",
    "cpp/process_group.cc",
    "cpp/rounding.cc",
    "cpp/store.cc",
];

fn main() {
    let lib = PathBuf::from(
        std::env::var_os("DEP_TCH_LIBTORCH_LIB")
            .expect("torch-sys exports the folder of libtorch's libraries"),
    );
    let include = lib.parent().expect("libtorch's lib folder has a parent").join("include");

    let mut build = cxx_build::bridge("src/bridge.rs");
    build
        .std("c++17")
        // As libtorch, in debug builds too: what is computed per element would be a hundred times slower.
        .opt_level(3)
        .files(SOURCES)
        .include("cpp")
        .flag("-Wall")
        .flag("-Wextra")
        .flag("-Werror")
        // libtorch's headers are not ours to keep free of warnings.
        .flag(format!("-isystem{}", include.display()))
        .flag(format!("-isystem{}", include.join("torch/csrc/api/include").display()))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // c10d's headers are empty without it.
        .define("USE_C10D_GLOO", None);
    // libtorch's thread pool is OpenMP's, and there must be one of it: the library that lies beside libtorch.
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        let openmp = lib.join("libgomp.so.1");
        assert!(
            openmp.exists(),
            "`{}` is missing, and a second OpenMP library beside libtorch's would fight it for threads: \
             use the libtorch of `cargo xtask libtorch`",
            openmp.display()
        );
        build.flag("-fopenmp");
        println!("cargo::rustc-link-search=native={}", lib.display());
        println!("cargo::rustc-link-lib=dylib:+verbatim=libgomp.so.1");
    }
    build.compile("sterna_torch");

    for file in ["cpp", "src/bridge.rs", "build.rs"] {
        println!("cargo::rerun-if-changed={file}");
    }
    println!("cargo::metadata=LIBTORCH_LIB={}", lib.display());
    rpath::main();
}
