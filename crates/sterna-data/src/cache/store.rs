//! Writing and reading the tokens of a cache entry.
//!
//! Three flat little-endian files: `tokens.u32`, `is_label.u8` (one byte a token) and `lengths.u32` (one a sample). Samples are read
//! from the file when a micro-batch needs them, so a data set may be larger than memory and the ranks of a node share the page cache.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    CacheKey,
    entry::{self, Damage, HashedFile, IS_LABEL, LENGTHS, MANIFEST, Manifest, SourceStats, TOKENS},
};
use crate::{
    error::{Error, Result},
    label_mask::{Remarks, Tokens},
    messages::LeftOut,
};

/// The tokens of one source, open for reading.
#[derive(Debug)]
pub struct TokenStore {
    folder: PathBuf,
    tokens: File,
    is_label: File,
    lengths: Vec<u32>,
    /// First token of each sample.
    starts: Vec<u64>,
    stats: SourceStats,
    /// The hashes of its files.
    hashes: Vec<String>,
}

impl TokenStore {
    /// Opens the entry `folder` after checking it.
    pub(super) fn open(folder: &Path) -> Result<Self, Damage> {
        let manifest = entry::check(folder)?;
        let bytes = fs::read(folder.join(LENGTHS))?;
        let lengths: Vec<u32> = words(&bytes).collect();
        let mut end = 0;
        let starts = lengths
            .iter()
            .map(|&len| {
                end += u64::from(len);
                end - u64::from(len)
            })
            .collect();
        if lengths.len() != manifest.stats.samples || end != manifest.stats.tokens {
            return Err(Damage::Manifest);
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            tokens: File::open(folder.join(TOKENS))?,
            is_label: File::open(folder.join(IS_LABEL))?,
            lengths,
            starts,
            stats: manifest.stats,
            hashes: manifest.files.into_iter().map(|file| file.sha256).collect(),
        })
    }

    /// Tokens of each sample.
    pub fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// What was counted while the source was tokenized.
    pub fn stats(&self) -> &SourceStats {
        &self.stats
    }

    /// SHA-256 of each of its files, which they were checked against.
    pub(crate) fn hashes(&self) -> &[String] {
        &self.hashes
    }

    /// Reads sample `index`.
    ///
    /// # Errors
    ///
    /// [`Error::CacheChanged`] if the files no longer read as when they were checked.
    pub fn read(&self, index: usize) -> Result<Tokens> {
        let error =
            |name: &str, source| Error::CacheChanged { path: self.folder.join(name), source };
        let (start, len) = (self.starts[index], self.lengths[index] as usize);
        let mut bytes = vec![0; 4 * len];
        self.tokens.read_exact_at(&mut bytes, 4 * start).map_err(|source| error(TOKENS, source))?;
        let mut flags = vec![0; len];
        self.is_label.read_exact_at(&mut flags, start).map_err(|source| error(IS_LABEL, source))?;
        Ok(Tokens {
            ids: words(&bytes).collect(),
            is_label: flags.iter().map(|&flag| flag != 0).collect(),
        })
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word))
}

/// Writes the tokens of one source, sample after sample. Dropped unfinished, it leaves nothing behind.
pub struct TokenWriter {
    folder: TempFolder,
    tokens: HashedFile,
    is_label: HashedFile,
    lengths: HashedFile,
    stats: SourceStats,
}

impl TokenWriter {
    /// Starts an entry beside `path`.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let folder = TempFolder::create(path, "incomplete")?;
        Ok(Self {
            tokens: HashedFile::create(&folder.path, TOKENS)?,
            is_label: HashedFile::create(&folder.path, IS_LABEL)?,
            lengths: HashedFile::create(&folder.path, LENGTHS)?,
            folder,
            stats: SourceStats::default(),
        })
    }

    /// Appends a sample.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn push(&mut self, sample: &Tokens) -> Result<()> {
        let words: Vec<u8> = sample.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let flags: Vec<u8> = sample.is_label.iter().map(|&is_label| u8::from(is_label)).collect();
        let labels = sample.is_label.iter().filter(|&&is_label| is_label).count();
        self.tokens.write(&words)?;
        self.is_label.write(&flags)?;
        self.lengths.write(&(sample.ids.len() as u32).to_le_bytes())?;
        self.stats.samples += 1;
        self.stats.tokens += sample.ids.len() as u64;
        self.stats.label_tokens += labels as u64;
        self.stats.samples_without_label += usize::from(labels == 0 && !sample.ids.is_empty());
        Ok(())
    }

    /// Counts what is worth a warning about the sample that was pushed last.
    pub(crate) fn remark(&mut self, left_out: LeftOut, remarks: Remarks) {
        for (why, count) in left_out {
            *self.stats.left_out.entry(why).or_default() += count;
        }
        self.stats.replies += remarks.num_replies;
        self.stats.unclosed_replies += remarks.num_unclosed;
        self.stats.control_token_rows += usize::from(remarks.has_control_tokens);
    }

    /// Counts a row that is no sample.
    pub(crate) fn drop_row(&mut self, why: String) {
        *self.stats.dropped.entry(why).or_default() += 1;
    }

    /// What was counted so far.
    pub(crate) fn stats(&self) -> &SourceStats {
        &self.stats
    }

    /// Syncs the entry, adds its manifest and moves it to `path`.
    pub(super) fn finish(self, key: &CacheKey, path: &Path) -> Result<()> {
        let files = vec![self.tokens.finish()?, self.is_label.finish()?, self.lengths.finish()?];
        let manifest = Manifest { inputs: key.inputs.clone(), stats: self.stats.clone(), files };
        let text = serde_json::to_vec_pretty(&manifest).expect("a manifest is numbers and text");
        let mut file = HashedFile::create(&self.folder.path, MANIFEST)?;
        file.write(&text)?;
        file.finish()?;
        sync_folder(&self.folder.path)?;
        self.folder.move_to(path)
    }
}

/// A folder that is removed when it is dropped before it was moved to its place.
struct TempFolder {
    path: PathBuf,
}

impl TempFolder {
    fn create(path: &Path, state: &str) -> Result<Self> {
        let path = beside(path, state);
        fs::create_dir_all(&path).map_err(|source| Error::Write { path: path.clone(), source })?;
        Ok(Self { path })
    }

    fn move_to(self, path: &Path) -> Result<()> {
        let error = |source| Error::Write { path: path.to_path_buf(), source };
        if path.exists() {
            // A damaged entry. Whoever has it open keeps reading the old files.
            let old = Self { path: beside(path, "replaced") };
            fs::rename(path, &old.path).map_err(error)?;
        }
        fs::rename(&self.path, path).map_err(error)?;
        path.parent().map_or(Ok(()), sync_folder)
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        // After a successful move there is nothing here to remove.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A name beside `path` that no other process uses.
fn beside(path: &Path, state: &str) -> PathBuf {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{state}-{}-{}", std::process::id(), now.as_nanos()));
    path.with_file_name(name)
}

fn sync_folder(folder: &Path) -> Result<()> {
    let sync = || File::open(folder)?.sync_all();
    sync().map_err(|source| Error::Write { path: folder.to_path_buf(), source })
}
