//! NVRTC on our CUDA kernels, which needs no GPU.
//!
//! What the kernels compute is tested in `sterna-fake-cuda`.

use std::path::PathBuf;

use sterna_torch_sys::kernels::{Compiler, Error};

/// NVRTC, from the folder that `STERNA_NVRTC` names, or beside libtorch, or where the loader looks.
fn compiler() -> Result<Compiler, Error> {
    let folder = std::env::var_os("STERNA_NVRTC").map(PathBuf::from);
    Compiler::load(folder.as_deref())
}

/// Says why the test below does nothing, where it cannot.
#[expect(clippy::print_stdout, reason = "the reader of the test's output has to know")]
#[test]
fn what_tests_of_nvrtc_need() {
    if let Err(error) = compiler() {
        println!("the CUDA kernels are not compiled: {error}; {}", error.hint().unwrap());
    }
}

#[test]
fn nvrtc_compiles_all_kernels_without_spills() {
    let Ok(compiler) = compiler() else { return };
    for arch in ["sm_80", "sm_90"] {
        let compiled = compiler.compile(arch).unwrap();
        assert!(compiled.cubin.starts_with(b"\x7fELF"), "{arch}: no machine code");
        let log = &compiled.log;
        for kernel in [
            "cross_entropy_forward",
            "cross_entropy_forward_backward",
            "rms_norm_forward",
            "rms_norm_backward",
            "rms_norm_backward_weight",
            "rope",
            "swiglu_forward",
            "swiglu_backward",
            "fill_normal",
        ] {
            for dtype in ["bf16", "f32"] {
                let entry = format!("entry function '{kernel}_{dtype}' for '{arch}'");
                assert!(log.contains(&entry), "{arch}: no `{kernel}_{dtype}` in\n{log}");
            }
        }
        assert!(log.contains("'round_stochastically'"), "{log}");
        // A kernel that needs more registers than there are keeps values in slow memory.
        let in_registers = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
        for line in log.lines().filter(|line| line.contains("spill")) {
            assert!(line.contains(in_registers), "{arch}: {line}\n{log}");
        }
        assert_eq!(log.matches(in_registers).count(), 19, "{log}");
    }
}

#[test]
fn an_unknown_architecture_is_refused_in_nvrtcs_words() {
    let Ok(compiler) = compiler() else { return };
    let error = compiler.compile("sm_1").unwrap_err();
    assert!(error.to_string().contains("sm_1"), "{error}");
}
