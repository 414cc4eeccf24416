//! The Hugging Face hub: model and data set names to folders on this disk.
//!
//! The `hf-hub` client fetches files into the cache that all Hugging Face libraries share. This
//! module adds what it lacks: a snapshot that is one commit, the environment variables that people
//! have set already, offline use, and errors that say what to do. A folder is never a hub name: it
//! is returned as it is.

mod env_vars;
mod error;
mod progress;
mod snapshot;

use std::fmt;
use std::path::{Path, PathBuf};

use sterna_arch::adapters;

use self::snapshot::Snapshot;
use crate::assets;
use crate::error::{Error, Result};
use crate::weights::{INDEX_FILE, SINGLE_FILE, read_index};

pub use self::error::{HubError, HubRepo};

/// The hub, its cache on this disk, and how to reach it.
#[derive(Clone)]
pub struct Hub {
    /// Where the API is, without a slash at the end. It may have a name and a password in it; [`Hub::shown_endpoint`] has not.
    pub endpoint: String,
    /// The folder of the cache, which holds `models--ORG--NAME` folders.
    pub cache_dir: PathBuf,
    /// Who is asking, for repositories that are private or have terms.
    pub token: Option<String>,
    /// Whether to use the cache only.
    pub is_offline: bool,
}

/// What may be shown: not the token, only whether there is one.
impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.shown_endpoint())
            .field("cache_dir", &self.cache_dir)
            .field("has_token", &self.token.is_some())
            .field("is_offline", &self.is_offline)
            .finish()
    }
}

/// A model's folder with configuration, tokenizer and weights: `name_or_path` itself if it is a
/// folder, else the snapshot of a hub repository `ORG/NAME` or `ORG/NAME@REVISION`.
///
/// # Errors
///
/// [`HubError::NotAName`] for what is neither; those of the hub: [`HubError::Denied`],
/// [`HubError::NotFound`], [`HubError::Unreachable`], [`HubError::NotCached`],
/// [`HubError::Download`]; [`HubError::NoWeights`], and errors of the index of the weights.
pub fn resolve_model(name_or_path: &str) -> Result<PathBuf> {
    Hub::from_env().model(name_or_path)
}

/// As [`resolve_model`], without the weights.
///
/// # Errors
///
/// As [`resolve_model`].
pub fn resolve_model_config(name_or_path: &str) -> Result<PathBuf> {
    Hub::from_env().model_config(name_or_path)
}

/// The folder of adapters of PEFT, found as models are.
///
/// # Errors
///
/// As [`resolve_model`].
pub fn resolve_adapter(name_or_path: &str) -> Result<PathBuf> {
    Hub::from_env().adapter(name_or_path)
}

/// A data set's folder: `name_or_path` itself if it is one, else the snapshot of a hub repository
/// with its README and every file of a format that we read.
///
/// # Errors
///
/// As [`resolve_model`], and [`HubError::NoData`].
pub fn resolve_dataset(name_or_path: &str) -> Result<PathBuf> {
    Hub::from_env().dataset(name_or_path)
}

impl Hub {
    /// The hub as the environment describes it: `HF_ENDPOINT`, `HF_HUB_CACHE` or `HF_HOME`,
    /// `HF_TOKEN` or the file that `hf auth login` writes, `HF_HUB_OFFLINE`.
    pub fn from_env() -> Hub {
        env_vars::hub()
    }

    /// The endpoint for messages: without what stands before an `@`, which is somebody's password.
    pub fn shown_endpoint(&self) -> String {
        let (scheme, rest) = self.endpoint.split_once("://").unwrap_or(("", &self.endpoint));
        let (host, path) =
            rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let scheme = if scheme.is_empty() { String::new() } else { format!("{scheme}://") };
        let path = path.map(|path| format!("/{path}")).unwrap_or_default();
        format!("{scheme}{host}{path}")
    }

