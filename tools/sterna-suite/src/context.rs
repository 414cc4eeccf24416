//! What all sections are given.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use sterna_torch_sys::cuda;
use tch::Device;

/// Where everything is, and how large it is to be.
#[derive(Debug, Clone)]
pub struct Context {
    /// The folder of the report.
    pub out: PathBuf,
    /// The file that the report is packed into after each section.
    pub archive: PathBuf,
    /// The folder with models' shapes and the tokenizer.
    pub inputs: PathBuf,
    /// The program that is measured.
    pub sterna: PathBuf,
    /// The folder with the Python scripts.
    pub baselines: PathBuf,
    /// The folder with contracts.py.
    pub contracts: PathBuf,
    /// A python3 that has torch.
    pub python: PathBuf,
    /// What the sections compute on.
    pub device: Device,
    /// What the host gives, bytes, where `/proc/meminfo` does not say it: the memory of some virtual machines grows as it is used.
    pub host_bytes: Option<u64>,
    /// Everything small: shows that the suite works, and nothing of the machine.
    pub is_tiny: bool,
    /// When the command has to end.
    pub deadline: Instant,
}

impl Context {
    /// What is left until the deadline.
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The same with a nearer deadline, if `limit` is nearer.
    #[must_use]
    pub fn within(&self, limit: Duration) -> Self {
        Self { deadline: self.deadline.min(Instant::now() + limit), ..self.clone() }
    }

    /// As `sterna train --device` and the Python scripts take it.
    pub fn device_name(&self) -> &'static str {
        if self.device.is_cuda() { "cuda" } else { "cpu" }
    }

    /// Waits until the device has done what it was given.
    pub fn synchronize(&self) {
        if let Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(index as i64);
        }
    }
}

/// The device that the suite runs on: the GPU, or, for a tiny run on a machine without, the CPU.
///
/// # Errors
///
/// No GPU, and `is_tiny` is false: a figure of a CPU would answer no question that the suite asks.
pub fn choose_device(is_tiny: bool) -> Result<Device> {
    match cuda::load() {
        Ok(_) => Ok(Device::Cuda(0)),
        Err(_) if is_tiny => Ok(Device::Cpu),
        Err(error) => bail!(
            "{error}\n  hint: {}\n  hint: `--tiny` runs every section small on the CPU, to see that the suite works",
            error.hint()
        ),
    }
}
