//! What an optimizer step reports, and the metrics file.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};
use sterna_torch_sys::cuda::DeviceMemory;

use crate::{
    error::TrainError,
    observe::{
        gpus::BoardMemory,
        memory::HostMemory,
        phases::{StepMemory, StepTime},
        sources::{self, SourceMetrics},
    },
};

/// The figures of one optimizer step, the same on every rank but for those of its own memory and phases.
#[derive(Debug, Clone, PartialEq)]
pub struct IterationMetrics {
    /// Pass over the data, from 0.
    pub epoch: usize,
    /// Optimizer steps done, from 1.
    pub iter: u64,
    /// Optimizer steps of the whole run.
    pub max_iter: u64,
    /// Loss of the step, averaged as the recipe asks.
    pub loss: f64,
    /// Learning rate that this step used. (The reference prints the next step's.)
    pub lr: f64,
    /// l2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens of a layer's busiest expert over the mean of its experts, in the layer where that is most; `None` without experts.
    pub moe_load_max_over_mean: Option<f64>,
    /// Whether the step changed nothing because its loss or gradient is not finite, or because it has no label.
    pub is_skipped: bool,
    /// Tokens of a micro-batch, as the reference counts them: padding included unless `attn_implementation` is flash.
    /// Mean over micro-batches.
    pub seqlen: f64,
    /// Tokens of the step over all ranks, without padding.
    pub num_tokens: u64,
    /// Tokens of the step over all ranks that the loss counts.
    pub num_valid_tokens: u64,
    /// What each source contributed, if there are several.
    pub sources: Vec<SourceMetrics>,
    /// What the objective reports beside the loss: means under their names.
    pub figures: Vec<(&'static str, f64)>,
    /// Seconds from the last step's end to this one's, data included.
    pub iter_time: f64,
    /// Seconds of the step itself.
    pub step_time: f64,
    /// TFLOPS per rank over `iter_time`, by the reference's formula ([`crate::observe::flops::reference_tflos`]).
    pub iter_tflops: f64,
    /// The same over `step_time`.
    pub step_tflops: f64,
    /// `num_tokens` per second of `iter_time`, all ranks together.
    pub tokens_per_second: f64,
    /// Model FLOPs ([`crate::observe::flops::model_tflos`]) over what the ranks could do in `step_time`: the datasheets' rate
    /// of known GPUs ([`crate::observe::flops::datasheet_rate`]), else that of matrix products, measured.
    pub mfu: f64,
    /// The largest peak resident memory of any rank, bytes.
    pub peak_memory: u64,
    /// This rank's host memory.
    pub memory: HostMemory,
    /// The memory of this rank's GPU, its peaks those of the step; `None` on a CPU.
    pub device_memory: Option<DeviceMemory>,
    /// What all processes use of this rank's GPU, at the end of the step; `None` on a CPU, and where there is no NVML.
    pub board_memory: Option<BoardMemory>,
    /// What this rank's memory held, by phase and kind.
    pub phases: StepMemory,
    /// How long this rank's phases took.
    pub phase_time: StepTime,
}

impl IterationMetrics {
    /// The row of the metrics file: the reference's keys, then ours.
    fn row(&self) -> Value {
        // Sorted by name, as the reference writes them.
        let mut row = json!({
            "epoch": self.epoch,
            "grad_norm": self.grad_norm,
            "iter": self.iter,
            "iter_tflops": self.iter_tflops,
            "iter_time": self.iter_time,
            "loss": self.loss,
            "lr": self.lr,
            "memory": self.phases.json(),
            "mfu": self.mfu,
            "num_tokens": self.num_tokens,
            "num_valid_tokens": self.num_valid_tokens,
            "peak_memory_bytes": self.peak_memory,
            "phase_time": self.phase_time.json(),
            "seqlen": self.seqlen,
            "step_tflops": self.step_tflops,
            "step_time": self.step_time,
            "tokens_per_second": self.tokens_per_second,
        });
        if let Some(load) = self.moe_load_max_over_mean {
            row["moe_load_max_over_mean"] = json!(load);
        }
        if let Some(device) = self.device_memory {
            row["device_memory"] = json!({
                "allocated": device.allocated,
                "allocated_peak": device.allocated_peak,
                "reserved": device.reserved,
                "reserved_peak": device.reserved_peak,
                "in_use": device.total - device.free,
                "total": device.total,
            });
            for (phase, kinds) in self.phases.device_json() {
                row["device_memory"][phase] = kinds;
            }
        }
        if let Some(board) = self.board_memory {
            row["device_memory"]["nvml_used"] = json!(board.used);
            row["device_memory"]["nvml_total"] = json!(board.total);
        }
        if !self.sources.is_empty() {
            row["sources"] = sources::json(&self.sources);
        }
        for (name, mean) in &self.figures {
            row[*name] = json!(mean);
        }
        if self.is_skipped {
            row["skipped"] = json!(true);
        }
        row
    }
}

/// The figures of one evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalMetrics {
    /// Optimizer steps done before it.
    pub iter: u64,
    /// Optimizer steps of the whole run.
    pub max_iter: u64,
    /// Mean loss over all labelled tokens of the evaluation data, each of which weighs the same; over all pairs of preferences.
    pub loss: f64,
    /// Labelled tokens.
    pub num_valid_tokens: u64,
    /// Those of each source, and their loss, if there are several.
    pub sources: Vec<SourceMetrics>,
    /// As [`IterationMetrics::figures`].
    pub figures: Vec<(&'static str, f64)>,
    /// Samples (packs) evaluated.
    pub num_samples: usize,
    /// Seconds.
    pub time: f64,
}

/// The JSONL file that rank 0 appends metrics to.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Opens `path` for appending and creates its folder.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] if it cannot be created.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let io = |source| TrainError::Io { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Bytes written so far.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`].
    pub fn num_bytes(&self) -> Result<u64, TrainError> {
        let metadata = self.file.metadata();
        Ok(metadata.map_err(|source| TrainError::Io { path: self.path.clone(), source })?.len())
    }

