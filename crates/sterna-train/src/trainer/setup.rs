//! What a run needs before its first step: files, places, and the ranks' agreement on both.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
    time::Instant,
};

use sterna_arch::ModelConfig;
use sterna_comm::{Comm, GpuTransport, RankEnv};
use sterna_data::{Dataset, Datasets};
use sterna_hf::{Tokenizer, WeightFiles, hub};
use sterna_ops::widens;
use sterna_plan::{DeviceType, MemoryKind, Plan};
use sterna_recipe::{KeepAttention, PadTo, Place, Recipe};
use sterna_torch_sys::{cuda, kernels};
use tch::{Device, Kind, Tensor};

use super::DeviceChoice;
use crate::{
    error::TrainError,
    load::kind_of,
    observe::{
        flops,
        memory::{HostMemory, reserve},
    },
    scalars::{max, sum},
    storage::disk::DiskScratch,
};

/// The device that this rank computes on, made its current one if it is a GPU. The GPU's kernels are compiled once for all processes
/// with this `cache_dir`.
///
/// # Errors
///
/// [`TrainError::DeviceUnavailable`] if a GPU was asked for by name and there is none.
pub(super) fn device(
    choice: DeviceChoice,
    env: &RankEnv,
    cache_dir: &Path,
) -> Result<Device, TrainError> {
    if choice == DeviceChoice::Cpu {
        return Ok(Device::Cpu);
    }
    match cuda::load() {
        Ok(count) => {
            let index = env.local_rank % count;
            cuda::set_device(index)?;
            kernels::set_cache_dir(cache_dir.to_owned());
            Ok(Device::Cuda(index))
        }
        Err(source) if choice == DeviceChoice::Cuda => {
            Err(TrainError::DeviceUnavailable { source })
        }
        // A machine without a driver is a CPU's; any other reason is one that its owner wants to hear.
        Err(reason @ cuda::Error::NoDriver { .. }) => {
            tracing::debug!(%reason, "computing on the CPU");
            Ok(Device::Cpu)
        }
        Err(reason) => {
            tracing::warn!("computing on the CPU, because {reason}; {}", reason.hint());
            Ok(Device::Cpu)
        }
    }
}

/// As plans have it.
pub(crate) fn device_type(device: Device) -> DeviceType {
    if device.is_cuda() { DeviceType::Cuda } else { DeviceType::Cpu }
}

/// Connects the ranks' GPUs, and says so where their tensors have to go through the host instead.
///
/// # Communication
///
/// That of [`Comm::connect_gpus`]; every rank calls it, whatever its device. Collective.
pub(super) fn connect_gpus(comm: &Comm, device: Device, env: &RankEnv) -> Result<(), TrainError> {
    let num_gpus = if device.is_cuda() { tch::Cuda::device_count().max(0) as usize } else { 0 };
    let transport = comm.connect_gpus(env.local_world_size <= num_gpus)?;
    if device.is_cuda() && transport == GpuTransport::Host && env.rank == 0 {
        tracing::warn!(
            "`{}` processes share `{num_gpus}` GPUs of this machine: what travels between them goes through host memory \
             (Gloo), which is for tests; NCCL needs a GPU for each",
            env.local_world_size
        );
    }
    Ok(())
}

/// The config of the recipe's model, with the recipe's changes and adapters.
///
/// # Errors
///
/// [`TrainError::Hf`] if a config cannot be found; [`TrainError::Config`] if it cannot be used.
pub fn model_config(recipe: &Recipe) -> Result<ModelConfig, TrainError> {
    let dir = hub::resolve_model_config(&recipe.model.name_or_path)?;
    let adapter_dir = adapter_dir(recipe)?;
    Ok(recipe.model_config(&dir, adapter_dir.as_deref())?)
}

fn adapter_dir(recipe: &Recipe) -> Result<Option<PathBuf>, TrainError> {
    Ok(recipe.model.adapter_name_or_path.as_deref().map(hub::resolve_adapter).transpose()?)
}

