//! One commit of a hub repository in the cache, some of its files perhaps not fetched yet.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::progress::LoggedProgress;
use super::{Hub, HubError, HubRepo};
use crate::error::{Error, Result};
use crate::weights::stays_inside;

/// Attempts after a failed one, for each file.
const RETRIES: usize = 5;

/// A commit of a repository, with the names of its files.
pub(super) struct Snapshot {
    repo: HubRepo,
    hub: Hub,
    dir: PathBuf,
    commit: String,
    files: Vec<String>,
    /// The client, unless the cache is all there is.
    remote: Option<ApiRepo>,
}

impl Snapshot {
    /// Asks the hub which commit `repo` is at; without the hub, the cache.
    pub(super) fn open(hub: &Hub, repo: HubRepo) -> Result<Snapshot> {
        if hub.is_offline {
            return Snapshot::cached(hub, repo);
        }
        let api = api(hub).map_err(|source| failed(hub, &repo, None, source))?;
        match api.repo(client_repo(&repo, repo.revision.clone())).info() {
            Ok(info) => Snapshot::listed(hub, repo, &api, info),
            Err(error) if is_unreachable(&error) => {
                let unreachable = failed(hub, &repo, None, error);
                let snapshot = Snapshot::cached(hub, repo).map_err(|_| unreachable)?;
                tracing::warn!(
                    endpoint = hub.shown_endpoint(),
                    dir = %snapshot.dir.display(),
                    "the hub cannot be reached, what the cache has of `{}` is used",
                    snapshot.repo.id
                );
                Ok(snapshot)
            }
            Err(error) => Err(failed(hub, &repo, None, error).into()),
        }
    }

    fn listed(
        hub: &Hub,
        repo: HubRepo,
        api: &Api,
        info: hf_hub::api::RepoInfo,
    ) -> Result<Snapshot> {
        // These become paths on this disk.
        let is_commit = !info.sha.is_empty() && info.sha.chars().all(|c| c.is_ascii_alphanumeric());
        if !is_commit {
            return Err(
                HubError::Answer { repo, found: info.sha, required: "a commit hash" }.into()
            );
        }
        let mut files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        if let Some(outside) = files.iter().find(|file| !stays_inside(file)) {
            let found = outside.clone();
            return Err(
                HubError::Answer { repo, found, required: "files inside the repository" }.into()
            );
        }
        files.sort();
        let remote = api.repo(client_repo(&repo, info.sha.clone()));
        let dir = cache_repo(hub, &repo).pointer_path(&info.sha);
        Ok(Snapshot { repo, hub: hub.clone(), dir, commit: info.sha, files, remote: Some(remote) })
    }

