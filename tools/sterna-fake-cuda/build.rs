//! Compiles `cpp/` to shared libraries that are loaded in place of the driver, of NVML, of NVRTC and of libtorch's CUDA half.
//!
//! Their paths are `STERNA_FAKE_DRIVER`, `STERNA_FAKE_NVML`, `STERNA_FAKE_NVRTC` and `STERNA_FAKE_LIBTORCH_CUDA` in the crate's environment.

use std::path::PathBuf;

#[path = "../../crates/sterna-torch-sys/libtorch/build.rs"]
mod libtorch;
#[path = "../../crates/sterna-torch-sys/rpath/build.rs"]
mod rpath;

/// What is loaded in place of the driver.
const DRIVER: &str = "cpp/driver.cc";

/// What is loaded in place of NVML.
const NVML: &str = "cpp/nvml.cc";

/// What is loaded in place of NVRTC.
const NVRTC: &str = "cpp/nvrtc.cc";

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
    let lib = libtorch::lib();
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut build = cc::Build::new();
    libtorch::configure(&mut build, &lib);
    let mut kernels = build.clone();
    kernels
        .opt_level(2)
        .include("../../crates/sterna-torch-sys/kernels")
        // As the real NVRTC is told: products and sums are rounded one by one.
        .flag("-ffp-contract=off")
        // `#pragma unroll` is nvcc's.
        .flag("-Wno-unknown-pragmas")
        // The name of a kernel must not hide a function of libtorch, or of the C library.
        .flag("-fvisibility=hidden");
    // The names under which production code opens the real ones: the dynamic linker then takes these, which are loaded already.
    for (variable, build, file, name) in [
        ("STERNA_FAKE_DRIVER", kernels, DRIVER.into(), "libcuda.so.1"),
        ("STERNA_FAKE_NVML", build.clone(), NVML.into(), "libnvidia-ml.so.1"),
        ("STERNA_FAKE_NVRTC", build.clone(), NVRTC.into(), "libnvrtc.so.13"),
        (
            "STERNA_FAKE_LIBTORCH_CUDA",
            build,
            libtorch::all_in_one(LIBTORCH_CUDA),
            "libtorch_cuda.so",
        ),
    ] {
        let (mut build, library) = (build, out.join(name));
        libtorch::link_shared(build.file(file), &lib, &["torch_cpu", "c10"], &library);
        println!("cargo::rustc-env={variable}={}", library.display());
    }
    for file in ["cpp", "build.rs", "../../crates/sterna-torch-sys/kernels"] {
        println!("cargo::rerun-if-changed={file}");
    }
    rpath::main();
}
