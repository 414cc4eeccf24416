//! The whole run of one rank, from a recipe to an export.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use sterna_comm::{Comm, RankEnv};
use sterna_data::{Collator, DataMesh, Dataset, Datasets, MicroBatch, MicroBatches, PrepareReport};
use sterna_hf::{ModelConfig, Tokenizer, WeightFiles, export::check_destination, hub};
use sterna_model::stage::Stage;
use sterna_recipe::{
    CheckpointOptions, KeepAttention, LossAverage, MemoryKind, MemoryOptions, PadTo, Place, Plan,
    Recipe,
};
use sterna_torch_sys::{AdamW, memory as tensor_memory};
use tch::{Device, Kind, Tensor};

use crate::{
    disk::DiskScratch,
    engine::{Engine, EngineOptions},
    error::TrainError,
    export::export,
    flops,
    load::WeightSource,
    memory::HostMemory,
    metrics::{EvalMetrics, IterationMetrics, MetricsFile},
    optim::{LrSchedule, clip_scale},
    phases::Phase,
    scalars::{max, sum},
};

/// Receives what a run has to say. The library itself prints nothing.
pub trait Observer {
    /// Everything is known and nothing has been computed.
    fn on_start(&mut self, plan: &Plan, report: &PrepareReport, num_steps: u64);
    /// An optimizer step ended.
    fn on_iteration(&mut self, metrics: &IterationMetrics);
    /// An evaluation ended.
    fn on_eval(&mut self, metrics: &EvalMetrics);
    /// An export was written to this folder.
    fn on_export(&mut self, dir: &Path);
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSummary {
    /// Optimizer steps done.
    pub num_steps: u64,
    /// Why it ended before the schedule's end, if it did.
    pub early_exit: Option<String>,
    /// Folders that exports were written to, in order.
    pub exports: Vec<PathBuf>,
}

/// Which device to compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The best that this build and machine have: the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU, which this build does not have.
    Cuda,
}

/// What the command line decides beside the recipe.
#[derive(Debug, Clone, Copy)]
pub struct TrainOptions {
    /// Where to compute.
    pub device: DeviceChoice,
    /// How long a collective waits for its slowest rank, be it in a step, preparing data or writing an export. A rank
    /// that *ends* is noticed in seconds; this bounds a rank that hangs.
    pub collective_timeout: Duration,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self { device: DeviceChoice::Auto, collective_timeout: Duration::from_mins(30) }
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
    options: TrainOptions,
    observer: &mut dyn Observer,
) -> Result<TrainSummary, TrainError> {
    let device = match options.device {
        DeviceChoice::Auto | DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Cuda => {
            return Err(TrainError::DeviceUnavailable { device: "cuda".to_owned() });
        }
    };
    // Before the first tensor: those that exist already would not be counted.
    tensor_memory::install();
    let config = model_config(recipe)?;
    let plan = Plan::new(recipe, &config, env.world_size).map_err(TrainError::Plan)?;
    let comm = Comm::init(env, recipe.sequence_parallel_size, options.collective_timeout)?;
    // From here on a failure is told to the other ranks, whatever it is: libtorch's exceptions arrive as panics.
    let run = AssertUnwindSafe(|| run(recipe, config, &plan, env, &comm, device, observer));
    let result =
        catch_unwind(run).unwrap_or_else(|panic| Err(TrainError::from_panic(panic.as_ref())));
    if let Err(error) = &result {
        comm.abort(&error.to_string());
    }
    result
}

/// The run of a rank that has joined the others.
fn run(
    recipe: &Recipe,
    config: ModelConfig,
    plan: &Plan,
    env: &RankEnv,
    comm: &Comm,
    device: Device,
    observer: &mut dyn Observer,
) -> Result<TrainSummary, TrainError> {
    let (assets, weights) = Assets::resolve(recipe, config)?;
    let max_length = assets.config.max_position_embeddings;
    let datasets = sterna_data::prepare(recipe, max_length, &assets.tokenizer, env.world_size)?;
    let mut trainer =
        Trainer::new(recipe, env, comm, &assets, &datasets, plan, device, weights.as_ref())?;
    // The pages of a mapped file count as memory of this process for as long as it is mapped.
    drop(weights);
    trainer.run(plan, observer)
}

