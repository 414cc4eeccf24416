//! Compiles `cpp/` and the cxx bridge against the libtorch that torch-sys found.
//!
//! Exports to crates that depend on this one directly (`links = "sterna_torch"`):
//! `DEP_STERNA_TORCH_LIBTORCH_LIB`, the folder of libtorch's shared libraries.
//! The run path of this crate's own tests, and of everybody else's binaries, is the business of `rpath/build.rs`.

use std::path::{Path, PathBuf};

#[path = "libtorch/build.rs"]
mod libtorch;
#[path = "rpath/build.rs"]
mod rpath;

const SOURCES: &[&str] = &[
    "cpp/attention.cc",
    "cpp/autograd.cc",
    "cpp/cuda_attention.cc",
    "cpp/device.cc",
    "cpp/device_books.cc",
    "cpp/kernels.cc",
    "cpp/memory.cc",
    "cpp/optimizer.cc",
    "cpp/process_group.cc",
    "cpp/random.cc",
    "cpp/rounding.cc",
    "cpp/store.cc",
    "cpp/streams.cc",
];

fn main() {
    let lib = libtorch::lib();
    let mut build = cxx_build::bridge("src/bridge.rs");
    libtorch::configure(&mut build, &lib);
    build
        // As libtorch, in debug builds too: what is computed per element would be a hundred times slower.
        .opt_level(3)
        // As the kernels are compiled: numbers that host and GPU both compute have the same bits.
        .flag("-ffp-contract=off")
        // Nobody reads it, and it keeps square roots out of vectors.
        .flag("-fno-math-errno")
        .file(libtorch::all_in_one(SOURCES))
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
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        build_nccl_library(&lib);
    }

    for file in ["cpp", "kernels", "src/bridge.rs", "build.rs"] {
        println!("cargo::rerun-if-changed={file}");
    }
    println!("cargo::metadata=LIBTORCH_LIB={}", lib.display());
    rpath::main();
}

/// Builds `cpp/cuda/nccl.cc` into `OUT_DIR/libsterna_nccl.so`, which the program carries in itself and loads beside `libtorch_cuda`.
///
/// It names `libtorch_cuda` and none of the libraries that come with that, so it links on a machine without a GPU.
fn build_nccl_library(lib: &Path) {
    let packages =
        lib.ancestors().nth(2).expect("libtorch's lib is two folders deep").join("nvidia");
    let headers = ["cu13/include", "cu13/include/cccl", "nccl/include"].map(|x| packages.join(x));
    for folder in &headers {
        assert!(
            folder.exists(),
            "`{}` is missing, and the feature `cuda` needs the headers in it: run `cargo xtask libtorch --cuda`, or set \
             LIBTORCH to the torch folder of a Python environment with torch 2.11.0+cu130",
            folder.display()
        );
    }
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut build = cc::Build::new();
    libtorch::configure(&mut build, lib);
    for folder in &headers {
        libtorch::system_include(&mut build, folder);
    }
    build.opt_level(2).define("USE_C10D_NCCL", None).file("cpp/cuda/nccl.cc");
    let library = out_dir.join("libsterna_nccl.so");
    libtorch::link_shared(&build, lib, &["torch_cuda", "torch_cpu", "c10"], &library);
}
