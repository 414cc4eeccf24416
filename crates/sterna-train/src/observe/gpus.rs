//! The GPUs of this machine as NVML sees them, NVIDIA's library of `nvidia-smi`: without starting CUDA, and with what other
//! processes use of them. It comes with the driver; where it is missing, nothing here has a figure.

use nvml_wrapper::{Device, Nvml, enums::device::UsedGpuMemory};
use sterna_torch_sys::cuda;
pub use sterna_torch_sys::cuda::Properties;
pub use sterna_torch_sys::products::Bf16Products;

/// How many GPUs a process of this machine sees that has `visible_devices` in `CUDA_VISIBLE_DEVICES`; `None` without NVML.
///
/// CUDA is not started, which would take memory on each of them and forbid to start processes by a plain fork.
pub fn num_visible(visible_devices: Option<&str>) -> Option<usize> {
    let nvml = Nvml::init().ok()?;
    let uuid = |index| nvml.device_by_index(index).ok()?.uuid().ok();
    let uuids: Option<Vec<String>> = (0..nvml.device_count().ok()?).map(uuid).collect();
    Some(visible(visible_devices, &uuids?))
}

/// How many of the GPUs with these names CUDA shows.
///
/// Source: CUDA C++ Programming Guide, "CUDA Environment Variables": numbers, or beginnings of UUIDs, with commas between; what
/// follows a name that is none does not count. Of instances of a GPU (`MIG-...`) a process sees one.
fn visible(list: Option<&str>, uuids: &[String]) -> usize {
    let Some(list) = list else { return uuids.len() };
    let mut names = list.split(',').map(str::trim);
    let is_there = |name: &&str| match name.parse::<usize>() {
        Ok(index) => index < uuids.len(),
        Err(_) => {
            !name.is_empty() && uuids.iter().filter(|uuid| uuid.starts_with(name)).count() == 1
        }
    };
    if names.clone().next().is_some_and(|name| name.starts_with("MIG-")) {
        return 1;
    }
    let seen: Vec<&str> = names.by_ref().take_while(is_there).collect();
    // Named twice, a device is a mistake for which CUDA shows none.
    let has_twice = (1..seen.len()).any(|index| seen[..index].contains(&seen[index]));
    if has_twice { 0 } else { seen.len() }
}

/// The GPU that a rank computes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its number among those that this process sees.
    pub index: usize,
    /// What it is.
    pub properties: Properties,
    /// The version of the driver; `None` without NVML.
    pub driver_version: Option<String>,
}

/// What a rank computes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Processor {
    /// A GPU.
    Gpu(Gpu),
    /// The CPU.
    Cpu {
        /// How products of a bf16 model are computed; `None` for a model in another dtype.
        bf16_products: Option<Bf16Products>,
    },
}

/// Memory of a GPU as its driver counts it, for all processes together, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoardMemory {
    /// What processes have.
    pub used: u64,
    /// All of it, with what the driver keeps for itself.
    pub total: u64,
}

/// Reads figures of one GPU while a run goes on.
#[derive(Debug)]
pub(crate) struct Monitor {
    nvml: Nvml,
    uuid: String,
}

/// A process that computes on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuProcess {
    /// Its number, outside of containers.
    pub pid: u32,
    /// Whether it is this one. In a container none is, as numbers are others there.
    pub is_own: bool,
    /// Bytes of the GPU's memory that it has, where the driver tells.
    pub used: Option<u64>,
}

impl Monitor {
    /// Of GPU `device_index` of this process; `None` without NVML, or where NVML does not know the device.
    pub(crate) fn new(device_index: usize) -> Option<Self> {
        let uuid = cuda::properties(device_index).ok()?.uuid;
        let nvml = Nvml::init().ok()?;
        nvml.device_by_uuid(uuid.as_str()).ok()?;
        Some(Self { nvml, uuid })
    }

    /// Its memory now.
    pub(crate) fn memory(&self) -> Option<BoardMemory> {
        let memory = self.device()?.memory_info().ok()?;
        Some(BoardMemory { used: memory.used, total: memory.total })
    }

    /// The processes that compute on it.
    pub(crate) fn processes(&self) -> Vec<GpuProcess> {
        let all = self.device().and_then(|device| device.running_compute_processes().ok());
        all.into_iter()
            .flatten()
            .map(|process| GpuProcess {
                pid: process.pid,
                is_own: process.pid == std::process::id(),
                used: match process.used_gpu_memory {
                    UsedGpuMemory::Used(bytes) => Some(bytes),
                    UsedGpuMemory::Unavailable => None,
                },
            })
            .collect()
    }

    /// The version of the driver.
    pub(crate) fn driver_version(&self) -> Option<String> {
        self.nvml.sys_driver_version().ok()
    }

    fn device(&self) -> Option<Device<'_>> {
        self.nvml.device_by_uuid(self.uuid.as_str()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_visible_is_counted_as_cuda_does() {
        let uuids = ["GPU-aa00", "GPU-ab11", "GPU-cc22", "GPU-dd33"].map(str::to_owned);
        for (list, count) in [
            (None, 4),
            (Some("0,1,2,3"), 4),
            (Some("2"), 1),
            (Some(" 1 , 3 "), 2),
            (Some(""), 0),
            (Some("-1"), 0),
            (Some("NoDevFiles"), 0),
            (Some("0,-1,1"), 1),
            (Some("0,4,1"), 1),
            (Some("GPU-ab11,GPU-dd33"), 2),
            // A beginning serves if it is one device's only.
            (Some("GPU-c,GPU-d"), 2),
            (Some("GPU-a"), 0),
            (Some("0,0"), 0),
            (Some("MIG-8d2a,MIG-9e1b"), 1),
        ] {
            assert_eq!(visible(list, &uuids), count, "{list:?}");
        }
        assert_eq!(visible(None, &[]), 0);
    }
}
