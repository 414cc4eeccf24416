//! The whole run of one rank, from a recipe to an export.

mod agreement;
mod reference;
mod setup;
mod steps;

use std::{
    collections::BTreeSet,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::json;
use sterna_arch::ModelConfig;
use sterna_checkpoint::Checkpoint;
use sterna_comm::{Comm, RankEnv};
use sterna_data::{Collator, Dataset, Datasets, MicroBatch, MicroBatches, PrepareReport};
use sterna_hf::export::check_destination;
use sterna_mesh::{Axis, Mesh};
use sterna_model::stage::Stage;
use sterna_plan::Plan;
use sterna_recipe::{CheckpointKind, CheckpointOptions, DpoOptions, NonFinitePolicy, Recipe};
use sterna_torch_sys::{
    AdamW,
    cuda::{self, DeviceMemory},
    memory::{self as tensor_memory, PinnedAhead},
};
use tch::{Device, Kind};

pub(crate) use self::setup::device_type;
pub use self::setup::model_config;
use self::{
    reference::{Batches, Cache, LogProbs, Reference},
    setup::{
        Assets, Files, connect_gpus, device, num_attention_kept, peak_rate, plan_of_data, scratch,
    },
    steps::StepRange,
};
use crate::{
    checkpoint::{Checkpoints, Progress, RunIdentity, resume},
    engine::{Engine, EngineOptions},
    error::TrainError,
    export::{Origin, export},
    load::{AdapterSource, WeightSource},
    objective::{Counts, Dpo, Figures, Kto, Objective, Pairs, Replies, Sft, num_replies},
    observe::{
        flops,
        gpus::{Bf16Products, Gpu, Monitor, Processor},
        memory::HostMemory,
        metrics::{EvalMetrics, IterationMetrics, MetricsFile},
        phases::Phase,
        sources::{self, SourceSums},
    },
    oom,
    optim::{LrSchedule, clip_scale},
    scalars::{max, maxima, sum},
    stop::Stop,
};

/// Receives what a run has to say. The library itself prints nothing.
pub trait Observer {
    /// Rows of a source have been tokenized; not called for what is in the cache.
    fn on_tokenize(&mut self, progress: sterna_data::Progress<'_>);
    /// The reference model has seen `done` of `total` micro-batches.
    fn on_reference(&mut self, done: usize, total: usize);
    /// Everything is known and nothing has been computed; `processor` is this rank's.
    fn on_start(
        &mut self,
        plan: &Plan,
        report: &PrepareReport,
        num_steps: u64,
        processor: &Processor,
    );
    /// An optimizer step ended.
    fn on_iteration(&mut self, metrics: &IterationMetrics);
    /// An evaluation ended.
    fn on_eval(&mut self, metrics: &EvalMetrics);
    /// An export was written to this folder.
    fn on_export(&mut self, dir: &Path);
    /// The run goes on after `step`, from this checkpoint.
    fn on_resume(&mut self, dir: &Path, step: u64);
    /// A checkpoint is complete.
    fn on_checkpoint(&mut self, dir: &Path);
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSummary {
    /// Optimizer steps done.
    pub num_steps: u64,
    /// Why it ended before the schedule's end, if it did.
    pub early_exit: Option<EarlyExit>,
    /// Folders that exports were written to, in order.
    pub exports: Vec<PathBuf>,
    /// The newest checkpoint that this run completed or went on from.
    pub checkpoint: Option<PathBuf>,
}

/// Who asked a run to end early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EarlyExit {
    /// The kill switch, this file.
    KillSwitch(PathBuf),
    /// A signal, by its number.
    Signal(i32),
}

/// Which device to compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// A GPU where the machine has one that libtorch can use, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU for each process of a machine, or one for several if there are fewer.
    Cuda,
}

/// What the command line decides beside the recipe.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// Where to compute.
    pub device: DeviceChoice,
    /// How long a collective waits for its slowest rank, be it in a step, preparing data or writing an export. A rank
    /// that *ends* is noticed in seconds; this bounds a rank that hangs.
    pub collective_timeout: Duration,
    /// Asked before every micro-batch: whether this process was told to stop.
    pub stop: Stop,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            device: DeviceChoice::Auto,
            collective_timeout: Duration::from_mins(30),
            stop: Stop::default(),
        }
    }
}

/// Trains as `recipe` says, as the rank that `env` describes.
///
/// Nothing is computed and no other rank is contacted before the plan and the data stand. A failure on this rank is
/// told to the others, which then fail within seconds.
///
/// # Errors
///
/// Every variant of [`TrainError`]. Exports written before the failure stay.
pub fn train(
    recipe: &Recipe,
    env: &RankEnv,
    options: &TrainOptions,
    observer: &mut dyn Observer,
) -> Result<TrainSummary, TrainError> {
    let device = device(options.device, env, &recipe.data.cache_dir)?;
    if device == Device::Cpu {
        Bf16Products::of_this_process()?;
    }
    // Before the first tensor: those that exist already would not be counted.
    tensor_memory::install();
    let config = model_config(recipe)?;
    let plan = Plan::new(recipe, &config, env.world_size, device_type(device))
        .map_err(TrainError::Plan)?;
    let comm = Comm::init(env, recipe.sequence_parallel_size, options.collective_timeout)?;
    let model = config.clone();
    // From here on a failure is told to the other ranks, whatever it is: libtorch's exceptions arrive as panics.
    let run = AssertUnwindSafe(|| {
        connect_gpus(&comm, device, env)?;
        run(recipe, config, &plan, env, &comm, device, &options.stop, observer)
    });
    let result = catch_unwind(run)
        .unwrap_or_else(|panic| Err(TrainError::from_panic(panic.as_ref())))
        .map_err(|error| oom::explained(error, recipe, &model, env.world_size, device));
    if let Err(error) = &result {
        comm.abort(&error.to_string());
    }
    result
}