/// The files that a run begins with.
#[derive(Debug)]
pub(super) struct Files {
    /// The model's weights; `None` if they are drawn at random.
    pub(super) weights: Option<WeightFiles>,
    /// Those of adapters; `None` if there are none, or they are drawn at random.
    pub(super) adapters: Option<WeightFiles>,
}

/// What a recipe names: a model and a tokenizer.
#[derive(Debug)]
pub(super) struct Assets {
    pub(super) config: ModelConfig,
    pub(super) tokenizer: Tokenizer,
    pub(super) tokenizer_dir: PathBuf,
    pub(super) model_dir: PathBuf,
    /// What tells the weights under adapters from others; `None` without adapters, or if the weights are drawn at random.
    pub(super) base: Option<String>,
}

impl Assets {
    /// Finds and opens them.
    pub(super) fn resolve(
        recipe: &Recipe,
        config: ModelConfig,
    ) -> Result<(Self, Files), TrainError> {
        let model = &recipe.model;
        let config_dir = hub::resolve_model_config(&model.name_or_path)?;
        let has_config_only =
            model.random_weights || model.changes_depth(&ModelConfig::from_dir(&config_dir)?);
        let model_dir =
            if has_config_only { config_dir } else { hub::resolve_model(&model.name_or_path)? };
        let tokenizer_dir = hub::resolve_model_config(&recipe.tokenizer.name_or_path)?;
        let tokenizer = Tokenizer::from_dir(&tokenizer_dir)?;
        if has_config_only {
            config.expect_text_alone("a model of text alone where weights are drawn")?;
            if config.lora.as_ref().is_some_and(|lora| lora.use_dora) {
                return Err(TrainError::DoraOfRandomWeights);
            }
            let files = Files { weights: None, adapters: adapter_files(recipe, &config)? };
            return Ok((Self { config, tokenizer, tokenizer_dir, model_dir, base: None }, files));
        }
        let weights = WeightFiles::open(&model_dir)?;
        let config = config.named_as_in(|name| weights.contains(name));
        weights.check(&config)?;
        let base = config.lora.is_some().then(|| weights.fingerprint(&config)).transpose()?;
        let files = Files { weights: Some(weights), adapters: adapter_files(recipe, &config)? };
        Ok((Self { config, tokenizer, tokenizer_dir, model_dir, base }, files))
    }
}

fn adapter_files(recipe: &Recipe, config: &ModelConfig) -> Result<Option<WeightFiles>, TrainError> {
    let dir = adapter_dir(recipe)?;
    if let Some(lora) = config.lora.as_ref().filter(|lora| lora.lora_dropout > 0.0) {
        tracing::warn!(
            "the adapters were trained with `lora_dropout` `{}`, and are trained on without: there is no dropout here",
            lora.lora_dropout
        );
    }
    Ok(dir.map(|dir| WeightFiles::open_adapter(&dir, config)).transpose()?)
}

/// The plan of the longest batch that the data really has: most data stays far below `max_length`.
pub(super) fn plan_of_data(
    recipe: &Recipe,
    config: &ModelConfig,
    world_size: usize,
    datasets: &Datasets,
    device: Device,
) -> Result<Plan, TrainError> {
    let mut recipe = recipe.clone();
    if recipe.data.pad_to == PadTo::DivLength {
        let longest =
            |dataset: &Dataset| (0..dataset.len()).map(|index| dataset.sample_len(index)).max();
        let longest = longest(&datasets.train).max(datasets.eval.as_ref().and_then(longest));
        // Of the samples in such a row.
        let per_row = recipe.data.row_length(1);
        recipe.data.max_length = longest.map(|longest| longest.div_ceil(per_row));
    }
    let plan =
        Plan::new(&recipe, config, world_size, device_type(device)).map_err(TrainError::Plan)?;
    let is_widened = widens(kind_of(recipe.model.dtype), device);
    Ok(if is_widened { plan.with_widened_products(config) } else { plan })
}

