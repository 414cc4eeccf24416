//! Checkpoints of a running job: written beside training, complete when every rank has written its part.
//!
//! ```text
//! step k        all ranks copy their states; rank 0 makes the folder
//! step k+1 ..   a thread on each rank writes and hashes its file; before each step the ranks ask each other whether all are done
//! step k+n      they are: rank 0 writes the manifest and gives the folder its name
//! ```
//!
//! Where there is no memory for the copy, a rank writes at once and training waits for it. The ranks need not do the same.

pub(crate) mod resume;

use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use sterna_checkpoint::{CheckpointFolder, FileEntry, Manifest, Position, ShardWriter, list};
use sterna_comm::Group;
use sterna_hf::assets::{MODEL_FILES, TOKENIZER_FILES};
use sterna_plan::Plan;
use sterna_recipe::{CheckpointKind, CheckpointOptions, Recipe};

use crate::error::TrainError;
use crate::observe::memory::{HostMemory, has_room};
use crate::scalars::max;
use crate::zero::Zero;

/// How long a rank looks for what rank 0 wrote into a shared folder: network file systems show it late.
const VISIBLE_WITHIN: Duration = Duration::from_secs(10);

/// What a run is at a step, beside the states of its ranks.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    /// Optimizer steps done.
    pub(crate) step: u64,
    /// Those that changed the weights.
    pub(crate) num_updates: u64,
    pub(crate) position: Position,
    /// Bytes of the metrics file, on the rank that writes it.
    pub(crate) metrics_bytes: Option<u64>,
}

/// What every checkpoint of a run says of it.
#[derive(Debug)]
pub(crate) struct RunIdentity {
    /// SHA-256 of the data and its order.
    pub(crate) data: String,
    /// The model's `config.json`, with the recipe's changes.
    pub(crate) model: Map<String, Value>,
    /// The recipe as it was resolved.
    pub(crate) recipe: Value,
    pub(crate) sequence_parallel_size: usize,
    pub(crate) model_dir: PathBuf,
    pub(crate) tokenizer_dir: PathBuf,
    /// Its adapters, as an export's `adapter_config.json` says them.
    pub(crate) adapter: Option<Map<String, Value>>,
    /// What tells the weights under its adapters from others.
    pub(crate) base: Option<String>,
}

/// The checkpoint entries of a recipe, and the one that is being written.
pub(crate) struct Checkpoints {
    entries: Vec<Entry>,
    pending: Option<Pending>,
    /// Ranks that share this machine's memory.
    local_world_size: u64,
    /// Bytes that a rank has resident at the peak of a step, by the plan.
    step_bytes: u64,
}

struct Entry {
    options: CheckpointOptions,
    /// On rank 0, which makes and completes checkpoints.
    folder: Option<CheckpointFolder>,
}

struct Pending {
    entry_idx: usize,
    progress: Progress,
    writing: Writing,
}

/// This rank's file.
enum Writing {
    Thread(JoinHandle<Result<FileEntry, sterna_checkpoint::Error>>),
    /// Written, or failed: what all ranks will be told.
    Done(Result<FileEntry, TrainError>),
}

impl Writing {
    fn is_done(&self) -> bool {
        match self {
            Self::Thread(thread) => thread.is_finished(),
            Self::Done(_) => true,
        }
    }

    fn wait(self) -> Result<FileEntry, TrainError> {
        match self {
            Self::Thread(thread) => {
                let written =
                    thread.join().map_err(|panic| TrainError::from_panic(panic.as_ref()))?;
                Ok(written?)
            }
            Self::Done(written) => written,
        }
    }
}

impl Checkpoints {
    /// Takes the folders of the recipe's resumable entries for this run, and makes sure that all ranks see them.
    ///
    /// # Communication
    ///
    /// One all-gather for each entry. Collective.
    ///
    /// # Errors
    ///
    /// [`TrainError::Checkpoint`] if another run has a folder or it cannot be written; [`TrainError::FolderNotShared`].
    pub(crate) fn open(
        recipe: &Recipe,
        world: &Group,
        local_world_size: usize,
    ) -> Result<Self, TrainError> {
        let mut entries = Vec::new();
        for options in &recipe.checkpoint {
            if options.kind != CheckpointKind::Sterna {
                continue;
            }
            let dir = &options.output_dir;
            let folder = (world.rank() == 0).then(|| CheckpointFolder::open(dir)).transpose()?;
            let holder = folder.as_ref().map(|folder| folder.holder().to_owned());
            let of_ranks = world.all_gather_bytes(holder.unwrap_or_default().as_bytes())?;
            check_shared(dir, &of_ranks[0], world)?;
            entries.push(Entry { options: options.clone(), folder });
        }
        let local_world_size = local_world_size as u64;
        Ok(Self { entries, pending: None, local_world_size, step_bytes: 0 })
    }