    /// Removes what follows the first `bytes` bytes, the rows of steps after `step` that are made again. A file in which that row
    /// does not end there is another one, and stays as it is.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`].
    pub fn cut_after(&mut self, bytes: u64, step: u64) -> Result<(), TrainError> {
        let io = |source| TrainError::Io { path: self.path.clone(), source };
        let text = std::fs::read(&self.path).map_err(io)?;
        let before = text.get(..bytes as usize).unwrap_or_default();
        let last =
            before.strip_suffix(b"\n").and_then(|rows| rows.rsplit(|byte| *byte == b'\n').next());
        let row: Option<Value> = last.and_then(|row| serde_json::from_slice(row).ok());
        if row.is_some_and(|row| row["iter"] == json!(step)) {
            self.cut_to(bytes)?;
        } else {
            tracing::warn!(
                "`{}` is not the file that was written until step `{step}`: rows are added at its end",
                self.path.display()
            );
        }
        Ok(())
    }

    /// Removes what follows the first `bytes` bytes.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`].
    pub fn cut_to(&mut self, bytes: u64) -> Result<(), TrainError> {
        if self.num_bytes()? > bytes {
            self.file
                .set_len(bytes)
                .map_err(|source| TrainError::Io { path: self.path.clone(), source })?;
        }
        Ok(())
    }

    /// Appends the row of one optimizer step.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`], for example when the disk is full.
    pub fn append(&mut self, metrics: &IterationMetrics) -> Result<(), TrainError> {
        self.append_row(&metrics.row())
    }

    /// Appends the row of one evaluation, with the reference's key `loss/eval`.
    ///
    /// # Errors
    ///
    /// As [`MetricsFile::append`].
    pub fn append_eval(&mut self, metrics: &EvalMetrics) -> Result<(), TrainError> {
        let mut row = Map::new();
        row.insert("iter".to_owned(), json!(metrics.iter));
        row.insert("loss/eval".to_owned(), json!(metrics.loss));
        row.insert("num_valid_tokens/eval".to_owned(), json!(metrics.num_valid_tokens));
        if !metrics.sources.is_empty() {
            row.insert("sources/eval".to_owned(), sources::json(&metrics.sources));
        }
        for (name, mean) in &metrics.figures {
            row.insert(format!("{name}/eval"), json!(mean));
        }
        self.append_row(&Value::Object(row))
    }

    fn append_row(&mut self, row: &Value) -> Result<(), TrainError> {
        // One write call a row, so that rows of two runs in one file do not mix.
        self.file
            .write_all(format!("{row}\n").as_bytes())
            .map_err(|source| TrainError::Io { path: self.path.clone(), source })
    }
}