/// Of how many blocks the ranks of this machine can keep the attention output beside everything else, so that their backward needs
/// no second attention forward. All ranks decide the same; only time and memory depend on it.
///
/// # Communication
///
/// One all-reduce. Collective.
pub(super) fn num_attention_kept(
    plan: &Plan,
    comm: &Comm,
    env: &RankEnv,
    device: Device,
) -> Result<usize, TrainError> {
    let num_layers = plan.model.num_hidden_layers;
    let number = match plan.keep.attention {
        KeepAttention::All => num_layers,
        KeepAttention::Blocks(number) => number.min(num_layers),
        // What lives on disk is limited by the space that was reserved there.
        KeepAttention::Auto if plan.keep.attention_on == Place::Disk => num_layers,
        KeepAttention::Auto => {
            let memory = &plan.memory;
            let host = HostMemory::now().available() / env.local_world_size as u64;
            let (needed, left) = match device {
                Device::Cuda(index) if plan.keep.attention_on == Place::Device => {
                    let num_gpus = tch::Cuda::device_count().max(1) as usize;
                    let sharing = env.local_world_size.div_ceil(num_gpus) as u64;
                    (memory.device_bytes(), cuda::memory(index)?.free / sharing)
                }
                Device::Cuda(_) => (memory.host_bytes(), host),
                // Device and host are the same memory.
                _ => (memory.device_bytes() + memory.host_bytes(), host),
            };
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

/// How many times `bytes_each` fit beside `needed` and a reserve into `left`.
fn num_fitting(left: u64, needed: u64, bytes_each: u64) -> usize {
    (left.saturating_sub(needed.saturating_add(reserve(needed))) / bytes_each.max(1)) as usize
}

/// The file for the activations that this rank keeps on disk, with its space reserved, if any do. The optimizer has its own.
pub(super) fn scratch(recipe: &Recipe, plan: &Plan) -> Result<Option<Rc<DiskScratch>>, TrainError> {
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

/// FLOP/s that the ranks can reach together, which MFU is a fraction of: of a GPU the datasheet's rate for bf16, where we know it, as
/// everybody counts; of others and of a CPU what matrix products reach, measured. All ranks measure at once, because they share the machine's cores.
///
/// # Communication
///
/// A barrier and an all-reduce. Collective.
pub(super) fn peak_rate(comm: &Comm, kind: Kind, device: Device) -> Result<f64, TrainError> {
    let known = match device {
        Device::Cuda(index) if kind == Kind::BFloat16 => {
            flops::datasheet_rate(&cuda::properties(index)?.name)
        }
        _ => None,
    };
    comm.world().barrier()?;
    let kind = if widens(kind, device) { Kind::Float } else { kind };
    let rate = known.unwrap_or_else(|| matmul_rate(kind, device));
    Ok(sum(comm.world(), &[rate])?[0])
}

/// FLOP/s of matrix products.
fn matmul_rate(kind: Kind, device: Device) -> f64 {
    const REPEATS: usize = 4;
    // A GPU needs more to be filled: it starts with as little as a CPU and grows while a product takes less than this.
    const LARGEST: i64 = 8192;
    const LONG: f64 = 0.01;
    let mut size: i64 = 1024;
    let synchronize = || {
        if let Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
    };
    // The shortest of some products of this size, seconds.
    let measure = |size: i64, repeats: usize| {
        // Zeros and ones would let a GPU run faster than any real data does.
        let random = || Tensor::randn([size, size], (kind, device));
        let (a, b) = (random(), random());
        let _warm_up = a.matmul(&b);
        synchronize();
        let of_one = |_| {
            let started = Instant::now();
            let _product = a.matmul(&b);
            synchronize();
            started.elapsed().as_secs_f64()
        };
        (0..repeats).map(of_one).fold(f64::INFINITY, f64::min)
    };
    while device.is_cuda() && size < LARGEST && measure(size, 1) < LONG {
        size *= 2;
    }
    let best = measure(size, REPEATS);
    2.0 * (size as f64).powi(3) / best
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