    /// Says what a step takes, so that a copy of the states is made only where there is room for both.
    pub(crate) fn expect_step_of(&mut self, plan: &Plan, num_attention: usize) {
        let memory = &plan.memory;
        let kept = memory.kept_attention_bytes * num_attention as u64;
        self.step_bytes = memory.device_bytes() + memory.host_bytes() + kept;
    }

    /// Refuses folders that have checkpoints, for a run that resumes none: theirs and its own would not be told apart.
    ///
    /// # Errors
    ///
    /// [`TrainError::UsedFolder`].
    pub(crate) fn check_unused(&self) -> Result<(), TrainError> {
        for Entry { options, folder } in &self.entries {
            let dir = &options.output_dir;
            if folder.is_some()
                && let Some(newest) = list(dir)?.first()
            {
                return Err(TrainError::UsedFolder { dir: dir.clone(), step: newest.step });
            }
        }
        Ok(())
    }

    /// Notes how long the metrics file is where a run begins, and returns its length where it began before, if that run ended before
    /// its first checkpoint. On the rank that has the folders.
    ///
    /// # Errors
    ///
    /// [`TrainError::Checkpoint`] if the note cannot be written.
    pub(crate) fn note_start(&self, metrics_bytes: u64) -> Result<Option<u64>, TrainError> {
        let resumes = self.entries.iter().find(|entry| entry.options.auto_resume);
        match resumes.and_then(|entry| entry.folder.as_ref()) {
            Some(folder) => Ok(folder.note_start(metrics_bytes)?),
            None => Ok(None),
        }
    }

    /// The entries, in the recipe's order.
    pub(crate) fn options(&self) -> impl Iterator<Item = (usize, &CheckpointOptions)> {
        self.entries.iter().map(|entry| &entry.options).enumerate()
    }

    /// The entry that a run which is asked to stop saves to: the one it would resume from, or else the first.
    pub(crate) fn entry_to_stop_with(&self) -> Option<usize> {
        let resumes = self.entries.iter().position(|entry| entry.options.auto_resume);
        resumes.or((!self.entries.is_empty()).then_some(0))
    }

    /// Starts writing the checkpoint of `progress.step` to entry `entry_idx`. One that is under way is completed first.
    ///
    /// # Communication
    ///
    /// A barrier, and that of [`Checkpoints::finish`]. Collective.
    ///
    /// # Errors
    ///
    /// [`TrainError::SaveFailed`] for the one under way; [`TrainError::Checkpoint`]; [`TrainError::Disk`].
    pub(crate) fn save(
        &mut self,
        world: &Group,
        zero: &Zero,
        entry_idx: usize,
        progress: Progress,
        identity: &RunIdentity,
    ) -> Result<Option<PathBuf>, TrainError> {
        let finished = self.finish(world, zero, identity)?;
        let entry = &self.entries[entry_idx];
        if let Some(folder) = &entry.folder {
            folder.begin(progress.step)?;
        }
        world.barrier()?;
        let dir = sterna_checkpoint::incomplete(&entry.options.output_dir, progress.step);
        let bytes = zero.snapshot_bytes();
        let memory = HostMemory::now();
        // What the next step will take is free now.
        let taken_later = self.step_bytes.saturating_sub(memory.process);
        let left = (memory.available() / self.local_world_size).saturating_sub(taken_later);
        let writing = if has_room(left, bytes) {
            let snapshot = zero.snapshot()?;
            let (rank, tensors) = (world.rank(), zero.state_tensors());
            Writing::Thread(thread::spawn(move || {
                let mut writer = ShardWriter::create(&dir, rank, &tensors)?;
                snapshot.write(|bytes| writer.write(bytes))?;
                writer.finish()
            }))
        } else {
            tracing::info!(
                bytes,
                left,
                "no memory to copy the states: training waits for the checkpoint"
            );
            Writing::Done(write_now(&dir, world.rank(), zero))
        };
        self.pending = Some(Pending { entry_idx, progress, writing });
        Ok(finished)
    }

