//! Memory settings of the 8B shape: the fastest that the plan of `sterna check` says fit the card and the host.

use serde_json::{Value, json};

use crate::context::Context;
use crate::machine;
use crate::recipe::{Predicted, Training};

/// Settings of `memory` in the recipe, with a name for the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Masters and moments.
    optimizer_on: &'static str,
    gradients_on: &'static str,
    /// Kept inputs of blocks.
    inputs_on: &'static str,
    inputs_every: u64,
    head_groups: u64,
    attention: KeptAttention,
}

/// Of how many blocks the attention output is kept, always on the host: the card has what cannot be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeptAttention {
    /// As many as fit; the program decides where the suite has nothing to decide by.
    Auto,
    Blocks(u64),
}

impl Profile {
    /// Everything of the optimizer on the card, and what is kept on the host.
    const fn on_device(inputs_every: u64, head_groups: u64) -> Self {
        Self {
            optimizer_on: "device",
            gradients_on: "device",
            inputs_on: "host",
            inputs_every,
            head_groups,
            attention: KeptAttention::Auto,
        }
    }

    /// The optimizer on the host, and kept inputs on the card: the host has room for attention outputs beside it.
    const fn on_host(gradients_on: &'static str, inputs_every: u64) -> Self {
        Self {
            optimizer_on: "host",
            gradients_on,
            inputs_on: "device",
            inputs_every,
            head_groups: 8,
            attention: KeptAttention::Auto,
        }
    }
}

/// The fastest first. Of 8B, fp32 masters and bf16 moments are 60 GiB and fp32 gradients 30: they fit the card or the host, and what is
/// kept for the backward the other.
const PROFILES: [Profile; 7] = [
    Profile::on_device(1, 1),
    Profile::on_device(1, 4),
    Profile::on_device(2, 8),
    Profile::on_host("device", 2),
    Profile::on_host("device", 4),
    Profile::on_host("host", 2),
    // Of longer segments, the inputs that are restored would take what is saved.
    Profile::on_host("host", 4),
];

/// What a token costs least of the card with: for the slope. What waits on the host costs the card what comes of it beside what is read,
/// so attention is computed again.
pub const FLAT: Profile =
    Profile { attention: KeptAttention::Blocks(0), ..Profile::on_device(1, 8) };

/// Bytes of the card that the plan does not count: the CUDA context, cuDNN's and cuBLAS's workspaces, the sum of query gradients in
/// single precision and the key gradients of each query head (4 GiB at most, `attention/choice.rs`), holes.
const DEVICE_RESERVE: u64 = 8 << 30;

/// The same of sequences so long that the queries of a call are cut, and copied for it.
const DEVICE_RESERVE_LONG: u64 = 12 << 30;

/// Up to so many tokens one call has all heads.
const LONGEST_UNCUT: usize = 131_072;

/// The same of the host: libraries, pinned buffers on their way, and whatever else runs.
const HOST_RESERVE: u64 = 12 << 30;

impl Profile {
    /// The fastest that fits `training`; the last if none does, which the run will then tell.
    pub fn choose(context: &Context, training: &Training) -> Self {
        Self::first_fitting(context, training).unwrap_or(PROFILES[PROFILES.len() - 1])
    }

    /// The fastest that fits `training`, with as many attention outputs as fit beside the rest.
    pub fn first_fitting(context: &Context, training: &Training) -> Option<Self> {
        let Some(room) = Room::of(context) else { return Some(PROFILES[0]) };
        let reserve =
            if training.max_length > LONGEST_UNCUT { DEVICE_RESERVE_LONG } else { DEVICE_RESERVE };
        PROFILES.into_iter().find_map(|profile| {
            let mut training = training.clone();
            training.settings.extend(profile.settings());
            let kept = room.blocks_beside(training.predicted(context)?, reserve)?;
            Some(Self { attention: KeptAttention::Blocks(kept), ..profile })
        })
    }

