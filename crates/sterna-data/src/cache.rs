//! The tokens of a source on disk.
//!
//! Tokenizing is the slow part of preparing data, so its result is kept in `data.cache_dir` and nothing else is: filtering,
//! packing, replication and splitting are recomputed in milliseconds, so no change of theirs can meet a stale entry. The name
//! of an entry is the hash of everything that the tokens depend on ([`CacheKey`]). An entry is written beside its place, synced
//! and renamed into it, so a half-written one is never seen; it is checked against the hashes in its manifest when it is opened, and
//! rebuilt when it does not match. Ranks and runs that need the same entry wait for the first of them to build it.

mod entry;
mod store;

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde_json::Value;
use sha2::{Digest, Sha256};
use sterna_hf::hex;

pub use self::{
    entry::SourceStats,
    store::{TokenStore, TokenWriter},
};
use crate::error::{Error, Result};

/// Raised whenever the same key would give other tokens or other files than before.
const FORMAT: u32 = 3;

/// Everything that the tokens of a source depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheKey {
    /// The inputs, as one JSON object; kept in the manifest for whoever asks why an entry was not used.
    pub(crate) inputs: Value,
    digest: String,
}

impl CacheKey {
    /// The key for `inputs`.
    ///
    /// # Panics
    ///
    /// If these have `format` or `sterna`, which say how the entry is written.
    pub fn new(mut inputs: Value) -> Self {
        for (name, value) in
            [("format", FORMAT.into()), ("sterna", env!("CARGO_PKG_VERSION").into())]
        {
            assert!(inputs.get(name).is_none(), "`{name}` is the entry's own");
            inputs[name] = value;
        }
        let digest = hex(&Sha256::digest(inputs.to_string()));
        Self { inputs, digest }
    }

    /// Where the entry of this key is.
    pub fn path(&self, cache_dir: &Path) -> PathBuf {
        cache_dir.join(format!("sterna-tokens-{}", &self.digest[..32]))
    }
}

/// Opens the entry of `key`, or makes it with `build` if there is none or it is damaged. The flag is true if it was there.
///
/// # Errors
///
/// [`Error::MissingCache`] if `fail_on_missing` and there is no sound entry; [`Error::Write`] if the folder cannot be written;
/// errors of `build`.
pub fn load_or_build(
    cache_dir: &Path,
    key: &CacheKey,
    fail_on_missing: bool,
    build: impl FnOnce(&mut TokenWriter) -> Result<()>,
) -> Result<(TokenStore, bool)> {
    let path = key.path(cache_dir);
    if let Some(store) = open_sound(&path)? {
        return Ok((store, true));
    }
    if fail_on_missing {
        return Err(Error::MissingCache { path });
    }
    fs::create_dir_all(cache_dir)
        .map_err(|source| Error::Write { path: cache_dir.to_path_buf(), source })?;
    let lock = lock(&path.with_extension("lock"))?;
    // Whoever held the lock before may have built it.
    if let Some(store) = open_sound(&path)? {
        return Ok((store, true));
    }
    if lock.is_held {
        remove_leftovers(&path);
    }
    let mut writer = TokenWriter::create(&path)?;
    build(&mut writer)?;
    writer.finish(key, &path)?;
    let store = TokenStore::open(&path).map_err(|damage| damage.into_error(&path))?;
    Ok((store, false))
}

/// The entry at `path` if it is there and sound. A damaged one is reported.
fn open_sound(path: &Path) -> Result<Option<TokenStore>> {
    if !path.is_dir() {
        return Ok(None);
    }
    match TokenStore::open(path) {
        Ok(store) => Ok(Some(store)),
        Err(entry::Damage::Unreadable(source)) => {
            Err(Error::Read { path: path.to_path_buf(), source })
        }
        Err(damage) => {
            tracing::warn!(
                "cache entry `{}` is damaged and will be rebuilt: {damage}",
                path.display()
            );
            Ok(None)
        }
    }
}

struct Lock {
    /// Open as long as the lock is wanted.
    _file: File,
    /// False where the file system has no locks; the atomic rename still keeps entries whole.
    is_held: bool,
}

fn lock(path: &Path) -> Result<Lock> {
    let error = |source| Error::Write { path: path.to_path_buf(), source };
    let file = File::create(path).map_err(error)?;
    let is_held = match file.try_lock() {
        Ok(()) => true,
        Err(fs::TryLockError::WouldBlock) => {
            tracing::info!("waiting for another process that tokenizes for `{}`", path.display());
            file.lock().map_err(error)?;
            true
        }
        Err(fs::TryLockError::Error(source)) if source.kind() == io::ErrorKind::Unsupported => {
            false
        }
        Err(fs::TryLockError::Error(source)) => return Err(error(source)),
    };
    Ok(Lock { _file: file, is_held })
}

/// Removes what processes that were killed left beside the entry; the lock says that none of them is alive.
fn remove_leftovers(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return };
    let prefix = format!("{}.incomplete-", name.to_string_lossy());
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!("cannot remove the left-over `{}`: {error}", entry.path().display());
        }
    }
}

/// The hash of a file's content.
///
/// # Errors
///
/// [`Error::Read`].
pub fn hash_file(path: &Path) -> Result<String> {
    let error = |source| Error::Read { path: path.to_path_buf(), source };
    hash(File::open(path).map_err(error)?).map_err(error)
}

fn hash(mut input: impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match input.read(&mut block)? {
            0 => return Ok(hex(&hasher.finalize())),
            len => hasher.update(&block[..len]),
        }
    }
}