/// The run of a rank that has joined the others.
#[expect(clippy::too_many_arguments, reason = "what a run is made of, each needed once")]
fn run(
    recipe: &Recipe,
    config: ModelConfig,
    plan: &Plan,
    env: &RankEnv,
    comm: &Comm,
    device: Device,
    stop: &Stop,
    observer: &mut dyn Observer,
) -> Result<TrainSummary, TrainError> {
    let (assets, files) = Assets::resolve(recipe, config)?;
    let max_length = assets.config.max_position_embeddings;
    let on_progress = &mut |progress: sterna_data::Progress<'_>| observer.on_tokenize(progress);
    let datasets =
        sterna_data::prepare(recipe, max_length, &assets.tokenizer, env.world_size, on_progress)?;
    let mut trainer = Trainer::new(recipe, env, comm, &assets, &datasets, plan, device, stop)?;
    trainer.load(&files, observer)?;
    // The pages of a mapped file count as memory of this process for as long as it is mapped.
    drop(files);
    trainer.run(plan, observer)
}

/// One rank's run.
struct Trainer<'a> {
    recipe: &'a Recipe,
    comm: &'a Comm,
    assets: &'a Assets,
    datasets: &'a Datasets,
    stream: MicroBatches<'a>,
    engine: Engine<'a>,
    /// Makes what the first micro-batch will keep on the host.
    _pinned_ahead: Option<PinnedAhead>,
    schedule: LrSchedule,
    adamw: AdamW,
    steps: StepRange,
    /// Optimizer steps that changed the weights.
    num_updates: u64,
    checkpoints: Checkpoints,
    identity: RunIdentity,
    /// What the run goes on from.
    resumed: Option<Checkpoint>,
    stop: &'a Stop,
    /// What the ranks can reach together, FLOP/s.
    peak_rate: f64,
    /// What NVML says of this rank's GPU, if there are both.
    monitor: Option<Monitor>,
    /// What replies are compared with, of training and evaluation data, if they are.
    reference: Option<[Reference; 2]>,
}

/// What the ranks tell each other about a step before the optimizer moves.
struct StepReport {
    loss: f64,
    num_tokens: f64,
    num_valid_tokens: f64,
    reference_tflos: f64,
    model_tflos: f64,
    seqlen: f64,
    /// As [`SourceSums::values`].
    by_source: Vec<f64>,
    /// As [`Figures::values`].
    figures: Vec<f64>,
}

impl<'a> Trainer<'a> {
    #[expect(clippy::too_many_arguments, reason = "what a run is made of, each needed once")]
    fn new(
        recipe: &'a Recipe,
        env: &RankEnv,
        comm: &'a Comm,
        assets: &'a Assets,
        datasets: &'a Datasets,
        plan: &Plan,
        device: Device,
        stop: &'a Stop,
    ) -> Result<Self, TrainError> {
        let mesh = &comm.mesh;
        let stream = MicroBatches::new(
            &datasets.train,
            recipe,
            *mesh,
            assets.config.max_position_embeddings,
            assets.tokenizer.pad_token_id(),
        );
        let identity = RunIdentity {
            data: datasets.fingerprint.clone(),
            model: assets.config.raw.clone(),
            recipe: recipe.to_json(),
            sequence_parallel_size: mesh.size(Axis::Sp),
            model_dir: assets.model_dir.clone(),
            tokenizer_dir: assets.tokenizer_dir.clone(),
            adapter: assets
                .config
                .lora
                .as_ref()
                .map(|lora| lora.to_json(&recipe.model.name_or_path, &assets.config)),
            base: assets.base.clone(),
        };
        // Before what ranks with other recipes would do in another order.
        agreement::check(recipe, comm, &assets.config, datasets)?;
        let mut checkpoints = Checkpoints::open(recipe, comm.world(), env.local_world_size)?;
        let resumed = if let Some(entry) = recipe.checkpoint.iter().find(|entry| entry.auto_resume)
        {
            resume::newest(&entry.output_dir, comm.world(), &identity)?
        } else {
            checkpoints.check_unused()?;
            None
        };
        let manifest = resumed.as_ref().map(|checkpoint| &checkpoint.manifest);
        let steps = StepRange::new(recipe, stream.len(), mesh, manifest)?;
        let of_data = plan_of_data(recipe, &assets.config, mesh.world_size(), datasets, device)?;
        let disk = scratch(recipe, &of_data)?;
        let num_attention = num_attention_kept(&of_data, comm, env, device)?;
        checkpoints.expect_step_of(&of_data, num_attention);
        let options = EngineOptions::new(plan, device, num_attention, disk.as_ref())?;
        let host_lens = options.keep.host_lens(&of_data, &assets.config.arch);
        let engine = Engine::new(comm, &assets.config.arch, recipe, options)?;
        // Beside the weights' way to where they are to be; a second micro-batch finds what the first has used.
        let pinned_ahead = match device {
            Device::Cuda(index) => Some(PinnedAhead::start(index, &host_lens)),
            _ => None,
        };
        Ok(Self {
            recipe,
            comm,
            assets,
            datasets,
            stream,
            schedule: LrSchedule::new(
                &recipe.scheduler,
                recipe.optimizer.learning_rate,
                steps.horizon,
            ),
            adamw: AdamW {
                lr: recipe.optimizer.learning_rate,
                beta1: recipe.optimizer.betas.0,
                beta2: recipe.optimizer.betas.1,
                eps: recipe.optimizer.eps,
                weight_decay: recipe.optimizer.weight_decay,
            },
            num_updates: manifest.map_or(0, |manifest| manifest.num_updates),
            steps,
            checkpoints,
            identity,
            peak_rate: peak_rate(comm, engine.kind(), device)?,
            monitor: match device {
                Device::Cuda(index) => Monitor::new(index),
                _ => None,
            },
            engine,
            reference: None,
            _pinned_ahead: pinned_ahead,
            resumed,
            stop,
        })
    }

