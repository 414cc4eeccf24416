//! What build scripts share that compile C++ against libtorch: included with `#[path]`, as `rpath/build.rs` is.

use std::path::{Path, PathBuf};

/// The folder of libtorch's shared libraries, as torch-sys found it. Needs torch-sys among the crate's own dependencies.
pub(crate) fn lib() -> PathBuf {
    println!("cargo::rerun-if-changed=../../crates/sterna-torch-sys/libtorch/build.rs");
    PathBuf::from(
        std::env::var_os("DEP_TCH_LIBTORCH_LIB")
            .expect("torch-sys exports the folder of libtorch's libraries"),
    )
}

/// What every C++ file of ours is compiled with.
pub(crate) fn configure(build: &mut cc::Build, lib: &Path) {
    let include = lib.parent().expect("libtorch's lib folder has a parent").join("include");
    build
        .cpp(true)
        .std("c++17")
        .pic(true)
        // Of libtorch's headers: several times the program, read again by every link. CXXFLAGS=-g brings it back.
        .debug(false)
        .include("cpp")
        .flag("-Wall")
        .flag("-Wextra")
        .flag("-Werror")
        .define("_GLIBCXX_USE_CXX11_ABI", "1");
    system_include(build, &include);
    system_include(build, &include.join("torch/csrc/api/include"));
}

/// One file that includes all `files` of this crate: libtorch's headers are most of what the compiler reads, and are read once.
pub(crate) fn all_in_one(files: &[&str]) -> PathBuf {
    let variable = |name| PathBuf::from(std::env::var_os(name).expect("cargo sets it"));
    let (crate_folder, out) = (variable("CARGO_MANIFEST_DIR"), variable("OUT_DIR"));
    let includes =
        files.iter().map(|file| format!("#include \"{}\"\n", crate_folder.join(file).display()));
    let all = out.join("all.cc");
    std::fs::write(&all, includes.collect::<String>()).expect("OUT_DIR can be written");
    all
}

/// A folder of headers that are not ours to keep free of warnings.
pub(crate) fn system_include(build: &mut cc::Build, folder: &Path) {
    build.flag(format!("-isystem{}", folder.display()));
}

/// Compiles the files of `build` and links them to the shared library `library`, with those of libtorch's libraries that they use.
pub(crate) fn link_shared(build: &cc::Build, lib: &Path, torch: &[&str], library: &Path) {
    let name = library.file_name().expect("the library has a name").display();
    let mut linker = build.get_compiler().to_command();
    linker
        .arg("-shared")
        .args(build.compile_intermediates())
        .arg(format!("-Wl,-soname,{name}"))
        .arg(format!("-Wl,-rpath,{}", lib.display()))
        .arg("-L")
        .arg(lib)
        .arg("-Wl,--as-needed")
        .args(torch.iter().map(|name| format!("-l{name}")))
        .arg("-o")
        .arg(library);
    let status = linker.status().expect("the compiler runs, as it has just compiled");
    assert!(status.success(), "`{linker:?}` ended with {status}");
}