    /// See [`resolve_model`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn model(&self, name_or_path: &str) -> Result<PathBuf> {
        let Some(snapshot) = self.model_snapshot(name_or_path)? else {
            return Ok(PathBuf::from(name_or_path));
        };
        fetch_assets(&snapshot)?;
        if snapshot.has(SINGLE_FILE) {
            snapshot.fetch(SINGLE_FILE)?;
        } else if snapshot.has(INDEX_FILE) {
            let path = snapshot.fetch(INDEX_FILE)?;
            let text = std::fs::read_to_string(&path)
                .map_err(|source| Error::Read { path: path.clone(), source })?;
            let mut files: Vec<String> = read_index(&text, &path)?.into_values().collect();
            files.sort();
            files.dedup();
            for file in files {
                snapshot.fetch(&file)?;
            }
        } else if snapshot.is_listed() {
            return Err(HubError::NoWeights { repo: snapshot.repo().clone() }.into());
        } else {
            // The cache has no weights; fetching says why that is the end.
            snapshot.fetch(SINGLE_FILE)?;
        }
        snapshot.finish()
    }

    /// See [`resolve_model_config`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn model_config(&self, name_or_path: &str) -> Result<PathBuf> {
        let Some(snapshot) = self.model_snapshot(name_or_path)? else {
            return Ok(PathBuf::from(name_or_path));
        };
        fetch_assets(&snapshot)?;
        snapshot.finish()
    }

    /// See [`resolve_adapter`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn adapter(&self, name_or_path: &str) -> Result<PathBuf> {
        let Some(snapshot) = self.model_snapshot(name_or_path)? else {
            return Ok(PathBuf::from(name_or_path));
        };
        for name in [adapters::CONFIG_FILE, adapters::WEIGHTS_FILE] {
            snapshot.fetch(name)?;
        }
        snapshot.finish()
    }

    /// See [`resolve_dataset`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn dataset(&self, name_or_path: &str) -> Result<PathBuf> {
        if Path::new(name_or_path).is_dir() {
            return Ok(PathBuf::from(name_or_path));
        }
        let snapshot = Snapshot::open(self, parse_name(name_or_path, true)?)?;
        let files: Vec<&str> = snapshot.files().filter(|file| is_data(file)).collect();
        if files.is_empty() {
            return Err(HubError::NoData { repo: snapshot.repo().clone() }.into());
        }
        if snapshot.has("README.md") {
            snapshot.fetch("README.md")?;
        }
        for file in files {
            snapshot.fetch(file)?;
        }
        snapshot.finish()
    }

    /// The snapshot of a hub name, or `None` for a folder.
    fn model_snapshot(&self, name_or_path: &str) -> Result<Option<Snapshot>> {
        if Path::new(name_or_path).is_dir() {
            return Ok(None);
        }
        Snapshot::open(self, parse_name(name_or_path, false)?).map(Some)
    }
}

/// Fetches configuration and tokenizer; only the configuration has to be there.
fn fetch_assets(snapshot: &Snapshot) -> Result<()> {
    for name in assets::names() {
        if snapshot.has(name) || name == "config.json" {
            snapshot.fetch(name)?;
        }
    }
    Ok(())
}

/// Whether a data set's file is one that we read; the library's own descriptions are wanted too.
fn is_data(file: &str) -> bool {
    let extension = Path::new(file).extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| {
        ["parquet", "jsonl", "json", "arrow"]
            .iter()
            .any(|ours| extension.eq_ignore_ascii_case(ours))
    })
}

/// `ORG/NAME` or `ORG/NAME@REVISION`; a few old repositories have no `ORG`.
fn parse_name(name: &str, is_dataset: bool) -> Result<HubRepo> {
    let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
    let is_word = |word: &str| {
        let has_legal_characters =
            word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        has_legal_characters
            && !word.is_empty()
            && !word.starts_with(['.', '-'])
            && !word.contains("..")
    };
    let is_id = id.split('/').count() <= 2 && id.split('/').all(is_word);
    // The revision becomes a path in the cache.
    let is_revision = revision.split('/').all(is_word);
    if !is_id || !is_revision {
        return Err(HubError::NotAName { found: name.to_owned() }.into());
    }
    Ok(HubRepo { id: id.to_owned(), revision: revision.to_owned(), is_dataset })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_at_most_one_slash_and_a_revision() {
        let repo = parse_name("org/name.v1@refs/pr/1", false).unwrap();
        assert_eq!((repo.id.as_str(), repo.revision.as_str()), ("org/name.v1", "refs/pr/1"));
        assert_eq!(parse_name("gpt2", false).unwrap().revision, "main");
        let bad_names = [
            "",
            "/abs/path",
            "./rel",
            "../up",
            "a/b/c",
            "a//b",
            "a/..",
            "a/b@../../etc",
            "a/b@",
            "a b/c",
            "~/model",
            "a/b@/x",
        ];
        for bad in bad_names {
            assert!(parse_name(bad, false).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_files_that_we_read_are_data() {
        assert!(is_data("data/train-00000-of-00001.parquet") && is_data("x.JSONL"));
        assert!(!is_data("README.md") && !is_data("load.py") && !is_data("parquet"));
    }
}
