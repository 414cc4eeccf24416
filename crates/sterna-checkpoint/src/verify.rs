//! Hashes of files, and the check of every byte of a checkpoint.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest as _, Sha256};
use sterna_hf::hex;

use crate::error::{Error, Result};
use crate::manifest::{Checkpoint, FileEntry};

impl Checkpoint {
    /// Reads every file and compares size and hash with the manifest's. Returns what is wrong, in the manifest's order.
    pub fn verify(&self) -> Vec<Error> {
        let files = self.manifest.files.par_iter();
        files.filter_map(|entry| self.verify_file(entry).err()).collect()
    }

    /// Reads one file and compares size and hash.
    ///
    /// # Errors
    ///
    /// [`Error::FileMissing`], [`Error::FileSize`], [`Error::FileContent`] or [`Error::Read`].
    pub fn verify_file(&self, entry: &FileEntry) -> Result<()> {
        let path = self.dir.join(&entry.name);
        let found = match path.metadata() {
            Ok(metadata) => metadata.len(),
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                return Err(Error::FileMissing { path });
            }
            Err(source) => return Err(Error::Read { path, source }),
        };
        if found != entry.bytes {
            return Err(Error::FileSize { path, found, required: entry.bytes });
        }
        let found = hash_file(&path)?;
        if found != entry.sha256 {
            return Err(Error::FileContent { path, found, required: entry.sha256.clone() });
        }
        Ok(())
    }
}

/// SHA-256 of a file's content, in hexadecimal.
///
/// # Errors
///
/// [`Error::Read`].
pub fn hash_file(path: &Path) -> Result<String> {
    let hash = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut block = vec![0; 1 << 20];
        loop {
            match file.read(&mut block)? {
                0 => return Ok(hex(&hasher.finalize())),
                len => hasher.update(&block[..len]),
            }
        }
    };
    hash().map_err(|source| Error::Read { path: path.to_owned(), source })
}

pub(crate) fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