/// The config of the recipe's model, with the recipe's changes.
fn model_config(recipe: &Recipe) -> Result<ModelConfig, TrainError> {
    let dir = hub::resolve_model_config(&recipe.model.name_or_path)?;
    Ok(ModelConfig::from_dir(&dir)?.with_overrides(&recipe.model.hf_config_kwargs)?)
}

/// What a recipe names: a model and a tokenizer.
#[derive(Debug)]
struct Assets {
    config: ModelConfig,
    tokenizer: Tokenizer,
    tokenizer_dir: PathBuf,
    model_dir: PathBuf,
}

impl Assets {
    /// Finds and opens them; no weights when they are drawn at random.
    fn resolve(
        recipe: &Recipe,
        config: ModelConfig,
    ) -> Result<(Self, Option<WeightFiles>), TrainError> {
        let model = &recipe.model;
        let config_dir = hub::resolve_model_config(&model.name_or_path)?;
        let has_config_only =
            model.random_weights || model.changes_depth(&ModelConfig::from_dir(&config_dir)?);
        let model_dir =
            if has_config_only { config_dir } else { hub::resolve_model(&model.name_or_path)? };
        let tokenizer_dir = hub::resolve_model_config(&recipe.tokenizer.name_or_path)?;
        let tokenizer = Tokenizer::from_dir(&tokenizer_dir)?;
        let weights = if has_config_only {
            None
        } else {
            let weights = WeightFiles::open(&model_dir)?;
            weights.check(&config.parameters())?;
            Some(weights)
        };
        Ok((Self { config, tokenizer, tokenizer_dir, model_dir }, weights))
    }
}

/// One rank's run.
struct Trainer<'a> {
    recipe: &'a Recipe,
    comm: &'a Comm,
    assets: &'a Assets,
    datasets: &'a Datasets,
    stream: MicroBatches<'a>,
    engine: Engine<'a>,
    schedule: LrSchedule,
    adamw: AdamW,
    num_steps: u64,
    /// What the ranks' matrix multiplications reach together, FLOP/s.
    matmul_rate: f64,
}

