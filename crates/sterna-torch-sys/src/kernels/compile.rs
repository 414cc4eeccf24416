//! Compiles the kernels with NVRTC, which needs no GPU.

use std::{
    ffi::{CStr, CString, c_char, c_int},
    fmt::Write as _,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use super::Error;
use crate::{bridge::ffi, library::Library};

/// The file that names all others, and under which names it includes them.
const PROGRAM_FILE: &str = "kernels/sterna.cu";
const PROGRAM: &str = include_str!("../../kernels/sterna.cu");
const INCLUDES: [(&str, &str); 8] = [
    ("common.cuh", include_str!("../../kernels/common.cuh")),
    ("cross_entropy.cu", include_str!("../../kernels/cross_entropy.cu")),
    ("normal.cuh", include_str!("../../kernels/normal.cuh")),
    ("random.cu", include_str!("../../kernels/random.cu")),
    ("rms_norm.cu", include_str!("../../kernels/rms_norm.cu")),
    ("rope.cu", include_str!("../../kernels/rope.cu")),
    ("rounding.cu", include_str!("../../kernels/rounding.cu")),
    ("swiglu.cu", include_str!("../../kernels/swiglu.cu")),
];

/// Products and sums are rounded one by one, as in the definitions of `sterna-ops`; the log says what each kernel takes.
const OPTIONS: [&str; 3] = ["--std=c++17", "--fmad=false", "--ptxas-options=-v"];

/// All kernels as machine code of one architecture.
#[derive(Debug)]
pub struct Compiled {
    /// What the driver loads.
    pub cubin: Vec<u8>,
    /// NVRTC's text: registers, shared memory and spilled bytes of each kernel.
    pub log: String,
}

/// NVRTC, loaded.
#[derive(Debug)]
pub struct Compiler {
    major: c_int,
    minor: c_int,
}

impl Compiler {
    /// Loads NVRTC from `folder`, else from where libtorch's packages have it, else by its name.
    ///
    /// # Errors
    ///
    /// [`Error::NoCompiler`] if it is nowhere.
    ///
    /// # Panics
    ///
    /// If NVRTC does not tell its version.
    pub fn load(folder: Option<&Path>) -> Result<Self, Error> {
        let folder = folder.map_or_else(beside_libtorch, Path::to_owned);
        // NVRTC opens its built-in functions by their name, which the loader's path need not have: they come first.
        // A library that is loaded already is found by its name, so cudarc, which knows names only, finds it too.
        let names = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut libraries: Vec<PathBuf> = names.map(|entry| entry.path()).collect();
        libraries.retain(|path| {
            let name = path.file_name().map_or(&b""[..], OsStrExt::as_bytes);
            name.starts_with(b"libnvrtc-builtins.so.") || name == b"libnvrtc.so.13"
        });
        // "-" sorts before ".".
        libraries.sort();
        for library in libraries.iter().filter_map(|path| path.to_str()) {
            // SAFETY: NVRTC's libraries do nothing when loaded but set up their own state.
            if let Err(reason) = unsafe { Library::open(library) } {
                return Err(Error::NoCompiler { folder, reason });
            }
        }
        // SAFETY: as above; cudarc keeps the library open.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoCompiler { folder, reason: "no `libnvrtc.so`".to_owned() });
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both are integers of this function.
        let status = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
        assert!(status == sys::nvrtcResult::NVRTC_SUCCESS, "NVRTC refuses no valid pointers");
        Ok(Self { major, minor })
    }

    /// What decides the machine code of `arch`: sources, options, and NVRTC's version. 64 hexadecimal digits.
    pub(super) fn key(&self, arch: &str) -> String {
        let mut hash = Sha256::new();
        let version = format!("{}.{}", self.major, self.minor);
        let files = INCLUDES.iter().flat_map(|(name, text)| [*name, *text]);
        for part in [PROGRAM, arch, &version].into_iter().chain(OPTIONS).chain(files) {
            // With its length, so that no two lists of parts read the same.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let mut digits = String::new();
        for byte in hash.finalize() {
            let _ = write!(digits, "{byte:02x}");
        }
        digits
    }

    /// Compiles all kernels for `arch`, as `sm_90`. Takes about a second.
    ///
    /// # Errors
    ///
    /// [`Error::Compile`] with NVRTC's text.
    pub fn compile(&self, arch: &str) -> Result<Compiled, Error> {
        let program = Program::new();
        let mut options = vec![format!("--gpu-architecture={arch}")];
        options.extend(OPTIONS.map(str::to_owned));
        // SAFETY: `program` lives until the end of this function.
        let status = unsafe { result::compile_program(program.handle, &options) };
        let log = program.log();
        let cubin = status.and_then(|()| program.cubin());
        match cubin {
            Ok(cubin) => Ok(Compiled { cubin, log }),
            Err(error) => Err(Error::Compile {
                file: PROGRAM_FILE,
                arch: arch.to_owned(),
                cache: None,
                reason: error.to_string(),
                log,
            }),
        }
    }
}

/// Where the wheels of libtorch and NVRTC put the latter.
fn beside_libtorch() -> PathBuf {
    let folder = ffi::libtorch_folder().expect("libtorch is linked to this program");
    Path::new(&folder).join("../../nvidia/cu13/lib")
}

/// A program of NVRTC with the sources it was made of, to which it may refer.
struct Program {
    handle: sys::nvrtcProgram,
    _sources: Vec<CString>,
}

impl Program {
    fn new() -> Self {
        let c_string = |text: &str| CString::new(text).expect("sources have no zero byte");
        let texts = INCLUDES.iter().map(|(_, text)| c_string(text));
        let names = INCLUDES.iter().map(|(name, _)| c_string(name));
        let mut sources: Vec<CString> = texts.chain(names).collect();
        let pointers: Vec<*const c_char> = sources.iter().map(|source| source.as_ptr()).collect();
        let program = c_string(PROGRAM);
        let mut handle = std::ptr::null_mut();
        // SAFETY: the strings live as long as the program, and both lists have as many entries as the call is told.
        let status = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut handle,
                program.as_ptr(),
                c"sterna.cu".as_ptr(),
                INCLUDES.len() as c_int,
                pointers.as_ptr(),
                pointers[INCLUDES.len()..].as_ptr(),
            )
        };
        assert!(status == sys::nvrtcResult::NVRTC_SUCCESS, "NVRTC refuses a program: {status:?}");
        sources.push(program);
        Self { handle, _sources: sources }
    }

    fn log(&self) -> String {
        // SAFETY: the handle is that of a live program.
        let log = unsafe { result::get_program_log(self.handle) }.unwrap_or_default();
        let bytes: Vec<u8> = log.into_iter().map(c_char::cast_unsigned).collect();
        let text = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
        text.to_string_lossy().into_owned()
    }

    fn cubin(&self) -> Result<Vec<u8>, result::NvrtcError> {
        let mut len = 0;
        // SAFETY: the handle is that of a live program; `len` is an integer of this function.
        unsafe { sys::nvrtcGetCUBINSize(self.handle, &raw mut len) }.result()?;
        let mut cubin = vec![0_u8; len];
        // SAFETY: as above, and `cubin` has as many bytes as NVRTC has just asked for.
        unsafe { sys::nvrtcGetCUBIN(self.handle, cubin.as_mut_ptr().cast()) }.result()?;
        Ok(cubin)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the handle is that of a live program, and nobody uses it after this. There is nothing to do about a failure.
        let _ = unsafe { result::destroy_program(self.handle) };
    }
}
