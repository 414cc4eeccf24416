//! Compiles `cpp/` and the cxx bridge against the libtorch that torch-sys found.
//!
//! Exports to crates that depend on this one directly (`links = "sterna_torch"`):
//! `DEP_STERNA_TORCH_LIBTORCH_LIB`, the folder of libtorch's shared libraries.
//! The run path of this crate's own tests, and of everybody else's binaries, is the business of `rpath/build.rs`.

use std::path::{Path, PathBuf};

#[path = "rpath/build.rs"]
mod rpath;

const SOURCES: &[&str] = &[
    "cpp/attention.cc",
    "cpp/autograd.cc",
    "cpp/cuda_attention.cc",
    "cpp/device.cc",
    "cpp/kernels.cc",
    "cpp/memory.cc",
    "cpp/optimizer.cc",
    "cpp/process_group.cc",
    "cpp/rounding.cc",
    "cpp/store.cc",
    "cpp/streams.cc",
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
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        build_nccl_library(&lib, &include);
    }

    for file in ["cpp", "src/bridge.rs", "build.rs"] {
        println!("cargo::rerun-if-changed={file}");
    }
    println!("cargo::metadata=LIBTORCH_LIB={}", lib.display());
    rpath::main();
}

/// Builds `cpp/cuda/nccl.cc` into `OUT_DIR/libsterna_nccl.so`, which the program carries in itself and loads beside `libtorch_cuda`.
///
/// It names `libtorch_cuda` and none of the libraries that come with that, so it links on a machine without a GPU.
fn build_nccl_library(lib: &Path, include: &Path) {
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
    let mut compiler =
        cc::Build::new().cpp(true).std("c++17").opt_level(2).pic(true).get_compiler().to_command();
    compiler.args([
        "-shared",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-DUSE_C10D_NCCL",
        "cpp/cuda/nccl.cc",
        "-o",
    ]);
    compiler.arg(out_dir.join("libsterna_nccl.so"));
    for folder in [include, &include.join("torch/csrc/api/include")]
        .into_iter()
        .chain(headers.iter().map(PathBuf::as_path))
    {
        compiler.arg("-isystem").arg(folder);
    }
    compiler.arg("-L").arg(lib).args(["-ltorch_cuda", "-ltorch_cpu", "-lc10"]);
    let status = compiler.status().expect("the C++ compiler starts");
    assert!(status.success(), "`{compiler:?}` ended with {status}");
}