    /// Fills the states of the model, once what they are compared with is computed.
    fn load(&mut self, files: &Files, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let seed = self.recipe.seed;
        let base = match &files.weights {
            Some(files) => WeightSource::Files(files),
            None => WeightSource::Random { seed },
        };
        let lora = self.assets.config.lora.as_ref();
        let adapters = lora.map(|_| match &files.adapters {
            Some(files) => AdapterSource::Files(files),
            None => AdapterSource::Random { seed },
        });
        let source = base.under(adapters);
        if let Some(name) = self.recipe.dpo.as_ref().and_then(|dpo| dpo.ref_model.as_ref()) {
            let is_other = *name != self.recipe.model.name_or_path;
            let files = is_other
                .then(|| reference::weights(self.recipe, name, &self.assets.config))
                .transpose()?;
            let base = files.as_ref().map_or(base, WeightSource::Files);
            let source = base.under(lora.map(|_| AdapterSource::Off));
            let weights = match base {
                WeightSource::Files(files) => {
                    reference::hash_of_weights(files, &self.assets.config, self.comm)?
                }
                _ => format!("drawn with seed {seed}"),
            };
            self.compare(&weights, &source, observer)?;
        }
        match &self.resumed {
            Some(checkpoint) => {
                self.engine.zero.load_frozen(&source)?;
                self.engine.zero.load_states(self.comm.world(), checkpoint)
            }
            None => self.engine.zero.load(&source),
        }
    }

    /// Finds out what the reference model says of everything that the run will see: from the cache, or by its weights, of `source`, whose
    /// hash is `weights`.
    fn compare(
        &mut self,
        weights: &str,
        source: &WeightSource<'_>,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let (recipe, stream, mesh) = (self.recipe, &self.stream, &self.comm.mesh);
        let (datasets, collator) = (self.datasets, stream.collator());
        let inputs = json!({
            "weights": weights,
            "config": self.assets.config.raw,
            "dtype": recipe.model.dtype.to_string(),
        });
        let mut cache = Cache::open(&recipe.data.cache_dir, inputs, self.comm)?;
        let indices = stream_indices(recipe, &self.steps, stream.len());
        let eval_batches = eval_batches(datasets.eval.as_ref(), mesh, recipe.micro_batch_size);
        let of_train = || indices.iter().map(|&index| Ok((index, stream.get(index)?)));
        let of_eval = || {
            eval_batches.iter().map(|batch| {
                let dataset = datasets.eval.as_ref().expect("it has samples");
                Ok((batch.first, eval_batch(dataset, collator, batch.samples.clone())?))
            })
        };
        let mismatched = |batch: Result<(usize, MicroBatch), TrainError>| {
            let (index, batch) = batch?;
            Ok((index, collator.mismatched(&batch)?))
        };
        let num_mismatched = if self.has_kl() { usize::MAX } else { 0 };
        let parts: [&Batches<'_>; 4] = [
            &|| Box::new(of_train()),
            &|| Box::new(of_eval()),
            &|| Box::new(of_train().map(mismatched).take(num_mismatched)),
            &|| Box::new(of_eval().map(mismatched).take(num_mismatched)),
        ];
        let on_batch = &mut |num_done, num_all| observer.on_reference(num_done, num_all);
        let load = |engine: &mut Engine<'_>| engine.zero.load(source);
        let engine = &mut self.engine;
        let found = reference::log_probs(engine, self.comm, &mut cache, &parts, load, on_batch)?;
        let [train, eval, train_mismatched, eval_mismatched] =
            <[LogProbs; 4]>::try_from(found).expect("as many as parts");
        self.reference = Some([
            Reference { log_probs: train, mismatched: train_mismatched },
            Reference { log_probs: eval, mismatched: eval_mismatched },
        ]);
        Ok(())
    }

