//! Log-probabilities by a reference model on disk, so that no run computes what another has.
//!
//! One file for each reference model: `sterna-reference-KEY` in `data.cache_dir`. It has an entry for each row of a micro-batch under
//! the hash of what is in it, so that another world size or another number of steps finds the rows that it has in common. The key has the
//! hash of all weights: a sample of them would not tell a model from itself after a step of a small learning rate, which changes few of the
//! bf16 values, and reading them once is little beside the forwards that it saves.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sterna_arch::{ModelConfig, ParamSpec, Role};
use sterna_comm::Comm;
use sterna_data::{IGNORE_INDEX, MicroBatch};
use sterna_hf::{WeightFiles, hex};
use tch::Tensor;

use crate::{error::TrainError, scalars::max};

/// Raised whenever the same key would give other numbers or another file than before.
const FORMAT: u32 = 1;

type Hash = [u8; 32];

/// What is known of rows.
pub(in crate::trainer) struct Cache {
    path: PathBuf,
    of_rows: HashMap<Hash, Vec<f64>>,
    /// Those that this rank added.
    added: Vec<Hash>,
}

impl Cache {
    /// What the file of `inputs`, everything that the numbers depend on beside the rows, has. A damaged one is reported, and is computed again.
    ///
    /// # Communication
    ///
    /// Rank 0 reads and sends it to all. Collective.
    ///
    /// # Errors
    ///
    /// [`TrainError::Comm`] if a peer failed.
    pub(in crate::trainer) fn open(
        cache_dir: &Path,
        mut inputs: Value,
        comm: &Comm,
    ) -> Result<Self, TrainError> {
        inputs["format"] = json!(FORMAT);
        inputs["sterna"] = json!(env!("CARGO_PKG_VERSION"));
        let key = hex(&Sha256::digest(inputs.to_string()));
        let path = cache_dir.join(format!("sterna-reference-{}", &key[..32]));
        let own = if comm.mesh.rank() == 0 { read(&path) } else { Vec::new() };
        let of_rows = parsed(&of_rank_0(own, comm)?).unwrap_or_default();
        Ok(Self { path, of_rows, added: Vec::new() })
    }

    /// The log-probabilities of the samples of `batch`, if those of all its rows are known.
    pub(super) fn get(&self, batch: &MicroBatch) -> Option<Vec<f64>> {
        let rows = rows(batch).map(|(hash, _)| self.of_rows.get(&hash));
        Some(rows.collect::<Option<Vec<_>>>()?.into_iter().flatten().copied().collect())
    }

    /// Adds `log_probs`, those of the samples of `batch`.
    pub(super) fn insert(&mut self, batch: &MicroBatch, mut log_probs: &[f64]) {
        for (hash, num_samples) in rows(batch) {
            let (of_row, rest) = log_probs.split_at(num_samples);
            if self.of_rows.insert(hash, of_row.to_vec()).is_none() {
                self.added.push(hash);
            }
            log_probs = rest;
        }
    }

    /// Writes what was there and what ranks added, whole or not at all. That it cannot be written is no reason to end a run.
    ///
    /// # Communication
    ///
    /// One all-gather of what was added, over the dp axis. Collective.
    ///
    /// # Errors
    ///
    /// [`TrainError::Comm`] if a peer failed.
    pub(super) fn save(&mut self, comm: &Comm) -> Result<(), TrainError> {
        let added = std::mem::take(&mut self.added);
        let added = bytes_of(added.iter().map(|hash| (hash, &self.of_rows[hash])));
        for added in comm.dp().all_gather_bytes(&added)? {
            self.of_rows.extend(parsed(&added).unwrap_or_default());
        }
        if comm.mesh.rank() == 0 {
            // With what other runs wrote meanwhile.
            let mut of_rows = parsed(&read(&self.path)).unwrap_or_default();
            of_rows.extend(self.of_rows.clone());
            if let Err(error) = write(&self.path, &bytes_of(&of_rows)) {
                tracing::warn!(
                    "cannot keep the reference model's log-probabilities in `{}`, the next run computes them again: {error}",
                    self.path.display()
                );
            }
        }
        Ok(())
    }
}

