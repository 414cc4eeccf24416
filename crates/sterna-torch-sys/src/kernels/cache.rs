//! Compiled kernels on disk, so that only the first start on a kind of GPU compiles.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use sha2::{Digest, Sha256};

use super::{Compiler, Error};

/// An entry begins with the hash of what follows: a damaged one must never reach the driver, which is told no length.
const DIGEST: usize = 32;

/// The machine code for `arch`, and the file that it is kept in: that of `folder` if it has it, else compiled now and written there.
///
/// An entry that is damaged is written anew. Processes that start at once write the same file, each under a name of its own
/// first: a reader sees a whole entry or none.
///
/// # Errors
///
/// [`Error::Compile`]; [`Error::Cache`] if the entry cannot be written.
pub(super) fn cubin(
    compiler: &Compiler,
    arch: &str,
    folder: Option<&Path>,
) -> Result<(Vec<u8>, Option<PathBuf>), Error> {
    let Some(folder) = folder else { return Ok((compiler.compile(arch)?.cubin, None)) };
    let path = folder.join(format!("sterna-kernels-{arch}-{}.cubin", &compiler.key(arch)[..32]));
    if let Some(cubin) = fs::read(&path).ok().and_then(|entry| whole(&entry)) {
        return Ok((cubin, Some(path)));
    }
    let compiled = compiler.compile(arch).map_err(|error| error.with_cache(&path))?;
    match write(&path, &compiled.cubin) {
        Ok(()) => Ok((compiled.cubin, Some(path))),
        Err(source) => Err(Error::Cache { path, source }),
    }
}

/// The machine code of an entry, if it is as it was written.
fn whole(entry: &[u8]) -> Option<Vec<u8>> {
    let (digest, cubin) = entry.split_at_checked(DIGEST)?;
    (digest == &Sha256::digest(cubin)[..]).then(|| cubin.to_vec())
}

fn write(path: &Path, cubin: &[u8]) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Hosts may share the folder: what is random differs among them, a process id does not.
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), number);
    let temporary: PathBuf = path.with_extension(format!("{random:016x}.tmp"));
    let written = fs::File::create_new(&temporary).and_then(|mut file| {
        file.write_all(&Sha256::digest(cubin))?;
        file.write_all(cubin)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_back_if_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("sm_90.cubin");
        write(&path, b"machine code").unwrap();
        let entry = fs::read(&path).unwrap();
        assert_eq!(whole(&entry).as_deref(), Some(&b"machine code"[..]));
        for len in 0..entry.len() {
            assert_eq!(whole(&entry[..len]), None, "{len} bytes of {}", entry.len());
        }
        let mut damaged = entry;
        damaged[DIGEST + 3] ^= 1;
        assert_eq!(whole(&damaged), None);
        let names = fs::read_dir(path.parent().unwrap()).unwrap();
        assert_eq!(names.count(), 1, "a temporary file is left");
    }
}