    fn run(
        &mut self,
        plan: &Plan,
        observer: &mut dyn Observer,
    ) -> Result<TrainSummary, TrainError> {
        let is_writer = self.comm.mesh.rank() == 0;
        let mut file = (is_writer && self.recipe.train_log_metrics)
            .then(|| MetricsFile::open(&self.recipe.train_log_metrics_path))
            .transpose()?;
        let mut exports = Vec::new();
        let mut early_exit = None;
        if is_writer {
            self.check_destinations()?;
        }
        if self.early_exit()? == Some(self.kill_switch()) {
            return Err(TrainError::KillSwitch { path: self.recipe.kill_switch_path.clone() });
        }
        let processor = self.processor()?;
        observer.on_start(plan, &self.datasets.report, self.steps.num_steps, &processor);
        let mut newest = None;
        if let Some(checkpoint) = &self.resumed {
            let manifest = &checkpoint.manifest;
            if let (Some(file), Some(bytes)) = (&mut file, manifest.metrics_bytes) {
                // The rows of steps that are made again.
                file.cut_after(bytes, manifest.step)?;
            }
            observer.on_resume(&checkpoint.dir, manifest.step);
            newest = Some(checkpoint.dir.clone());
        } else {
            if let Some(file) = &mut file
                && let Some(bytes) = self.checkpoints.note_start(file.num_bytes()?)?
            {
                file.cut_to(bytes)?;
            }
            if self.recipe.eval_on_start {
                self.evaluate(0, file.as_mut(), observer)?;
            }
        }

        self.stop.heed();
        let mut num_done = self.steps.first_step;
        while num_done < self.steps.num_steps {
            early_exit = self.early_exit()?;
            if early_exit.is_some() {
                break;
            }
            let step = num_done + 1;
            let metrics = self.step(step);
            if matches!(metrics, Err(TrainError::NotFinite { .. })) {
                // All ranks end here, and the step would be the same again: what is being written is worth waiting for.
                let (world, zero) = (self.comm.world(), &self.engine.zero);
                self.checkpoints.finish(world, zero, &self.identity)?;
            }
            let Some(metrics) = metrics? else {
                early_exit = self.early_exit()?;
                break;
            };
            num_done = step;
            if let Some(file) = &mut file {
                file.append(&metrics)?;
            }
            observer.on_iteration(&metrics);
            if self.recipe.eval_interval > 0
                && step.is_multiple_of(self.recipe.eval_interval as u64)
            {
                self.evaluate(step, file.as_mut(), observer)?;
            }
            let completed =
                self.checkpoints.poll(self.comm.world(), &self.engine.zero, &self.identity)?;
            newest = announce(completed, observer).or(newest);
            for checkpoint in &self.recipe.checkpoint {
                if checkpoint.kind == CheckpointKind::HuggingFace
                    && self.steps.is_due(checkpoint, step)
                {
                    exports.push(self.export(checkpoint, step, observer)?);
                }
            }
            newest = self.save_those_due(step, file.as_ref(), observer)?.or(newest);
        }

        newest =
            self.save_at_end(num_done, early_exit.as_ref(), file.as_ref(), observer)?.or(newest);
        // A signal leaves little time, and the checkpoint has everything that an export has.
        if !matches!(early_exit, Some(EarlyExit::Signal(_))) {
            for checkpoint in &self.recipe.checkpoint {
                if checkpoint.kind == CheckpointKind::HuggingFace
                    && checkpoint.save_end_of_training
                    && !self.steps.is_due(checkpoint, num_done)
                {
                    exports.push(self.export(checkpoint, num_done, observer)?);
                }
            }
        }
        // A rank that leaves early closes connections that a slower rank still needs.
        self.comm.world().barrier()?;
        Ok(TrainSummary { num_steps: num_done, early_exit, exports, checkpoint: newest })
    }

    /// Starts the checkpoints that are due after `step`; returns the folder of one that was completed on the way.
    fn save_those_due(
        &mut self,
        step: u64,
        file: Option<&MetricsFile>,
        observer: &mut dyn Observer,
    ) -> Result<Option<PathBuf>, TrainError> {
        let due: Vec<usize> = self
            .checkpoints
            .options()
            .filter(|(_, options)| self.steps.is_due(options, step))
            .map(|(entry_idx, _)| entry_idx)
            .collect();
        let mut newest = None;
        for entry_idx in due {
            newest = announce(self.save(entry_idx, step, file)?, observer).or(newest);
        }
        Ok(newest)
    }

    /// Saves what is asked for at the end of a run, however it came, and waits until it is complete.
    fn save_at_end(
        &mut self,
        num_done: u64,
        early_exit: Option<&EarlyExit>,
        file: Option<&MetricsFile>,
        observer: &mut dyn Observer,
    ) -> Result<Option<PathBuf>, TrainError> {
        let has_trained = num_done > self.steps.first_step;
        let stopped_with = early_exit.and_then(|_| self.checkpoints.entry_to_stop_with());
        let due: Vec<usize> = self
            .checkpoints
            .options()
            .filter(|(entry_idx, options)| {
                let is_wanted = options.save_end_of_training || stopped_with == Some(*entry_idx);
                // What is due after a step was saved after it, by this run or the one that it goes on from.
                is_wanted && has_trained && !self.steps.is_due(options, num_done)
            })
            .map(|(entry_idx, _)| entry_idx)
            .collect();
        let mut newest = None;
        for entry_idx in due {
            newest = announce(self.save(entry_idx, num_done, file)?, observer).or(newest);
        }
        let (world, zero) = (self.comm.world(), &self.engine.zero);
        let completed = self.checkpoints.finish(world, zero, &self.identity)?;
        Ok(announce(completed, observer).or(newest))
    }

    fn save(
        &mut self,
        entry_idx: usize,
        step: u64,
        file: Option<&MetricsFile>,
    ) -> Result<Option<PathBuf>, TrainError> {
        let progress = Progress {
            step,
            num_updates: self.num_updates,
            position: self.steps.position(step),
            metrics_bytes: file.map(MetricsFile::num_bytes).transpose()?,
        };
        let (world, zero) = (self.comm.world(), &self.engine.zero);
        self.checkpoints.save(world, zero, entry_idx, progress, &self.identity)
    }

