//! The folder an export goes to: whether it can, and how it gets there in one step.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};

use crate::assets;
use crate::error::{Error, Result};
use crate::weights::{INDEX_FILE, SINGLE_FILE};

/// Checks that an export of `needed_bytes` can replace `dir`: that nothing else is in it, and that
/// its disk has the space. Meant to be called before hours of training, too.
///
/// # Errors
///
/// [`Error::ExportWouldDelete`] when `dir` has files that no export of ours writes,
/// [`Error::DiskFull`], [`Error::Read`] or [`Error::Write`].
pub fn check_destination(dir: &Path, needed_bytes: u64) -> Result<()> {
    if dir.exists() {
        let read_error = |source| Error::Read { path: dir.to_owned(), source };
        for entry in fs::read_dir(dir).map_err(read_error)? {
            let name = entry.map_err(read_error)?.file_name();
            if !name.to_str().is_some_and(is_ours) {
                return Err(Error::ExportWouldDelete {
                    dir: dir.to_owned(),
                    entry: PathBuf::from(name),
                });
            }
        }
    }
    let existing = parent(dir).ancestors().find(|path| path.exists());
    let existing = existing.unwrap_or(Path::new("."));
    let stat = nix::sys::statvfs::statvfs(existing)
        .map_err(|errno| Error::Read { path: existing.to_owned(), source: errno.into() })?;
    let free_bytes = stat.blocks_available() * stat.fragment_size();
    if needed_bytes > free_bytes {
        return Err(Error::DiskFull { path: dir.to_owned(), needed_bytes, free_bytes });
    }
    nix::unistd::access(existing, nix::unistd::AccessFlags::W_OK).map_err(|errno| Error::Write {
        path: existing.to_owned(),
        needed_bytes,
        source: errno.into(),
    })
}

/// `DIR.KIND-PID`, on the same disk as `DIR`.
pub(super) fn sibling(dir: &Path, kind: &str) -> PathBuf {
    let mut name = dir.file_name().map_or_else(|| OsString::from("export"), ToOwned::to_owned);
    name.push(format!(".{kind}-{}", std::process::id()));
    parent(dir).join(name)
}

/// Reserves space, so that a full disk is known before the tensors are gathered.
pub(super) fn reserve(file: &File, num_bytes: u64) -> io::Result<()> {
    use nix::errno::Errno;
    match fallocate(file, FallocateFlags::empty(), 0, num_bytes as i64) {
        // Some file systems cannot reserve; there, writing tells.
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes the names in a folder durable.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| Error::Write {
        path: dir.to_owned(),
        needed_bytes: 0,
        source,
    })
}

/// Moves the folder `from` to `dir` in one step, and removes what was there.
///
/// # Errors
///
/// [`Error::Write`]; `dir` is then as it was.
pub fn put_in_place(from: &Path, dir: &Path) -> Result<()> {
    let write_error = |source| Error::Write { path: dir.to_owned(), needed_bytes: 0, source };
    if !dir.exists() {
        fs::rename(from, dir).map_err(write_error)?;
        return sync_dir(parent(dir));
    }
    let exchanged = renameat2(AT_FDCWD, from, AT_FDCWD, dir, RenameFlags::RENAME_EXCHANGE);
    let replaced = if exchanged.is_ok() {
        from.to_owned()
    } else {
        // Not every file system exchanges. Between two renames there is a moment without `dir`,
        // but never one without the earlier export.
        let replaced = sibling(dir, "replaced");
        fs::rename(dir, &replaced).map_err(write_error)?;
        if let Err(source) = fs::rename(from, dir) {
            fs::rename(&replaced, dir).map_err(write_error)?;
            return Err(write_error(source));
        }
        replaced
    };
    sync_dir(parent(dir))?;
    if let Err(error) = fs::remove_dir_all(&replaced) {
        tracing::warn!(path = %replaced.display(), %error, "what was replaced could not be removed");
    }
    Ok(())
}

fn parent(dir: &Path) -> &Path {
    match dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Whether an export may have written a file of this name.
fn is_ours(name: &str) -> bool {
    let is_shard = name.starts_with("model-") && name.ends_with(".safetensors");
    is_shard
        || name == SINGLE_FILE
        || name == INDEX_FILE
        || assets::names().any(|asset| asset == name)
}
