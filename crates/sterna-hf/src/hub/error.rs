//! What can go wrong between a name and a folder.

use std::fmt;
use std::path::PathBuf;

use hf_hub::api::sync::ApiError;

/// Why the hub, or the cache in its place, did not give what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A name is neither a folder nor that of a hub repository.
    #[error("`{found}` is not a folder, nor a hub name such as `org/name` or `org/name@revision`")]
    NotAName {
        /// The name.
        found: String,
    },
    /// The hub has no such repository or revision.
    #[error("{repo} not found on `{endpoint}`")]
    NotFound {
        /// The repository.
        repo: HubRepo,
        /// The hub.
        endpoint: String,
    },
    /// The hub does not give us the repository. It answers so for unknown names, too.
    #[error("the hub refuses access to {repo} (status `{status}`)")]
    Denied {
        /// The repository.
        repo: HubRepo,
        /// The HTTP status, 401 or 403.
        status: u16,
        /// Whether a token was sent.
        has_token: bool,
    },
    /// The hub did not answer, or not with what was asked, and the cache has nothing.
    #[error("cannot ask `{endpoint}` for {repo}, which is not in the cache")]
    Unreachable {
        /// The repository.
        repo: HubRepo,
        /// The hub.
        endpoint: String,
        /// What the client said.
        #[source]
        source: ApiError,
    },
    /// The cache lacks the repository or a file of it, and it is all there is.
    #[error(
        "{repo}{} is not in the cache `{}`, and {}",
        file.as_ref().map(|file| format!(": file `{file}`")).unwrap_or_default(),
        cache_dir.display(),
        if *is_offline { "offline mode is on" } else { "the hub cannot be reached" }
    )]
    NotCached {
        /// The repository.
        repo: HubRepo,
        /// The file that is missing; `None` when all are.
        file: Option<String>,
        /// The cache.
        cache_dir: PathBuf,
        /// Whether offline mode forbids to ask the hub.
        is_offline: bool,
    },
    /// A file did not come down whole.
    #[error("cannot download `{file}` of {repo} from `{endpoint}`")]
    Download {
        /// The repository.
        repo: HubRepo,
        /// The file.
        file: String,
        /// The hub.
        endpoint: String,
        /// What the client said.
        #[source]
        source: ApiError,
    },
    /// The hub's answer would lead outside the cache.
    #[error("the hub's answer about {repo} has `{found}`, required: {required}")]
    Answer {
        /// The repository.
        repo: HubRepo,
        /// What it said.
        found: String,
        /// What it has to say.
        required: &'static str,
    },
    /// A model repository has no safetensors weights.
    #[error("{repo} has neither `model.safetensors` nor `model.safetensors.index.json`")]
    NoWeights {
        /// The repository.
        repo: HubRepo,
    },
    /// A data set repository has no file that we read.
    #[error("{repo} has no `parquet`, `jsonl`, `json` or `arrow` file")]
    NoData {
        /// The repository.
        repo: HubRepo,
    },
}

impl HubError {
    /// What the user can do about it, when that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            HubError::NotAName { .. } => {
                "check the spelling; a path may be relative to the current folder"
            }
            HubError::NotFound { .. } => "check the spelling of the name and the revision",
            HubError::Denied { has_token: false, .. } => {
                "check the spelling; if it is private or has terms to accept, set `HF_TOKEN` to a \
                 token that may read it"
            }
            HubError::Denied { has_token: true, .. } => {
                "check the spelling; accept the terms on its page, or set `HF_TOKEN` to a token \
                 that may read it"
            }
            HubError::Unreachable { .. } | HubError::Download { .. } => {
                "check the network, the proxy (`HTTPS_PROXY`) or the mirror (`HF_ENDPOINT`), or \
                 name a folder that has the files"
            }
            HubError::NotCached { is_offline: true, .. } => {
                "unset `HF_HUB_OFFLINE` to download it, or name a folder that has the files"
            }
            HubError::NotCached { is_offline: false, .. } => {
                "download it once where the hub can be reached, or name a folder that has the files"
            }
            HubError::NoWeights { .. } => {
                "choose a repository with safetensors weights; pickled ones are not read"
            }
            HubError::NoData { .. } => {
                "data sets made by a script have converted files at revision `refs/convert/parquet`"
            }
            HubError::Answer { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

/// A repository of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubRepo {
    /// `ORG/NAME`.
    pub id: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// Whether it is a data set, else a model.
    pub is_dataset: bool,
}

impl fmt::Display for HubRepo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_dataset { "data set" } else { "model" };
        match self.revision.as_str() {
            "main" => write!(f, "{kind} `{}`", self.id),
            revision => write!(f, "{kind} `{}` at revision `{revision}`", self.id),
        }
    }
}
