//! A folder of checkpoints: which there are, and how one gets there whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sterna_hf::export::put_in_place;

use crate::error::{Error, Result};
use crate::manifest::{ASSETS, FileEntry, MANIFEST, MANIFEST_HASH, Manifest};
use crate::verify::hash_bytes;

const PREFIX: &str = "checkpoint-";
/// Being written, or left so by a run that was killed.
const INCOMPLETE: &str = ".incomplete";
/// Being deleted.
const DELETED: &str = ".deleted";
const LOCK: &str = ".sterna.lock";
/// Bytes of the metrics file before the first step, until there is a checkpoint, which has them.
const START: &str = ".sterna.start";
/// How long to wait for a run that was killed a moment ago to let go of its lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// A checkpoint's folder, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Optimizer steps done, as the name says.
    pub step: u64,
    /// The folder.
    pub dir: PathBuf,
}

/// The checkpoints in `dir`, newest step first; those that are not complete, and folders of other programs, are not among them.
/// None if there is no such folder.
///
/// # Errors
///
/// [`Error::Read`].
pub fn list(dir: &Path) -> Result<Vec<Listed>> {
    let mut found = Vec::new();
    for (name, path) in entries(dir)? {
        if let Some(step) = step_of(&name, "").filter(|_| is_ours(&path)) {
            found.push(Listed { step, dir: path });
        }
    }
    found.sort_by_key(|listed| std::cmp::Reverse(listed.step));
    Ok(found)
}

/// The step that a folder's name gives, if it is one that we write: `checkpoint-7` and not `checkpoint-007`.
fn step_of(name: &str, suffix: &str) -> Option<u64> {
    let step = name.strip_prefix(PREFIX)?.strip_suffix(suffix)?.parse().ok()?;
    (name == format!("{PREFIX}{step}{suffix}")).then_some(step)
}

/// Whether a folder has what makes a checkpoint of ours, be it damaged: other programs call theirs `checkpoint-N` too.
fn is_ours(dir: &Path) -> bool {
    [MANIFEST, MANIFEST_HASH, &crate::shard_file_name(0)].iter().any(|name| dir.join(name).exists())
}

fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let read_error = |source| Error::Read { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(read_error)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(read_error)?;
        if let Some(name) = entry.file_name().to_str() {
            found.push((name.to_owned(), entry.path()));
        }
    }
    Ok(found)
}

/// A folder that one run writes checkpoints to. Held by one rank of it.
#[derive(Debug)]
pub struct CheckpointFolder {
    dir: PathBuf,
    /// Locked as long as it is open; the system lets go of it however the process ends.
    _lock: File,
    holder: String,
}

