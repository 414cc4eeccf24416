//! Compiles `cpp/` to shared libraries that are loaded in place of the driver, of NVRTC and of libtorch's CUDA half.
//!
//! Their paths are `STERNA_FAKE_DRIVER`, `STERNA_FAKE_NVRTC` and `STERNA_FAKE_LIBTORCH_CUDA` in the crate's environment.

use std::path::{Path, PathBuf};

#[path = "../sterna-torch-sys/rpath/build.rs"]
mod rpath;

/// What is loaded in place of the driver.
const DRIVER: &[&str] = &["cpp/driver.cc"];

/// What is loaded in place of NVRTC.
const NVRTC: &[&str] = &["cpp/nvrtc.cc"];

/// What is loaded in place of libtorch's CUDA half.
const LIBTORCH_CUDA: &[&str] = &[
    "cpp/attention_ops.cc",
    "cpp/device.cc",
    "cpp/fallback.cc",
    "cpp/memory.cc",
    "cpp/product_ops.cc",
    "cpp/streams.cc",
];

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
        .include("cpp")
        .flag("-Wall")
        .flag("-Wextra")
        .flag("-Werror")
        // libtorch's headers are not ours to keep free of warnings.
        .flag(format!("-isystem{}", include.display()))
        .flag(format!("-isystem{}", include.join("torch/csrc/api/include").display()))
        .define("_GLIBCXX_USE_CXX11_ABI", "1");
    // The names under which production code opens the real ones: the dynamic linker then takes these, which are loaded already.
    let mut kernels = build.clone();
    kernels
        .opt_level(2)
        .include("../sterna-torch-sys/kernels")
        // As the real NVRTC is told: products and sums are rounded one by one.
        .flag("-ffp-contract=off")
        // The name of a kernel must not hide a function of libtorch, or of the C library.
        .flag("-fvisibility=hidden");
    let driver = link(kernels.files(DRIVER), &lib, &out.join("libcuda.so.1"));
    let nvrtc = link(build.clone().files(NVRTC), &lib, &out.join("libnvrtc.so.13"));
    let libtorch_cuda = link(build.files(LIBTORCH_CUDA), &lib, &out.join("libtorch_cuda.so"));
    println!("cargo::rustc-env=STERNA_FAKE_DRIVER={driver}");
    println!("cargo::rustc-env=STERNA_FAKE_NVRTC={nvrtc}");
    println!("cargo::rustc-env=STERNA_FAKE_LIBTORCH_CUDA={libtorch_cuda}");
    for file in ["cpp", "build.rs", "../sterna-torch-sys/kernels"] {
        println!("cargo::rerun-if-changed={file}");
    }
    rpath::main();
}

/// Compiles the files of `build`, links them to the shared library `library`, and returns its path as text.
fn link(build: &cc::Build, lib: &Path, library: &Path) -> String {
    let name = library.file_name().expect("the library has a name").display();
    let status = build
        .get_compiler()
        .to_command()
        .arg("-shared")
        .args(build.compile_intermediates())
        .arg(format!("-Wl,-soname,{name}"))
        .arg(format!("-Wl,-rpath,{}", lib.display()))
        .arg("-L")
        .arg(lib)
        .args(["-Wl,--as-needed", "-ltorch_cpu", "-lc10", "-o"])
        .arg(library)
        .status()
        .expect("the compiler runs, as it has just compiled");
    assert!(status.success(), "linking `{}` failed: {status}", library.display());
    library.display().to_string()
}