    /// One optimizer step, counted from 1; `None` if the run was asked to stop in the middle of it, which leaves everything as it
    /// was before.
    fn step(&mut self, step: u64) -> Result<Option<IterationMetrics>, TrainError> {
        let started = Instant::now();
        let _iteration = Stage::Iteration.enter_at(step as usize);
        if let Device::Cuda(index) = self.engine.device() {
            // What loading, an evaluation or an export took is not the step's.
            cuda::reset_peak(index)?;
        }
        let reading = Stage::Data.enter();
        let gas = self.recipe.gradient_accumulation_steps;
        let first = self.steps.micro_batches(step - 1) as usize;
        let batches = (first..first + gas)
            .map(|index| self.micro_batch(index))
            .collect::<Result<Vec<_>, _>>()?;
        drop(reading);
        let step_started = Instant::now();

        let mut loss = 0.0;
        let sp_size = self.comm.mesh.size(Axis::Sp);
        let mut by_source = SourceSums::new(self.datasets.train.num_sources());
        let mut figures = Figures::default();
        let indices: Vec<usize> = (first..first + gas).map(|i| self.stream_index(i)).collect();
        let kl = match &self.reference {
            Some([train, _]) if self.has_kl() => {
                let collator = self.stream.collator();
                let mismatched = batches.iter().zip(&indices).map(|(batch, index)| {
                    Ok((collator.mismatched(batch)?, Some(&train.mismatched[index][..])))
                });
                reference::kl(&mut self.engine, self.comm, mismatched)?
            }
            _ => 0.0,
        };
        let reference =
            |index| self.reference.as_ref().map(|[train, _]| &train.log_probs[index][..]);
        let references: Vec<Option<&[f64]>> = indices.iter().map(reference).collect();
        let objectives = objectives(self.comm, self.recipe, &batches, &references, kl)?;
        for (i, (batch, objective)) in batches.iter().zip(&objectives).enumerate() {
            if i > 0 && matches!(self.early_exit()?, Some(EarlyExit::Signal(_))) {
                self.engine.zero.discard_gradients()?;
                return Ok(None);
            }
            let of_batch = self.engine.forward_backward(batch, &**objective)?;
            loss += of_batch.loss;
            figures.merge(&objective.figures());
            let samples = self.stream.sample_indices(indices[i]);
            let sources = sources_of(&self.datasets.train, samples);
            by_source.add(sources, batch, &of_batch, sp_size);
        }
        self.engine.phases.begin(Phase::Step);
        self.engine.zero.finish_gradients(self.comm.world())?;
        drop(objectives);
        let report = self.report(&batches, loss, &by_source, &figures)?;
        let grad_norm = self.engine.zero.gradient_norm(self.comm.world())?;
        let moe_load_max_over_mean = self.engine.take_expert_loads()?;
        self.warn_without_labels(step, &batches);
        let is_skipped = self.is_skipped(step, &report, grad_norm)?;
        let lr = self.schedule.lr(step - 1);
        if is_skipped {
            self.engine.zero.discard_gradients()?;
        } else {
            let adamw = AdamW { lr, ..self.adamw };
            let grad_scale = clip_scale(grad_norm, self.recipe.deepspeed.gradient_clipping);
            let update = self.num_updates + 1;
            self.engine.zero.step(self.comm.world(), &adamw, update, grad_scale)?;
            self.num_updates = update;
        }

        self.engine.phases.end();
        let device_memory = self.device_memory()?;
        let (phases, phase_time) = self.engine.phases.finish();
        let (iter_time, step_time) =
            (started.elapsed().as_secs_f64(), step_started.elapsed().as_secs_f64());
        let memory = HostMemory::now();
        let world_size = self.comm.mesh.world_size() as f64;
        Ok(Some(IterationMetrics {
            epoch: (first + gas - 1) / self.stream.len(),
            iter: step,
            max_iter: self.steps.num_steps,
            loss: report.loss,
            lr,
            grad_norm,
            moe_load_max_over_mean,
            is_skipped,
            seqlen: report.seqlen,
            num_tokens: report.num_tokens.round() as u64,
            num_valid_tokens: report.num_valid_tokens.round() as u64,
            sources: sources::metrics(&self.datasets.report.train.sources, &report.by_source),
            figures: figures.means(&report.figures),
            iter_time,
            step_time,
            iter_tflops: report.reference_tflos / (world_size * iter_time),
            step_tflops: report.reference_tflos / (world_size * step_time),
            tokens_per_second: report.num_tokens / iter_time,
            mfu: report.model_tflos * 1e12 / (self.peak_rate * step_time),
            peak_memory: max(self.comm.world(), memory.process_peak as f64)? as u64,
            memory,
            device_memory,
            board_memory: self.monitor.as_ref().and_then(Monitor::memory),
            phases,
            phase_time,
        }))
    }

    /// What this rank computes on.
    fn processor(&self) -> Result<Processor, TrainError> {
        let Device::Cuda(index) = self.engine.device() else {
            let is_bf16 = self.engine.kind() == Kind::BFloat16;
            let bf16_products = is_bf16.then(Bf16Products::of_this_process).transpose()?;
            return Ok(Processor::Cpu { bf16_products });
        };
        Ok(Processor::Gpu(Gpu {
            index,
            properties: cuda::properties(index)?,
            driver_version: self.monitor.as_ref().and_then(Monitor::driver_version),
        }))
    }