impl CheckpointFolder {
    /// Makes `dir` if it is not there, takes it for this run, and removes what killed runs left half-written.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] if another run has it; [`Error::NotOurs`] if another program's checkpoints are in it; [`Error::Write`].
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|source| Error::Write { path: dir.to_owned(), source })?;
        if let Some(parent) = dir.parent().filter(|parent| *parent != Path::new("")) {
            sync_dir(parent)?;
        }
        let (lock, holder) = lock(dir)?;
        let folder = Self { dir: dir.to_owned(), _lock: lock, holder };
        for (name, path) in entries(dir)? {
            if step_of(&name, "").is_some() && !is_ours(&path) {
                return Err(Error::NotOurs { path });
            }
            if step_of(&name, INCOMPLETE).or(step_of(&name, DELETED)).is_some() {
                tracing::info!("removing the half-written `{}` of an earlier run", path.display());
                remove(&path)?;
            }
        }
        Ok(folder)
    }

    /// What this run wrote into the folder about itself, different from what any other writes.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// What the run that has `dir` wrote about itself, as it is seen from here.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub fn holder_of(dir: &Path) -> Result<String> {
        let path = dir.join(LOCK);
        fs::read_to_string(&path)
            .map(|text| text.trim().to_owned())
            .map_err(|source| Error::Read { path, source })
    }

    /// Notes how long the metrics file was when a run began here, and returns what an earlier run noted that was ended before its
    /// first checkpoint: the rows since are of steps that are made again.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn note_start(&self, metrics_bytes: u64) -> Result<Option<u64>> {
        let path = self.dir.join(START);
        let noted = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        if noted.is_none() {
            write_synced(&path, metrics_bytes.to_string().as_bytes())?;
        }
        Ok(noted)
    }

    /// The folder to write the files of the checkpoint of `step` into, empty.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn begin(&self, step: u64) -> Result<PathBuf> {
        let incomplete = incomplete(&self.dir, step);
        if incomplete.exists() {
            remove(&incomplete)?;
        }
        let assets = incomplete.join(ASSETS);
        fs::create_dir_all(&assets).map_err(|source| Error::Write { path: assets, source })?;
        Ok(incomplete)
    }

    /// Copies the files called `names` that exist in `from` into the assets of the checkpoint being written.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] or [`Error::Write`].
    pub fn copy_assets<'a>(
        &self,
        step: u64,
        from: &Path,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<FileEntry>> {
        let mut copied = Vec::new();
        for name in names {
            let path = from.join(name);
            match fs::read(&path) {
                Ok(bytes) => copied.push(self.write_asset(step, name, &bytes)?),
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::Read { path, source }),
            }
        }
        Ok(copied)
    }

    /// Writes an asset of the checkpoint being written.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn write_asset(&self, step: u64, name: &str, bytes: &[u8]) -> Result<FileEntry> {
        let name = format!("{ASSETS}/{name}");
        let path = incomplete(&self.dir, step).join(&name);
        write_synced(&path, bytes)?;
        Ok(FileEntry { name, bytes: bytes.len() as u64, sha256: hash_bytes(bytes) })
    }

    /// Adds the manifest to the checkpoint of `manifest.step` and gives it its name, in place of one that may be there. All its
    /// files must be on the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn commit(&self, manifest: &Manifest) -> Result<PathBuf> {
        let incomplete = incomplete(&self.dir, manifest.step);
        let text = manifest.to_text();
        write_synced(&incomplete.join(MANIFEST), &text)?;
        let hash = format!("{}  {MANIFEST}\n", hash_bytes(&text));
        write_synced(&incomplete.join(MANIFEST_HASH), hash.as_bytes())?;
        sync_dir(&incomplete.join(ASSETS))?;
        sync_dir(&incomplete)?;
        let dir = complete(&self.dir, manifest.step);
        // There may be one of this step that was found damaged, or that another entry of the run was behind.
        put_in_place(&incomplete, &dir)?;
        // What it notes is in the checkpoint now. It may not be there.
        let _ = fs::remove_file(self.dir.join(START));
        Ok(dir)
    }

    /// Deletes all but the newest `keep_last_n` checkpoints up to the one of `step`, and returns what it deleted. Those of later
    /// steps, which a run may have fallen back from, are not counted and stay until their step is written again.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] or [`Error::Write`].
    pub fn prune(&self, step: u64, keep_last_n: usize) -> Result<Vec<PathBuf>> {
        let listed = list(&self.dir)?;
        let old = listed.into_iter().filter(|listed| listed.step <= step).skip(keep_last_n);
        let old: Vec<PathBuf> = old.map(|listed| listed.dir).collect();
        for dir in &old {
            delete(dir)?;
        }
        Ok(old)
    }
}

/// Deletes a checkpoint. Renames first, so that it never lacks files under its own name.
fn delete(dir: &Path) -> Result<()> {
    let deleted = append(dir, DELETED);
    if deleted.exists() {
        remove(&deleted)?;
    }
    fs::rename(dir, &deleted).map_err(|source| Error::Write { path: deleted.clone(), source })?;
    remove(&deleted)
}

/// The folder of the checkpoint of `step` in `dir`.
pub fn complete(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{step}"))
}

/// The folder of the checkpoint of `step` while it is being written.
pub fn incomplete(dir: &Path, step: u64) -> PathBuf {
    append(&complete(dir, step), INCOMPLETE)
}

fn append(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Write { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// Makes the names in a folder durable.
fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| Error::Write { path: dir.to_owned(), source })
}

/// Whether a lock failed because the file system has none: NFS without its lock daemon says ENOLCK.
fn has_no_locks(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || error.raw_os_error() == Some(nix::errno::Errno::ENOLCK as i32)
}

/// Takes the lock of a folder and writes who has it.
fn lock(dir: &Path) -> Result<(File, String)> {
    let path = dir.join(LOCK);
    let error = |source| Error::Write { path: path.clone(), source };
    let mut options = OpenOptions::new();
    let mut file =
        options.read(true).write(true).create(true).truncate(false).open(&path).map_err(error)?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            // A file system without locks; the atomic renames still keep checkpoints whole.
            Err(TryLockError::Error(source)) if has_no_locks(&source) => break,
            Err(TryLockError::Error(source)) => return Err(error(source)),
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(error)?;
                let holder = holder.trim().to_owned();
                return Err(Error::Locked { dir: dir.to_owned(), holder });
            }
        }
    }
    let host = nix::unistd::gethostname().unwrap_or_default();
    // The time makes it different from what a process of the same number wrote before.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (pid, host) = (std::process::id(), host.to_string_lossy());
    let holder = format!("process {pid} on {host}, since {}", since.as_nanos());
    file.set_len(0).map_err(error)?;
    file.rewind().map_err(error)?;
    file.write_all(holder.as_bytes()).map_err(error)?;
    Ok((file, holder))
}