    /// Dotted keys of the recipe and their values.
    pub fn settings(self) -> Vec<(String, Value)> {
        vec![
            ("memory.optimizer_on".to_owned(), json!(self.optimizer_on)),
            ("memory.gradients_on".to_owned(), json!(self.gradients_on)),
            ("memory.moments_dtype".to_owned(), json!("bf16")),
            ("memory.inputs_on".to_owned(), json!(self.inputs_on)),
            ("memory.attention_on".to_owned(), json!("host")),
            ("memory.keep_inputs_every".to_owned(), json!(self.inputs_every)),
            ("memory.attention_head_groups".to_owned(), json!(self.head_groups)),
            (
                "memory.keep_attention".to_owned(),
                match self.attention {
                    KeptAttention::Auto => json!("auto"),
                    KeptAttention::Blocks(0) => json!(false),
                    KeptAttention::Blocks(number) => json!(number),
                },
            ),
        ]
    }

    /// Whether every block of `layers` keeps its attention output, as far as the suite has decided it.
    pub fn keeps_all_attention(self, layers: usize) -> bool {
        matches!(self.attention, KeptAttention::Blocks(number) if number >= layers as u64)
    }

    /// The same in words.
    pub fn name(self) -> String {
        let Self { optimizer_on, gradients_on, inputs_on, inputs_every, head_groups, attention } =
            self;
        let inputs = match inputs_every {
            1 => "all inputs".to_owned(),
            every => format!("every input no. {every}"),
        };
        let groups = if head_groups == 1 {
            String::new()
        } else {
            format!(", {head_groups} groups of heads")
        };
        let attention = match attention {
            KeptAttention::Auto => String::new(),
            KeptAttention::Blocks(0) => ", attention again".to_owned(),
            KeptAttention::Blocks(number) => {
                format!(", attention of {number} blocks on the host")
            }
        };
        format!(
            "optimizer on the {optimizer_on}, gradients on the {gradients_on}, {inputs} on the {inputs_on}{groups}{attention}"
        )
    }
}

/// Memory of the card and the host.
#[derive(Debug, Clone, Copy)]
struct Room {
    device: u64,
    host: u64,
}

impl Room {
    /// `None` on a CPU, where the two are one and the sizes tiny.
    fn of(context: &Context) -> Option<Self> {
        let tch::Device::Cuda(index) = context.device else { return None };
        // Asking the card makes a context on it, of which the process that only reports needs none.
        let device = match machine::card(context) {
            Some(card) => card.free_bytes,
            None => sterna_torch_sys::cuda::memory(index).ok()?.free,
        };
        let host = context.host_bytes.or_else(sterna_bench::machine::memory_bytes)?;
        Some(Self { device, host })
    }

    /// How many blocks' attention outputs fit the host beside what is needed; `None` if that does not fit itself.
    fn blocks_beside(self, needed: Predicted, device_reserve: u64) -> Option<u64> {
        let host = self.host.checked_sub(needed.host + HOST_RESERVE)?;
        self.device.checked_sub(needed.device + device_reserve)?;
        Some(host.checked_div(needed.kept_attention).unwrap_or(0).min(needed.layers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `sterna check` said of the 8B shape on 2026-11-21, GiB: the two ways lie at 128K and at 1M.
    #[test]
    fn an_h200_and_a_host_of_128_gib_have_room_for_one_of_the_two_ways() {
        let gib = |gib: f64| (gib * f64::from(1 << 30)) as u64;
        let room = Room { device: gib(139.0), host: gib(126.0) };
        let blocks = |device: f64, host: f64| {
            let (device, host) = (gib(device), gib(host));
            let needed = Predicted { device, host, kept_attention: gib(1.0), layers: 32 };
            room.blocks_beside(needed, DEVICE_RESERVE)
        };
        // 126 of the host, 12 of them in reserve.
        assert_eq!(blocks(113.91, 32.0), Some(32));
        assert_eq!(blocks(135.0, 32.0), None);
        assert_eq!(blocks(48.0, 89.75 + 32.0), None);
        assert_eq!(blocks(113.0, 89.75), Some(24));
    }
}