    /// The memory of the GPU at the end of a step, whose work it waits for.
    fn device_memory(&self) -> Result<Option<DeviceMemory>, TrainError> {
        let Device::Cuda(index) = self.engine.device() else { return Ok(None) };
        tch::Cuda::synchronize(index as i64);
        Ok(Some(cuda::memory(index)?))
    }

    /// Says that micro-batches add nothing to the step: there is nothing to train on in them. Those of other groups are said by these.
    fn warn_without_labels(&self, step: u64, batches: &[MicroBatch]) {
        let num = batches.iter().filter(|batch| batch.num_valid_tokens() == 0).count();
        if num > 0 && self.comm.mesh.local_rank(Axis::Sp) == 0 {
            tracing::warn!(
                "step `{step}`: {num} of {} micro-batches have no label and change nothing",
                batches.len()
            );
        }
    }

    /// Whether the step is left out because it has no label, or because its loss or gradient is not finite, as the recipe decides. All
    /// ranks see the same numbers.
    fn is_skipped(
        &self,
        step: u64,
        report: &StepReport,
        grad_norm: f64,
    ) -> Result<bool, TrainError> {
        if report.num_valid_tokens == 0.0 {
            // Momentum and weight decay would still move the weights.
            tracing::warn!("step `{step}` is skipped: none of its tokens has a label");
            return Ok(true);
        }
        let values = [("loss", report.loss), ("gradient norm", grad_norm)];
        let Some((name, value)) = values.into_iter().find(|(_, value)| !value.is_finite()) else {
            return Ok(false);
        };
        match self.recipe.on_nonfinite {
            NonFinitePolicy::Stop => Err(TrainError::NotFinite { name, value, step }),
            NonFinitePolicy::Skip => {
                tracing::warn!("step `{step}` is skipped: its {name} is `{value}`");
                Ok(true)
            }
            NonFinitePolicy::Warn => {
                tracing::warn!(
                    "step `{step}` changes the weights although its {name} is `{value}`"
                );
                Ok(false)
            }
        }
    }

    /// Micro-batch number `index` of the run, counted over epochs.
    fn micro_batch(&self, index: usize) -> Result<MicroBatch, TrainError> {
        Ok(self.stream.get(self.stream_index(index))?)
    }

    /// Whether replies are compared with how far the models are from each other.
    fn has_kl(&self) -> bool {
        self.recipe.dpo.as_ref().is_some_and(DpoOptions::has_kl)
    }

    /// Where an epoch has micro-batch number `index` of the run.
    fn stream_index(&self, index: usize) -> usize {
        if self.recipe.overfit_first_batch { 0 } else { index % self.stream.len() }
    }

    /// Sums what the ranks know of a step. `loss` is this rank's part of the scaled sum.
    fn report(
        &self,
        batches: &[MicroBatch],
        loss: f64,
        by_source: &SourceSums,
        figures: &Figures,
    ) -> Result<StepReport, TrainError> {
        let is_flash = self.recipe.model.attn_implementation.is_flash();
        let recompute = !self.recipe.model.disable_activation_checkpoint;
        let arch = &self.assets.config.arch;
        let (mut num_tokens, mut num_valid_tokens, mut seqlen) = (0, 0, 0);
        let (mut reference_tflos, mut model_tflos) = (0.0, 0.0);
        for batch in batches {
            let documents: Vec<usize> = batch.packed_sample_seqlens.concat();
            num_tokens += documents.iter().sum::<usize>();
            let num_valid = batch.num_valid_tokens();
            num_valid_tokens += num_valid;
            // The reference sees documents only when the attention kernel's name says flash.
            let counted = if is_flash { documents.clone() } else { vec![batch.len; batch.rows] };
            seqlen += counted.iter().sum::<usize>();
            reference_tflos += flops::reference_tflos(arch, counted.into_iter(), recompute);
            model_tflos += flops::model_tflos(arch, documents.into_iter(), num_valid);
        }
        // Every rank of a sequence-parallel group knows the same micro-batches: each contributes its share of them.
        let share = 1.0 / self.comm.mesh.size(Axis::Sp) as f64;
        let num_micro_batches = (batches.len() * self.comm.mesh.size(Axis::Dp)) as f64;
        let of_step = [
            loss,
            num_tokens as f64 * share,
            num_valid_tokens as f64 * share,
            reference_tflos * share,
            model_tflos * share,
            seqlen as f64 * share / num_micro_batches,
        ];
        let [sums, by_source, figures] = sum_all(self.comm, &of_step, by_source, figures)?;
        Ok(StepReport {
            loss: sums[0],
            num_tokens: sums[1],
            num_valid_tokens: sums[2],
            reference_tflos: sums[3],
            model_tflos: sums[4],
            seqlen: sums[5],
            by_source,
            figures,
        })
    }