    fn cached(hub: &Hub, repo: HubRepo) -> Result<Snapshot> {
        let not_cached = || HubError::NotCached {
            repo: repo.clone(),
            file: None,
            cache_dir: hub.cache_dir.clone(),
            is_offline: hub.is_offline,
        };
        let folder = hub.cache_dir.join(client_repo(&repo, repo.revision.clone()).folder_name());
        // A revision is a branch or tag that `refs` knows, or a commit.
        let commit = match std::fs::read_to_string(folder.join("refs").join(&repo.revision)) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => repo.revision.clone(),
        };
        let dir = folder.join("snapshots").join(&commit);
        if !stays_inside(&commit) || !dir.is_dir() {
            return Err(not_cached().into());
        }
        let mut files = Vec::new();
        list_files(&dir, Path::new(""), &mut files)
            .map_err(|source| Error::Read { path: dir.clone(), source })?;
        files.sort();
        Ok(Snapshot { repo, hub: hub.clone(), dir, commit, files, remote: None })
    }

    pub(super) fn repo(&self) -> &HubRepo {
        &self.repo
    }

    /// Whether the list of files is the hub's, not only the cache's.
    pub(super) fn is_listed(&self) -> bool {
        self.remote.is_some()
    }

    /// The files of the commit, or those of them in the cache when that is all there is.
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(String::as_str)
    }

    pub(super) fn has(&self, file: &str) -> bool {
        self.files.binary_search_by(|known| known.as_str().cmp(file)).is_ok()
    }

    /// The path of a file, downloaded if the cache does not have it.
    pub(super) fn fetch(&self, file: &str) -> Result<PathBuf> {
        let path = self.dir.join(file);
        if path.exists() {
            return Ok(path);
        }
        let Some(remote) = &self.remote else {
            return Err(HubError::NotCached {
                repo: self.repo.clone(),
                file: Some(file.to_owned()),
                cache_dir: self.hub.cache_dir.clone(),
                is_offline: self.hub.is_offline,
            }
            .into());
        };
        tracing::info!("downloading {file} of {}", self.repo.id);
        let mut has_waited = false;
        loop {
            match remote.download_with_progress(file, LoggedProgress::new()) {
                Ok(path) => return Ok(path),
                // Another process has it half; the lock ends with that process at the latest.
                Err(ApiError::LockAcquisition(lock)) => {
                    if !has_waited {
                        tracing::info!(lock = %lock.display(), "waiting for another process to download {file}");
                    }
                    has_waited = true;
                    if path.exists() {
                        return Ok(path);
                    }
                }
                Err(error) => return Err(failed(&self.hub, &self.repo, Some(file), error).into()),
            }
        }
    }

    /// Notes in the cache which commit the revision is, now that its files are there, and gives the
    /// folder.
    pub(super) fn finish(self) -> Result<PathBuf> {
        if self.remote.is_some() {
            let cache = cache_repo(&self.hub, &self.repo);
            cache.create_ref(&self.commit).map_err(|source| Error::Write {
                path: self.hub.cache_dir.clone(),
                needed_bytes: 0,
                source,
            })?;
        }
        Ok(self.dir)
    }
}

fn api(hub: &Hub) -> Result<Api, ApiError> {
    ApiBuilder::from_cache(Cache::new(hub.cache_dir.clone()))
        .with_endpoint(hub.endpoint.clone())
        .with_token(hub.token.clone())
        .with_progress(false)
        .with_retries(RETRIES)
        .with_user_agent("sterna", env!("CARGO_PKG_VERSION"))
        .build()
}

fn client_repo(repo: &HubRepo, revision: String) -> Repo {
    let repo_type = if repo.is_dataset { RepoType::Dataset } else { RepoType::Model };
    Repo::with_revision(repo.id.clone(), repo_type, revision)
}

fn cache_repo(hub: &Hub, repo: &HubRepo) -> hf_hub::CacheRepo {
    Cache::new(hub.cache_dir.clone()).repo(client_repo(repo, repo.revision.clone()))
}

/// Whether the answer did not come, or is the server's trouble and not ours.
fn is_unreachable(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(error) => {
            !matches!(**error, ureq::Error::StatusCode(status) if status < 500)
        }
        _ => false,
    }
}

/// The error that a user can do something about.
fn failed(hub: &Hub, repo: &HubRepo, file: Option<&str>, error: ApiError) -> HubError {
    let repo = repo.clone();
    let endpoint = hub.shown_endpoint();
    let status = match &error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    };
    match (status, file) {
        (Some(status @ (401 | 403)), _) => {
            HubError::Denied { repo, status, has_token: hub.token.is_some() }
        }
        (Some(404), None) => HubError::NotFound { repo, endpoint },
        (_, None) => HubError::Unreachable { repo, endpoint, source: error },
        (_, Some(file)) => {
            HubError::Download { repo, file: file.to_owned(), endpoint, source: error }
        }
    }
}

/// The files below `dir`, relative to it.
fn list_files(dir: &Path, below: &Path, files: &mut Vec<String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir.join(below))? {
        let name = below.join(entry?.file_name());
        let path = dir.join(&name);
        if path.is_dir() {
            list_files(dir, &name, files)?;
        } else if path.exists()
            && let Some(name) = name.to_str()
        {
            files.push(name.to_owned());
        }
    }
    Ok(())
}