/// What the ranks tell each other about a step before the optimizer moves.
struct StepReport {
    loss: f64,
    num_tokens: f64,
    num_valid_tokens: f64,
    reference_tflos: f64,
    model_tflos: f64,
    seqlen: f64,
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
        weights: Option<&WeightFiles>,
    ) -> Result<Self, TrainError> {
        let mesh = &comm.mesh;
        let data_mesh =
            DataMesh { world_size: mesh.world_size, sp_size: mesh.sp_size, dp_rank: mesh.dp_rank };
        let stream = MicroBatches::new(
            &datasets.train,
            recipe,
            data_mesh,
            assets.config.max_position_embeddings,
            assets.tokenizer.pad_token_id(),
        );
        let num_steps = num_steps(recipe, stream.len()).ok_or(TrainError::NoSteps {
            num_micro_batches: stream.len() * recipe.epochs,
            dp_size: mesh.dp_size,
            gradient_accumulation_steps: recipe.gradient_accumulation_steps,
        })?;
        check_agreement(recipe, comm, &assets.config, &datasets.train, num_steps)?;
        let of_data = plan_of_data(recipe, &assets.config, mesh.world_size, datasets)?;
        let disk = scratch(recipe, &of_data)?;
        let num_attention = num_attention_kept(&of_data, comm, env)?;
        let options = EngineOptions::new(plan, device, num_attention, disk.as_ref());
        let mut engine = Engine::new(comm, &assets.config, recipe, options)?;
        let source = match weights {
            Some(files) => WeightSource::Files(files),
            None => WeightSource::Random { config: &assets.config, seed: recipe.seed },
        };
        engine.zero.load(&source)?;
        Ok(Self {
            recipe,
            comm,
            assets,
            datasets,
            stream,
            schedule: LrSchedule::new(&recipe.scheduler, recipe.optimizer.learning_rate, num_steps),
            adamw: AdamW {
                lr: recipe.optimizer.learning_rate,
                beta1: recipe.optimizer.betas.0,
                beta2: recipe.optimizer.betas.1,
                eps: recipe.optimizer.eps,
                weight_decay: recipe.optimizer.weight_decay,
            },
            num_steps,
            matmul_rate: matmul_rate(comm, engine.kind(), device)?,
            engine,
        })
    }

    fn run(
        &mut self,
        plan: &Plan,
        observer: &mut dyn Observer,
    ) -> Result<TrainSummary, TrainError> {
        let is_writer = self.comm.mesh.rank == 0;
        let mut file = (is_writer && self.recipe.train_log_metrics)
            .then(|| MetricsFile::open(&self.recipe.train_log_metrics_path))
            .transpose()?;
        let mut exports = Vec::new();
        let mut early_exit = None;
        if is_writer {
            self.check_destinations()?;
        }
        if self.is_killed()? {
            return Err(TrainError::KillSwitch { path: self.recipe.kill_switch_path.clone() });
        }
        observer.on_start(plan, &self.datasets.report, self.num_steps);
        if self.recipe.eval_on_start {
            self.evaluate(0, file.as_mut(), observer)?;
        }

        let mut num_done = 0;
        while num_done < self.num_steps {
            if self.is_killed()? {
                early_exit = Some(format!("found `{}`", self.recipe.kill_switch_path.display()));
                break;
            }
            let step = num_done + 1;
            let metrics = self.step(step)?;
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
            for checkpoint in &self.recipe.checkpoint {
                if self.is_due(checkpoint, step) {
                    exports.push(self.export(checkpoint, step, observer)?);
                }
            }
        }

        for checkpoint in &self.recipe.checkpoint {
            if checkpoint.save_end_of_training && !self.is_due(checkpoint, num_done) {
                exports.push(self.export(checkpoint, num_done, observer)?);
            }
        }
        // A rank that leaves early closes connections that a slower rank still needs.
        self.comm.world().barrier()?;
        Ok(TrainSummary { num_steps: num_done, early_exit, exports })
    }

    /// One optimizer step, counted from 1.
    fn step(&mut self, step: u64) -> Result<IterationMetrics, TrainError> {
        let started = Instant::now();
        let _iteration = Stage::Iteration.enter_at(step as usize);
        let reading = Stage::Data.enter();
        let gas = self.recipe.gradient_accumulation_steps;
        let first = (step as usize - 1) * gas;
        let batches = (first..first + gas)
            .map(|index| self.micro_batch(index))
            .collect::<Result<Vec<_>, _>>()?;
        drop(reading);
        let step_started = Instant::now();

        let mut loss = 0.0;
        for (batch, scale) in batches.iter().zip(self.loss_scales(&batches)?) {
            loss += self.engine.forward_backward(batch, scale)?;
        }
        self.engine.phases.begin(Phase::Step);
        self.engine.zero.finish_gradients(self.comm.world())?;
        let report = self.report(&batches, loss)?;
        let grad_norm = self.engine.zero.gradient_norm(self.comm.world())?;
        for (name, value) in [("loss", report.loss), ("gradient norm", grad_norm)] {
            if !value.is_finite() {
                return Err(TrainError::NotFinite { name, value, step });
            }
        }
        let lr = self.schedule.lr(step - 1);
        let adamw = AdamW { lr, ..self.adamw };
        let grad_scale = clip_scale(grad_norm, self.recipe.deepspeed.gradient_clipping);
        self.engine.zero.step(self.comm.world(), &adamw, step, grad_scale)?;

        let phases = self.engine.phases.finish();
        let (iter_time, step_time) =
            (started.elapsed().as_secs_f64(), step_started.elapsed().as_secs_f64());
        let memory = HostMemory::now();
        let world_size = self.comm.mesh.world_size as f64;
        Ok(IterationMetrics {
            epoch: (first + gas - 1) / self.stream.len(),
            iter: step,
            max_iter: self.num_steps,
            loss: report.loss,
            lr,
            grad_norm,
            seqlen: report.seqlen,
            num_tokens: report.num_tokens.round() as u64,
            num_valid_tokens: report.num_valid_tokens.round() as u64,
            iter_time,
            step_time,
            iter_tflops: report.reference_tflos / (world_size * iter_time),
            step_tflops: report.reference_tflos / (world_size * step_time),
            tokens_per_second: report.num_tokens / iter_time,
            mfu: report.model_tflos * 1e12 / (self.matmul_rate * step_time),
            peak_memory: max(self.comm.world(), memory.process_peak as f64)? as u64,
            memory,
            phases,
        })
    }

    /// Micro-batch number `index` of the run, counted over epochs.
    fn micro_batch(&self, index: usize) -> Result<MicroBatch, TrainError> {
        let index = if self.recipe.overfit_first_batch { 0 } else { index % self.stream.len() };
        Ok(self.stream.get(index)?)
    }

    /// What each micro-batch's summed loss is multiplied by, so that the step's loss is the sum over micro-batches and
    /// ranks. Known before the first backward, so no gradient is rescaled afterwards (design decision D9).
    ///
    /// # Communication
    ///
    /// `loss_average: token` takes one all-reduce of the label count. Collective.
    fn loss_scales(&self, batches: &[MicroBatch]) -> Result<Vec<f64>, TrainError> {
        let counts = batches.iter().map(|batch| batch.num_valid_tokens() as f64);
        // A micro-batch without labels has a loss of zero, not 0 / 0.
        let inverse = |count: f64| if count > 0.0 { 1.0 / count } else { 0.0 };
        match self.recipe.loss_average {
            // (1 / (dp * gas)) sum over micro-batches of (1 / N) sum over its tokens.
            LossAverage::MicroBatch => {
                let num_micro_batches = (self.comm.mesh.dp_size * batches.len()) as f64;
                Ok(counts.map(|count| inverse(count) / num_micro_batches).collect())
            }
            // (1 / sum of all N) sum over all tokens.
            LossAverage::Token => {
                let total = sum(self.comm.dp(), &[counts.sum()])?[0];
                Ok(vec![inverse(total); batches.len()])
            }
        }
    }

    /// Sums what the ranks know of a step. `loss` is this rank's part of the scaled sum.
    fn report(&self, batches: &[MicroBatch], loss: f64) -> Result<StepReport, TrainError> {
        let is_flash = self.recipe.model.attn_implementation.is_flash();
        let recompute = !self.recipe.model.disable_activation_checkpoint;
        let config = &self.assets.config;
        let (mut num_tokens, mut num_valid_tokens, mut seqlen) = (0, 0, 0);
        let (mut reference_tflos, mut model_tflos) = (0.0, 0.0);
        for batch in batches {
            let documents: Vec<usize> = batch.packed_sample_seqlens.concat();
            num_tokens += documents.iter().sum::<usize>();
            num_valid_tokens += batch.num_valid_tokens();
            // The reference sees documents only when the attention kernel's name says flash (arctic.md section 3.3).
            let counted = if is_flash { documents.clone() } else { vec![batch.len; batch.rows] };
            seqlen += counted.iter().sum::<usize>();
            reference_tflos += flops::reference_tflos(config, counted.into_iter(), recompute);
            model_tflos += flops::model_tflos(config, documents.into_iter());
        }
        // Every rank of a sequence-parallel group knows the same micro-batches: each contributes its share of them.
        let share = 1.0 / self.comm.mesh.sp_size as f64;
        let num_micro_batches = (batches.len() * self.comm.mesh.dp_size) as f64;
        let sums = sum(
            self.comm.world(),
            &[
                loss,
                num_tokens as f64 * share,
                num_valid_tokens as f64 * share,
                reference_tflos * share,
                model_tflos * share,
                seqlen as f64 * share / num_micro_batches,
            ],
        )?;
        Ok(StepReport {
            loss: sums[0],
            num_tokens: sums[1],
            num_valid_tokens: sums[2],
            reference_tflos: sums[3],
            model_tflos: sums[4],
            seqlen: sums[5],
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
        let rows = self.recipe.micro_batch_size;
        let (mut loss, mut num_valid_tokens) = (0.0, 0.0);
        for first in (0..dataset.len()).step_by(rows * mesh.dp_size) {
            let start = first + mesh.dp_rank * rows;
            let is_counted = start < dataset.len();
            let start = if is_counted { start } else { first };
            let batch = eval_batch(dataset, &collator, start, rows)?;
            let loss_sum = self.engine.forward(&batch)?;
            if is_counted {
                loss += loss_sum;
                num_valid_tokens += batch.num_valid_tokens() as f64 / mesh.sp_size as f64;
            }
        }
        let sums = sum(self.comm.world(), &[loss, num_valid_tokens])?;
        let metrics = EvalMetrics {
            iter,
            max_iter: self.num_steps,
            loss: sums[0] / sums[1].max(1.0),
            num_valid_tokens: sums[1].round() as u64,
            num_samples: dataset.len(),
            time: started.elapsed().as_secs_f64(),
        };
        if let Some(file) = file {
            file.append_eval(&metrics)?;
        }
        observer.on_eval(&metrics);
        Ok(())
    }

    /// Whether `checkpoint` asks for an export after step `step`.
    fn is_due(&self, checkpoint: &CheckpointOptions, step: u64) -> bool {
        let every_steps = checkpoint.save_every_n_steps as u64;
        let every_epochs = checkpoint.save_every_n_epochs as u64;
        every_steps > 0 && step > 0 && step.is_multiple_of(every_steps)
            || every_epochs > 0
                && self.epochs_done(step) / every_epochs
                    > self.epochs_done(step.saturating_sub(1)) / every_epochs
    }

    /// Whole passes over the data after step `step`. Micro-batches that are too few for another step end their epoch.
    fn epochs_done(&self, step: u64) -> u64 {
        let gas = self.recipe.gradient_accumulation_steps as u64;
        let per_epoch = self.stream.len() as u64;
        let total = per_epoch * self.recipe.epochs as u64;
        let num_micro_batches = step * gas;
        let is_last = self.recipe.train_iters == 0 && num_micro_batches + gas > total;
        if is_last { self.recipe.epochs as u64 } else { num_micro_batches / per_epoch }
    }

    /// Refuses, before the first step, exports that could not be written later.
    fn check_destinations(&self) -> Result<(), TrainError> {
        let num_bytes =
            self.assets.config.num_parameters() * self.engine.kind().elt_size_in_bytes();
        let mut dirs = BTreeSet::new();
        for checkpoint in &self.recipe.checkpoint {
            let at_end = checkpoint.save_end_of_training.then_some(self.num_steps);
            let steps =
                (1..=self.num_steps).filter(|&step| self.is_due(checkpoint, step)).chain(at_end);
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
            &self.assets.model_dir,
            &self.assets.tokenizer_dir,
            &dir,
        )?;
        observer.on_export(&dir);
        Ok(dir)
    }

    /// Whether any rank sees the kill-switch file: all stop at the same step.
    fn is_killed(&self) -> Result<bool, TrainError> {
        let is_here = self.recipe.kill_switch_path.exists();
        Ok(max(self.comm.world(), f64::from(u8::from(is_here)))? > 0.0)
    }
}

/// Optimizer steps that will really run, given the micro-batches of one epoch; `None` if not even one.
fn num_steps(recipe: &Recipe, micro_batches_per_epoch: usize) -> Option<u64> {
    let available = match recipe.train_iters {
        0 => micro_batches_per_epoch * recipe.epochs / recipe.gradient_accumulation_steps,
        // `train_iters` goes on over as many epochs as it takes.
        train_iters if micro_batches_per_epoch > 0 => train_iters,
        _ => 0,
    };
    let limits = [recipe.exit_iteration, recipe.exit_iteration_this_run];
    let num_steps = limits.into_iter().filter(|&limit| limit > 0).fold(available, usize::min);
    (num_steps > 0).then_some(num_steps as u64)
}

/// The plan of the longest batch that the data really has: most data stays far below `max_length`.
fn plan_of_data(
    recipe: &Recipe,
    config: &ModelConfig,
    world_size: usize,
    datasets: &Datasets,
) -> Result<Plan, TrainError> {
    let mut recipe = recipe.clone();
    if recipe.data.pad_to == PadTo::DivLength {
        let longest =
            |dataset: &Dataset| (0..dataset.len()).map(|index| dataset.sample_len(index)).max();
        recipe.data.max_length =
            longest(&datasets.train).max(datasets.eval.as_ref().and_then(longest));
    }
    Plan::new(&recipe, config, world_size).map_err(TrainError::Plan)
}

/// Of how many blocks the ranks of this machine can keep the attention output beside everything else, so that their backward needs
/// no second attention forward (design decision D5). All ranks decide the same; only time and memory depend on it.
///
/// # Communication
///
/// One all-reduce. Collective.
fn num_attention_kept(plan: &Plan, comm: &Comm, env: &RankEnv) -> Result<usize, TrainError> {
    let num_layers = plan.model.num_hidden_layers;
    let number = match plan.keep.attention {
        KeepAttention::All => num_layers,
        KeepAttention::Blocks(number) => number.min(num_layers),
        // What lives on disk is limited by the space that was reserved there.
        KeepAttention::Auto if plan.keep.attention_on == Place::Disk => num_layers,
        KeepAttention::Auto => {
            let memory = &plan.memory;
            // On a CPU, device and host are the same memory.
            let needed = memory.device_bytes() + memory.host_bytes();
            let left = HostMemory::now().available() / env.local_world_size as u64;
            let fitting = num_fitting(left, needed, memory.kept_attention_bytes).min(num_layers);
            tracing::info!(
                needed,
                left,
                fitting,
                num_layers,
                "blocks that keep their attention output"
            );
            fitting
        }
    };
    // The smallest of all ranks'.
    Ok(-max(comm.world(), -(number as f64))? as usize)
}

/// How many times `bytes_each` fit beside `needed` into `left`, and a reserve: a plan counts tensors and is a bound from below.
/// Libraries keep programs and buffers of their own, and an allocator keeps free blocks: up to 1 GiB was seen, or a tenth of what
/// is needed.
fn num_fitting(left: u64, needed: u64, bytes_each: u64) -> usize {
    const LEAST_RESERVE: u64 = 1 << 30;
    let reserve = (needed / 10).max(LEAST_RESERVE);
    (left.saturating_sub(needed.saturating_add(reserve)) / bytes_each.max(1)) as usize
}

/// The file for the activations that this rank keeps on disk, with its space reserved, if any do. The optimizer has its own.
fn scratch(recipe: &Recipe, plan: &Plan) -> Result<Option<Rc<DiskScratch>>, TrainError> {
    let keep = plan.keep;
    let (Some(dir), true) =
        (&recipe.memory.disk_dir, [keep.inputs_on, keep.attention_on].contains(&Place::Disk))
    else {
        return Ok(None);
    };
    let is_auto = keep.attention == KeepAttention::Auto && keep.attention_on == Place::Disk;
    let attention = if is_auto {
        plan.memory.kept_attention_bytes * plan.model.num_hidden_layers as u64
    } else {
        0
    };
    let rows = plan.memory.rows.iter().filter(|row| row.kind != MemoryKind::Optimizer);
    let needed_bytes = rows.map(|row| row.disk_bytes).sum::<u64>() + attention;
    std::fs::create_dir_all(dir).map_err(|source| TrainError::Io { path: dir.clone(), source })?;
    Ok(Some(Rc::new(DiskScratch::create(dir, needed_bytes)?)))
}

/// Makes sure that all ranks read the same things: another data file on one host would otherwise train on a mixture of
/// sequences without a word, or leave the ranks waiting for each other.
///
/// # Communication
///
/// One all-gather of 8 bytes. Collective.
fn check_agreement(
    recipe: &Recipe,
    comm: &Comm,
    config: &ModelConfig,
    dataset: &Dataset,
    num_steps: u64,
) -> Result<(), TrainError> {
    const NUM_SAMPLES: usize = 64;
    let mut hasher = DefaultHasher::new();
    // Folders may have other names on other hosts; everything that decides numbers or collectives may not.
    let exports: Vec<_> = recipe
        .checkpoint
        .iter()
        .map(|c| (c.save_every_n_steps, c.save_every_n_epochs, c.save_end_of_training))
        .collect();
    let keys = (
        (
            &recipe.optimizer,
            &recipe.scheduler,
            &recipe.deepspeed,
            recipe.loss_average,
            recipe.model.dtype,
        ),
        (recipe.micro_batch_size, recipe.gradient_accumulation_steps, recipe.overfit_first_batch),
        (recipe.tiled_mlp_compute, recipe.model.disable_activation_checkpoint, recipe.seed),
        // Where things wait and how much is computed at once decide which collectives a rank takes part in.
        MemoryOptions { disk_dir: None, timeline_dir: None, ..recipe.memory.clone() },
        (recipe.eval_interval, recipe.eval_on_start, exports, num_steps),
    );
    (env!("CARGO_PKG_VERSION"), format!("{keys:?}"), format!("{:?}", config.raw)).hash(&mut hasher);
    for index in 0..dataset.len() {
        dataset.sample_len(index).hash(&mut hasher);
    }
    for index in (0..dataset.len()).step_by(dataset.len().div_ceil(NUM_SAMPLES)) {
        let sample = dataset.sample(index)?;
        (sample.input_ids, sample.labels).hash(&mut hasher);
    }
    let of_ranks = comm.world().all_gather_bytes(&hasher.finish().to_le_bytes())?;
    let ranks: Vec<usize> =
        (0..of_ranks.len()).filter(|&rank| of_ranks[rank] != of_ranks[0]).collect();
    if ranks.is_empty() { Ok(()) } else { Err(TrainError::RanksDisagree { ranks }) }
}

/// Up to `rows` samples from `start` on, as one micro-batch.
fn eval_batch(
    dataset: &Dataset,
    collator: &Collator,
    start: usize,
    rows: usize,
) -> Result<MicroBatch, TrainError> {
    let end = (start + rows).min(dataset.len());
    let samples = (start..end).map(|index| dataset.sample(index)).collect::<Result<Vec<_>, _>>()?;
    Ok(collator.collate(&samples)?)
}

/// FLOP/s that the ranks' matrix multiplications reach together, measured: what MFU is a fraction of on a CPU, whose
/// peak no table gives. All ranks measure at once, because they share the machine's cores.
fn matmul_rate(comm: &Comm, kind: Kind, device: Device) -> Result<f64, TrainError> {
    const SIZE: i64 = 1024;
    const REPEATS: usize = 4;
    let a = Tensor::ones([SIZE, SIZE], (kind, device));
    let b = Tensor::ones([SIZE, SIZE], (kind, device));
    let _warm_up = a.matmul(&b);
    comm.world().barrier()?;
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let started = Instant::now();
        let _product = a.matmul(&b);
        best = best.min(started.elapsed().as_secs_f64());
    }
    let rate = 2.0 * (SIZE as f64).powi(3) / best;
    Ok(sum(comm.world(), &[rate])?[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_outputs_leave_a_reserve() {
        const GIB: u64 = 1 << 30;
        // Of 16 GiB, 10 are needed and 1 is reserved: five blocks of 1 GiB fit.
        assert_eq!(num_fitting(16 * GIB, 10 * GIB, GIB), 5);
        assert_eq!(num_fitting(11 * GIB, 10 * GIB, GIB), 0);
        assert_eq!(num_fitting(GIB, 10 * GIB, GIB), 0);
        // Of a large run, a tenth is reserved.
        assert_eq!(num_fitting(200 * GIB, 100 * GIB, GIB), 90);
    }
}