    /// Evaluates every sample of the evaluation data once and averages over all labelled tokens.
    ///
    /// # Communication
    ///
    /// Every data-parallel group runs the same number of micro-batches, because ZeRO gathers are collective; a group that
    /// has none left repeats its last one and does not count it.
    fn evaluate(
        &mut self,
        iter: u64,
        file: Option<&mut MetricsFile>,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let Some(dataset) = &self.datasets.eval else { return Ok(()) };
        let started = Instant::now();
        let mesh = self.comm.mesh;
        let collator = *self.stream.collator();
        let share = 1.0 / mesh.size(Axis::Sp) as f64;
        // The loss is the sum of two means, of which each is a sum and what it is over.
        let (mut means, mut num_valid_tokens) = ([0.0; 4], 0.0);
        let mut by_source = SourceSums::new(dataset.num_sources());
        // A group that counts nothing has figures too: all ranks sum as many numbers.
        let mut figures = match &self.recipe.dpo {
            Some(options) if options.is_unpaired() => Replies::no_figures(),
            Some(_) => Pairs::no_figures(),
            None => Figures::default(),
        };
        let batches = eval_batches(Some(dataset), &mesh, self.recipe.micro_batch_size);
        let kl = match &self.reference {
            Some([_, eval]) if self.has_kl() => {
                let mismatched = batches.iter().map(|batch| {
                    let of_batch = eval_batch(dataset, &collator, batch.samples.clone())?;
                    let reference = batch.is_counted.then(|| &eval.mismatched[&batch.first][..]);
                    Ok((collator.mismatched(&of_batch)?, reference))
                });
                reference::kl(&mut self.engine, self.comm, mismatched)?
            }
            _ => 0.0,
        };
        for EvalBatch { first, samples, is_counted } in batches {
            let batch = eval_batch(dataset, &collator, samples.clone())?;
            let of_batch = self.engine.forward(&batch)?;
            let num_labels = batch.num_valid_tokens() as f64;
            let of_batch_means = match &self.recipe.dpo {
                None => [of_batch.loss, num_labels * share, 0.0, 0.0],
                Some(options) => {
                    let log_probs = reference::of_all_ranks(&of_batch, self.comm)?;
                    let reference = self.reference.as_ref();
                    let reference = reference.map(|[_, eval]| &eval.log_probs[&first][..]);
                    let (means, of_batch) = preferences(options, &batch, &log_probs, reference, kl);
                    if is_counted {
                        figures.merge(&of_batch);
                    }
                    means.map(|sum| sum * share)
                }
            };
            if is_counted {
                for (sum, of_batch) in means.iter_mut().zip(of_batch_means) {
                    *sum += of_batch;
                }
                num_valid_tokens += num_labels * share;
                let sources = sources_of(dataset, samples);
                by_source.add(sources, &batch, &of_batch, mesh.size(Axis::Sp));
            }
        }
        let of_all = [&means[..], &[num_valid_tokens]].concat();
        let [sums, by_source, of_figures] = sum_all(self.comm, &of_all, &by_source, &figures)?;
        let PrepareReport { train, eval } = &self.datasets.report;
        let metrics = EvalMetrics {
            iter,
            max_iter: self.steps.num_steps,
            loss: sums[0] / sums[1].max(1.0) + sums[2] / sums[3].max(1.0),
            num_valid_tokens: sums[4].round() as u64,
            // Without sources of its own, it was split off what is trained on.
            sources: sources::metrics(&eval.as_ref().unwrap_or(train).sources, &by_source),
            figures: figures.means(&of_figures),
            num_samples: dataset.len(),
            time: started.elapsed().as_secs_f64(),
        };
        if let Some(file) = file {
            file.append_eval(&metrics)?;
        }
        observer.on_eval(&metrics);
        Ok(())
    }

    /// Refuses, before the first step, exports that could not be written later.
    fn check_destinations(&self) -> Result<(), TrainError> {
        let exported = self.assets.config.arch.exported().into_iter();
        let num_bytes = exported.map(|(_, spec)| spec.numel()).sum::<usize>()
            * self.engine.kind().elt_size_in_bytes();
        let mut dirs = BTreeSet::new();
        let exports =
            self.recipe.checkpoint.iter().filter(|entry| entry.kind == CheckpointKind::HuggingFace);
        for checkpoint in exports {
            let StepRange { first_step, num_steps, .. } = self.steps;
            let at_end = checkpoint.save_end_of_training.then_some(num_steps);
            let steps = (first_step + 1..=num_steps)
                .filter(|&step| self.steps.is_due(checkpoint, step))
                .chain(at_end);
            dirs.extend(steps.map(|step| self.export_dir(checkpoint, step)));
        }
        let needed_bytes = (num_bytes * dirs.len()) as u64;
        dirs.iter().try_for_each(|dir| check_destination(dir, needed_bytes))?;
        Ok(())
    }

    /// Where `checkpoint` puts the export of step `step`.
    ///
    /// Source: ArcticTraining `hf_engine.py`, `<output_dir>/global_step_<N>`.
    fn export_dir(&self, checkpoint: &CheckpointOptions, step: u64) -> PathBuf {
        let name =
            self.recipe.model.save_name.clone().unwrap_or_else(|| format!("global_step_{step}"));
        checkpoint.output_dir.join(name)
    }

    fn export(
        &mut self,
        checkpoint: &CheckpointOptions,
        step: u64,
        observer: &mut dyn Observer,
    ) -> Result<PathBuf, TrainError> {
        let name =
            self.recipe.model.save_name.clone().unwrap_or_else(|| format!("global_step_{step}"));
        let dir = checkpoint.output_dir.join(name);
        let kind = self.engine.kind();
        export(
            self.comm.world(),
            &mut self.engine.zero,
            &self.assets.config,
            kind,
            Origin {
                name: &self.recipe.model.name_or_path,
                model_dir: &self.assets.model_dir,
                tokenizer_dir: &self.assets.tokenizer_dir,
            },
            &dir,
        )?;
        observer.on_export(&dir);
        Ok(dir)
    }