    /// Completes the checkpoint under way if every rank has written its part, and returns its folder.
    ///
    /// # Communication
    ///
    /// While one is under way, one all-reduce. Collective.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoints::finish`].
    pub(crate) fn poll(
        &mut self,
        world: &Group,
        zero: &Zero,
        identity: &RunIdentity,
    ) -> Result<Option<PathBuf>, TrainError> {
        let Some(pending) = &self.pending else { return Ok(None) };
        let is_waiting = f64::from(u8::from(!pending.writing.is_done()));
        if max(world, is_waiting)? > 0.0 { Ok(None) } else { self.finish(world, zero, identity) }
    }

    /// Waits for the checkpoint under way and completes it; returns its folder.
    ///
    /// # Communication
    ///
    /// If one is under way, an all-gather and a barrier. Collective.
    ///
    /// # Errors
    ///
    /// [`TrainError::SaveFailed`], on every rank, if one could not write its part; [`TrainError::Checkpoint`] if rank 0
    /// cannot complete it. Earlier checkpoints are as they were.
    pub(crate) fn finish(
        &mut self,
        world: &Group,
        zero: &Zero,
        identity: &RunIdentity,
    ) -> Result<Option<PathBuf>, TrainError> {
        let Some(Pending { entry_idx, progress, writing }) = self.pending.take() else {
            return Ok(None);
        };
        let written = writing.wait().map_err(|error| error_chain(&error));
        let text = serde_json::to_vec(&written).expect("an entry is numbers and text");
        let mut files = Vec::new();
        for (rank, text) in world.all_gather_bytes(&text)?.into_iter().enumerate() {
            let written: Result<FileEntry, String> = serde_json::from_slice(&text)
                .unwrap_or_else(|error| Err(format!("its report does not read: {error}")));
            let failed = |reason| TrainError::SaveFailed { rank, step: progress.step, reason };
            files.push(written.map_err(failed)?);
        }
        let Entry { options, folder } = &self.entries[entry_idx];
        if let Some(folder) = folder {
            complete(folder, zero, world.size(), &progress, identity, files)?;
            if options.keep_last_n > 0 {
                folder.prune(progress.step, options.keep_last_n)?;
            }
        }
        // Complete for everyone: a rank that is told to stop now may rely on it.
        world.barrier()?;
        Ok(Some(sterna_checkpoint::complete(&options.output_dir, progress.step)))
    }
}

/// Writes this rank's file while training waits.
fn write_now(dir: &Path, rank: usize, zero: &Zero) -> Result<FileEntry, TrainError> {
    let mut writer = ShardWriter::create(dir, rank, &zero.state_tensors())?;
    zero.write_states(|bytes| Ok(writer.write(bytes)?))?;
    Ok(writer.finish()?)
}

/// Adds what makes a checkpoint of the ranks' files.
fn complete(
    folder: &CheckpointFolder,
    zero: &Zero,
    world_size: usize,
    progress: &Progress,
    identity: &RunIdentity,
    mut files: Vec<FileEntry>,
) -> Result<(), TrainError> {
    let step = progress.step;
    let config = serde_json::to_vec_pretty(&identity.model).expect("a config is JSON");
    files.push(folder.write_asset(step, "config.json", &config)?);
    let generation = MODEL_FILES.into_iter().filter(|name| *name != "config.json");
    files.extend(folder.copy_assets(step, &identity.model_dir, generation)?);
    files.extend(folder.copy_assets(step, &identity.tokenizer_dir, TOKENIZER_FILES)?);
    folder.commit(&Manifest {
        format: Manifest::FORMAT,
        sterna: env!("CARGO_PKG_VERSION").to_owned(),
        step,
        num_updates: progress.num_updates,
        position: progress.position,
        world_size,
        sequence_parallel_size: identity.sequence_parallel_size,
        data: identity.data.clone(),
        model: identity.model.clone(),
        recipe: identity.recipe.clone(),
        adapter: identity.adapter.clone(),
        base: identity.base.clone(),
        metrics_bytes: progress.metrics_bytes,
        states: zero.states(),
        flats: zero.flat_buffers(),
        parameters: zero.parameter_places(),
        files,
    })?;
    Ok(())
}

/// Makes sure that this rank sees in `dir` what rank 0 wrote there.
fn check_shared(dir: &Path, holder: &[u8], world: &Group) -> Result<(), TrainError> {
    let started = Instant::now();
    let is_seen = || CheckpointFolder::holder_of(dir).is_ok_and(|found| found.as_bytes() == holder);
    while !is_seen() {
        if started.elapsed() > VISIBLE_WITHIN {
            return Err(TrainError::FolderNotShared { dir: dir.to_owned(), rank: world.rank() });
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// An error with what caused it, as one line for the other ranks.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
