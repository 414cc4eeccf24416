//! The files of a cache entry and the manifest that vouches for them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sterna_hf::hex;

use super::hash;
use crate::error::{Error, Result};

pub(super) const TOKENS: &str = "tokens.u32";
pub(super) const IS_LABEL: &str = "is_label.u8";
pub(super) const LENGTHS: &str = "lengths.u32";
/// The files of an entry, in the manifest's order.
const FILES: [&str; 3] = [TOKENS, IS_LABEL, LENGTHS];
/// Name of the manifest.
pub(super) const MANIFEST: &str = "manifest.json";

/// What was counted while a source was tokenized.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStats {
    /// Samples.
    pub samples: usize,
    /// Rows that are no sample, by the reason.
    pub dropped: BTreeMap<String, usize>,
    /// Tokens of all samples.
    pub tokens: u64,
    /// Tokens that are labels.
    pub label_tokens: u64,
    /// Samples without any label.
    pub samples_without_label: usize,
    /// Messages of the rows that are in no sample, by the reason.
    pub left_out: BTreeMap<String, usize>,
    /// Replies with labels.
    pub replies: usize,
    /// Those of which no end of turn is a label.
    pub unclosed_replies: usize,
    /// Samples with a text that the assistant did not write and that spells a special token.
    pub control_token_rows: usize,
}

/// What stands in `manifest.json`.
#[derive(Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) inputs: Value,
    pub(super) stats: SourceStats,
    pub(super) files: Vec<ManifestFile>,
}

/// One file of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ManifestFile {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// Why an entry is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    /// A file is missing or has another length.
    #[error("`{name}` has `{found}` bytes, required: `{required}`")]
    Size { name: String, found: u64, required: u64 },
    /// The content of a file is not what was written.
    #[error("`{name}` has another content than when it was written")]
    Content { name: String },
    /// The manifest does not parse, or names other files.
    #[error("`manifest.json` is not valid")]
    Manifest,
    /// The system refused to read; not a damage that a rebuild would repair.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
}

impl Damage {
    /// As an error, for an entry that was written just before.
    pub(super) fn into_error(self, path: &Path) -> Error {
        let source = match self {
            Self::Unreadable(source) => source,
            damage => io::Error::new(io::ErrorKind::InvalidData, damage),
        };
        Error::Read { path: path.to_path_buf(), source }
    }
}

/// Reads the manifest in `folder` and checks every file against it.
pub(super) fn check(folder: &Path) -> Result<Manifest, Damage> {
    let text = match fs::read(folder.join(MANIFEST)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Damage::Manifest),
        text => text?,
    };
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|_| Damage::Manifest)?;
    if !manifest.files.iter().map(|file| &*file.name).eq(FILES) {
        return Err(Damage::Manifest);
    }
    for ManifestFile { name, bytes, sha256 } in &manifest.files {
        let file = match File::open(folder.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Damage::Size { name: name.clone(), found: 0, required: *bytes });
            }
            file => file?,
        };
        let found = file.metadata()?.len();
        if found != *bytes {
            return Err(Damage::Size { name: name.clone(), found, required: *bytes });
        }
        if hash(file)? != *sha256 {
            return Err(Damage::Content { name: name.clone() });
        }
    }
    Ok(manifest)
}

/// A file that is hashed while it is written.
pub(super) struct HashedFile {
    path: PathBuf,
    name: String,
    out: BufWriter<File>,
    hasher: Sha256,
    bytes: u64,
}

impl HashedFile {
    pub(super) fn create(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        let file =
            File::create(&path).map_err(|source| Error::Write { path: path.clone(), source })?;
        let out = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { path, name: name.to_owned(), out, hasher: Sha256::new(), bytes: 0 })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|source| Error::Write { path: self.path.clone(), source })
    }

    /// Brings everything to the disk.
    pub(super) fn finish(self) -> Result<ManifestFile> {
        let error = |source| Error::Write { path: self.path.clone(), source };
        let file = self.out.into_inner().map_err(|failed| error(failed.into_error()))?;
        file.sync_all().map_err(error)?;
        Ok(ManifestFile {
            name: self.name,
            bytes: self.bytes,
            sha256: hex(&self.hasher.finalize()),
        })
    }
}