    /// Why any rank wants the run to end before its next step: all end at the same one.
    ///
    /// # Communication
    ///
    /// One all-reduce. Collective.
    fn early_exit(&self) -> Result<Option<EarlyExit>, TrainError> {
        let is_killed = f64::from(u8::from(self.recipe.kill_switch_path.exists()));
        let signal = f64::from(self.stop.signal().unwrap_or(0));
        let of_ranks = maxima(self.comm.world(), &[is_killed, signal])?;
        if of_ranks[1] > 0.0 {
            return Ok(Some(EarlyExit::Signal(of_ranks[1] as i32)));
        }
        Ok((of_ranks[0] > 0.0).then(|| self.kill_switch()))
    }

    fn kill_switch(&self) -> EarlyExit {
        EarlyExit::KillSwitch(self.recipe.kill_switch_path.clone())
    }
}

/// Says that a checkpoint is complete, if one is.
fn announce(completed: Option<PathBuf>, observer: &mut dyn Observer) -> Option<PathBuf> {
    completed.inspect(|dir| observer.on_checkpoint(dir))
}

/// What each micro-batch of a step minimises; replies are compared with `references`, and with `kl` as in [`Replies::new`].
fn objectives<'a>(
    comm: &Comm,
    recipe: &'a Recipe,
    batches: &[MicroBatch],
    references: &[Option<&'a [f64]>],
    kl: f64,
) -> Result<Vec<Box<dyn Objective + 'a>>, TrainError> {
    let average = recipe.loss_average;
    Ok(match &recipe.dpo {
        None => boxed(Sft::of_step(comm, average, batches)?),
        Some(options) if options.is_unpaired() => {
            boxed(Kto::of_step(comm, average, options, batches, references, kl)?)
        }
        Some(options) => boxed(Dpo::of_step(comm, average, options, batches, references)?),
    })
}

/// What an evaluation of preferences takes from a micro-batch: a sum and what its mean is over, twice, and figures.
fn preferences(
    options: &DpoOptions,
    batch: &MicroBatch,
    policy: &[f64],
    reference: Option<&[f64]>,
    kl: f64,
) -> ([f64; 4], Figures) {
    let num_labels = batch.num_labels_of_samples();
    if options.is_unpaired() {
        let reference = reference.expect("replies are compared with it");
        let replies = Replies::new(options, policy, reference, &num_labels, kl);
        return ([replies.loss, num_replies(&num_labels), 0.0, 0.0], replies.figures);
    }
    let pairs = Pairs::new(options, policy, reference, &num_labels);
    let counts = Counts::of(&num_labels);
    ([pairs.loss, counts.pairs, pairs.nll, counts.tokens], pairs.figures)
}

fn boxed<'a, T: Objective + 'a>(objectives: Vec<T>) -> Vec<Box<dyn Objective + 'a>> {
    objectives.into_iter().map(|objective| Box::new(objective) as Box<dyn Objective>).collect()
}

/// Which micro-batches of an epoch the steps of a run use, of `len`.
fn stream_indices(recipe: &Recipe, steps: &StepRange, len: usize) -> BTreeSet<usize> {
    if recipe.overfit_first_batch {
        return BTreeSet::from([0]);
    }
    let range = steps.micro_batches(steps.first_step)..steps.micro_batches(steps.num_steps);
    range.take(len).map(|index| index as usize % len).collect()
}

/// The source of each sample that samples, or packs, of a dataset are made of.
fn sources_of(
    dataset: &Dataset,
    indices: impl IntoIterator<Item = usize>,
) -> impl Iterator<Item = usize> {
    indices.into_iter().flat_map(|index| dataset.sources(index))
}

/// `values`, what each source contributes and `figures`, summed over all ranks in one collective. Every rank of a
/// sequence-parallel group knows all of its group's figures, and adds its share of them.
fn sum_all(
    comm: &Comm,
    values: &[f64],
    by_source: &SourceSums,
    figures: &Figures,
) -> Result<[Vec<f64>; 3], TrainError> {
    let share = 1.0 / comm.mesh.size(Axis::Sp) as f64;
    let figures: Vec<f64> = figures.values().iter().map(|sum| sum * share).collect();
    let sums = sum(comm.world(), &[values, by_source.values(), &figures].concat())?;
    let (of_values, others) = sums.split_at(values.len());
    let (by_source, figures) = others.split_at(by_source.values().len());
    Ok([of_values, by_source, figures].map(<[f64]>::to_vec))
}

/// A micro-batch of evaluation data.
struct EvalBatch {
    /// The first sample of those that all groups evaluate at a time.
    first: usize,
    /// Those of this rank's group.
    samples: Range<usize>,
    /// False if it is a repetition, for a group that has none left: ZeRO's gathers are collective.
    is_counted: bool,
}

/// The evaluation data of this rank's group, `rows` samples at a time.
fn eval_batches(dataset: Option<&Dataset>, mesh: &Mesh, rows: usize) -> Vec<EvalBatch> {
    let len = dataset.map_or(0, Dataset::len);
    let firsts = (0..len).step_by(rows * mesh.size(Axis::Dp));
    let of_group = |first| {
        let start = first + mesh.local_rank(Axis::Dp) * rows;
        let is_counted = start < len;
        let start = if is_counted { start } else { first };
        EvalBatch { first, samples: start..(start + rows).min(len), is_counted }
    };
    firsts.map(of_group).collect()
}

/// Samples as one micro-batch.
fn eval_batch(
    dataset: &Dataset,
    collator: &Collator,
    samples: Range<usize>,
) -> Result<MicroBatch, TrainError> {
    let samples = samples.map(|index| dataset.sample(index)).collect::<Result<Vec<_>, _>>()?;
    Ok(collator.collate(&samples)?)
}