/// The hash of all weights of a model but those of adapters, each of which one rank reads, whatever files they are in.
///
/// # Communication
///
/// One all-gather of a hash for each tensor. Collective.
///
/// # Errors
///
/// [`TrainError::Hf`] for a tensor that cannot be read; [`TrainError::Comm`] if a peer failed.
pub(in crate::trainer) fn hash_of_weights(
    files: &WeightFiles,
    config: &ModelConfig,
    comm: &Comm,
) -> Result<String, TrainError> {
    let (rank, world_size) = (comm.mesh.rank(), comm.mesh.world_size());
    let own_params = || config.arch.params().filter(|spec| spec.role != Role::Adapter);
    let mut own = Vec::new();
    for ParamSpec { name, .. } in own_params().skip(rank).step_by(world_size) {
        let view = files.tensor(name)?;
        let mut hasher = Sha256::new();
        hasher.update(format!("{name} {:?} {:?} ", view.dtype, view.shape));
        for (_, bytes) in view.pieces(&(0..view.numel())) {
            hasher.update(bytes);
        }
        own.extend(hasher.finalize());
    }
    let of_ranks = comm.world().all_gather_bytes(&own)?;
    let mut of_ranks: Vec<_> = of_ranks.iter().map(|hashes| hashes.chunks(32)).collect();
    let mut hasher = Sha256::new();
    // In the order of the model, so that the number of ranks is not in it.
    for (i, _) in own_params().enumerate() {
        hasher.update(of_ranks[i % world_size].next().unwrap_or_default());
    }
    Ok(hex(&hasher.finalize()))
}

/// The hash of what is in each row, without padding, and how many samples those are.
fn rows(batch: &MicroBatch) -> impl Iterator<Item = (Hash, usize)> {
    let of_row = |(row, seqlens): (usize, &Vec<usize>)| {
        let start = row * batch.len;
        let place = start..start + seqlens.iter().sum::<usize>();
        let mut hasher = Sha256::new();
        for number in [&[seqlens.len()], &seqlens[..]].concat() {
            hasher.update((number as u64).to_le_bytes());
        }
        for (id, label) in batch.input_ids[place.clone()].iter().zip(&batch.labels[place]) {
            hasher.update(id.to_le_bytes());
            hasher.update([u8::from(*label != IGNORE_INDEX)]);
        }
        (hasher.finalize().into(), seqlens.len())
    };
    batch.packed_sample_seqlens.iter().enumerate().map(of_row)
}

/// For each row its hash, how many numbers there are, and these, little-endian; at the end the hash of it all.
fn bytes_of<'a>(rows: impl IntoIterator<Item = (&'a Hash, &'a Vec<f64>)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (hash, log_probs) in rows {
        bytes.extend(hash);
        bytes.extend((log_probs.len() as u32).to_le_bytes());
        bytes.extend(log_probs.iter().flat_map(|log_prob| log_prob.to_le_bytes()));
    }
    let hash = Sha256::digest(&bytes);
    bytes.extend(hash);
    bytes
}

/// The rows of [`bytes_of`], if they are as they were written.
fn parsed(bytes: &[u8]) -> Option<HashMap<Hash, Vec<f64>>> {
    let (mut rest, hash) = bytes.split_last_chunk::<32>()?;
    if *Sha256::digest(rest) != *hash {
        return None;
    }
    let mut rows = HashMap::new();
    while let Some((hash, after)) = rest.split_first_chunk::<32>() {
        let (num, after) = after.split_first_chunk()?;
        let (log_probs, after) = after.split_at_checked(8 * u32::from_le_bytes(*num) as usize)?;
        let log_probs = log_probs.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes));
        rows.insert(*hash, log_probs.collect());
        rest = after;
    }
    rest.is_empty().then_some(rows)
}

/// The file, empty if there is no sound one.
fn read(path: &Path) -> Vec<u8> {
    let why = match fs::read(path) {
        Ok(bytes) if parsed(&bytes).is_some() => return bytes,
        Ok(_) => "it is not as it was written".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => error.to_string(),
    };
    tracing::warn!(
        "the reference model's log-probabilities in `{}` are computed again: {why}",
        path.display()
    );
    Vec::new()
}

/// Beside its place, synced, and renamed into it.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    // As of any file, so that others may read it.
    let permissions = fs::Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new()
        .prefix("sterna-reference-incomplete-")
        .permissions(permissions)
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(folder)?.sync_all()
}

/// What rank 0 has.
///
/// # Communication
///
/// An all-reduce of its length and a broadcast. Collective.
///
/// # Errors
///
/// [`TrainError::Comm`] if a peer failed.
fn of_rank_0(bytes: Vec<u8>, comm: &Comm) -> Result<Vec<u8>, TrainError> {
    let len = max(comm.world(), bytes.len() as f64)? as usize;
    if len == bytes.len() && (len == 0 || comm.mesh.world_size() == 1) {
        return Ok(bytes);
    }
    let is_own = comm.mesh.rank() == 0;
    let bytes = if is_own { bytes } else { vec![0; len] };
    let tensor = Tensor::from_slice(&bytes);
    comm.world().broadcast(&tensor, 0)?.wait()?;
    Ok(Vec::try_from(tensor).expect("one dimension of bytes"))
}
