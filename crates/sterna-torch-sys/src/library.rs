//! Shared libraries that are loaded while the program runs, for good.

use std::{
    ffi::{CStr, CString, c_void},
    ptr::NonNull,
};

/// A library that stays loaded until the process ends.
#[derive(Debug, Clone, Copy)]
pub struct Library(NonNull<c_void>);

impl Library {
    /// Loads a library, its symbols seen by those that come after it.
    ///
    /// A name without a folder is looked for where this program's own libraries are: among those that are loaded already, in
    /// `LD_LIBRARY_PATH`, in the run path that `rpath/build.rs` wrote, and in the system's folders.
    ///
    /// # Safety
    ///
    /// The library's initialisers may run now and in this thread.
    ///
    /// # Errors
    ///
    /// The loader's text.
    pub unsafe fn open(name: &str) -> Result<Self, String> {
        let path = CString::new(name).map_err(|error| format!("{name}: {error}"))?;
        // SAFETY: `path` ends with a zero; the caller vouches for the initialisers.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        NonNull::new(handle).map(Self).ok_or_else(|| last_error(name))
    }

    /// The address of a function or a variable.
    ///
    /// # Errors
    ///
    /// The loader's text, if the library has no such thing.
    pub fn symbol(self, name: &CStr) -> Result<NonNull<c_void>, String> {
        // SAFETY: the handle is one that dlopen returned and nobody closes; the name ends with a zero.
        let symbol = unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) };
        NonNull::new(symbol).ok_or_else(|| last_error(&name.to_string_lossy()))
    }
}

/// What the loader says of its last failure in this thread, which was about `name`.
fn last_error(name: &str) -> String {
    // SAFETY: after a failure dlerror returns a text of this thread, which stays until the next call.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return format!("{name} cannot be loaded");
    }
    // SAFETY: as above; it ends with a zero.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_named() {
        // SAFETY: there is no library of this name.
        let reason = unsafe { Library::open("libsterna-has-no-such-library.so") }.unwrap_err();
        assert!(reason.contains("libsterna-has-no-such-library.so"), "{reason}");
        // SAFETY: the C library is loaded already.
        let libc = unsafe { Library::open("libc.so.6") }.unwrap();
        assert!(libc.symbol(c"malloc").is_ok());
        let reason = libc.symbol(c"sterna_has_no_such_function").unwrap_err();
        assert!(reason.contains("sterna_has_no_such_function"), "{reason}");
    }
}
