//! Memory that ran out: what was asked for, where, what was held, and what would help.

mod remedies;

use std::fmt;

use sterna_arch::ModelConfig;
use sterna_recipe::Recipe;
use sterna_torch_sys::{
    Error as TorchError, cuda,
    memory::{self, MemoryKind, Refusal},
};
use tch::Device;

use self::remedies::{Remedy, remedies};
use crate::{
    error::TrainError,
    observe::{
        gpus::{BoardMemory, GpuProcess, Monitor},
        memory::HostMemory,
    },
    trainer::device_type,
};

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * KIB;
const GIB: f64 = 1024.0 * MIB;

/// An allocation that there was no room for, on a GPU or on the host.
#[derive(Debug)]
pub struct OutOfMemory {
    /// What the allocator said of it; `None` if another allocator than those of tensors ran out.
    refusal: Option<Refusal>,
    /// libtorch's own words.
    reason: String,
    /// libtorch's operation that asked.
    op: Option<String>,
    room: Room,
    remedies: Vec<Remedy>,
}

/// Where it ran out, and who has it.
#[derive(Debug)]
enum Room {
    Gpu { index: usize, total: Option<u64>, board: Option<BoardMemory>, processes: Vec<GpuProcess> },
    Host(HostMemory),
}

/// `error` with all that is known of it, if it says that memory ran out; else itself.
pub(crate) fn explained(
    error: TrainError,
    recipe: &Recipe,
    model: &ModelConfig,
    world_size: usize,
    device: Device,
) -> TrainError {
    let (reason, op) = match error {
        TrainError::Panicked { message, op } if is_out_of_memory(&message) => (message, op),
        TrainError::Torch(TorchError::OutOfMemory { message }) => (message, None),
        other => return other,
    };
    let refusal = memory::take_refusal();
    let room = match refusal.as_ref().and_then(|refusal| refusal.device) {
        Some(index) => {
            let monitor = Monitor::new(index);
            Room::Gpu {
                index,
                total: cuda::memory(index).ok().map(|memory| memory.total),
                board: monitor.as_ref().and_then(Monitor::memory),
                processes: monitor.map(|monitor| monitor.processes()).unwrap_or_default(),
            }
        }
        None => Room::Host(HostMemory::now()),
    };
    // Where a rank computes on the CPU, what the plan puts on the device is the host's as well.
    let counts = match room {
        Room::Gpu { .. } => (true, false),
        Room::Host(_) => (!device.is_cuda(), true),
    };
    let remedies =
        remedies(recipe, model, world_size, device_type(device), counts, refusal.as_ref());
    TrainError::OutOfMemory(Box::new(OutOfMemory { refusal, reason, op, room, remedies }))
}

/// Whether a libtorch message says that memory ran out.
fn is_out_of_memory(message: &str) -> bool {
    ["out of memory", "can't allocate memory", "bad_alloc"]
        .iter()
        .any(|text| message.contains(text))
}

impl OutOfMemory {
    /// What to change, most saving first.
    pub(crate) fn hint(&self) -> String {
        if self.remedies.is_empty() {
            return "use more ranks, or lower `data.max_length`; `sterna check` shows what each takes".to_owned();
        }
        let width = self.remedies.iter().map(|remedy| remedy.change.len()).max().unwrap_or(0);
        let lines = self
            .remedies
            .iter()
            .map(|Remedy { change, freed }| format!("\n  {change:width$}  {}", size(*freed)));
        format!(
            "one of these; what each would free on a rank, by the plan for the longest sequence:{}",
            lines.collect::<String>()
        )
    }
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.room {
            Room::Gpu { index, .. } => write!(f, "GPU `{index}` is out of memory: ")?,
            Room::Host(_) => f.write_str("the host is out of memory: ")?,
        }
        let Some(refusal) = &self.refusal else { return f.write_str(&self.reason) };
        write!(f, "`{}` were asked for, for {}", size(refusal.asked), refusal.kind.name())?;
        if let Some(op) = &self.op {
            write!(f, ", by `{op}`")?;
        }
        if !refusal.place.is_empty() {
            write!(f, ", in {}", refusal.place)?;
        }
        let mut held: Vec<(MemoryKind, u64)> =
            refusal.live.iter().filter(|(_, bytes)| *bytes > 0).collect();
        held.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let held: Vec<String> =
            held.iter().map(|(kind, bytes)| format!("{} {}", kind.name(), size(*bytes))).collect();
        write!(f, "\n  tensors hold {}: {}", size(refusal.live.total()), held.join(", "))?;
        write!(f, "\n  free blocks of the allocator: {}", size(refusal.cached))?;
        match &self.room {
            Room::Gpu { total, board, processes, .. } => {
                if let Some(total) = total {
                    write!(f, "; the device has {}", size(*total))?;
                }
                if let Some(BoardMemory { used, total }) = board {
                    write!(f, "\n  all processes together: {} of {}", size(*used), size(*total))?;
                }
                write_processes(f, processes)
            }
            Room::Host(memory) => write!(
                f,
                "; this process has {}, the machine {} in use of {}",
                size(memory.process),
                size(memory.node),
                size(memory.node_total)
            ),
        }
    }
}

/// Those who use the device, as the driver numbers them.
fn write_processes(f: &mut fmt::Formatter<'_>, processes: &[GpuProcess]) -> fmt::Result {
    let is_known = processes.iter().any(|process| process.is_own);
    for GpuProcess { pid, is_own, used } in processes {
        let who = if *is_own { "this one" } else { "another" };
        let who = if is_known {
            who
        } else {
            "this one or another, by its number outside of the container"
        };
        let used = used.map_or_else(|| "not told".to_owned(), size);
        write!(f, "\n  process {pid} ({who}): {used}")?;
    }
    Ok(())
}

/// `2.50 GiB`, below one `12.3 MiB`, below that `4.0 KiB`.
fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        ..MIB => format!("{:.1} KiB", bytes / KIB),
        ..GIB => format!("{:.1} MiB", bytes / MIB),
        _ => format!("{:.2} GiB", bytes / GIB),
    }
}
