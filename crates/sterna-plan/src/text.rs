//! Plans as text for a terminal.

use std::fmt;

use sterna_arch::HeadSplit;
use sterna_mesh::Axis;
use sterna_recipe::{KeepAttention, Place};

use crate::{AttentionPlan, DeviceType, Plan, check::grouped};

/// Columns that notes are wrapped at.
const WIDTH: usize = 100;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, text) in [
            ("model", self.model_line()),
            ("ranks", self.mesh_line()),
            ("heads", self.heads_line()),
            ("zero", self.zero_line()),
            ("batch", self.batch_line()),
            ("tiles", self.tiles_line()),
            ("attn", self.attention_line()),
            ("kept", self.keep_line()),
            ("steps", self.steps_line()),
        ] {
            writeln!(f, "{name:<7}{text}")?;
        }
        writeln!(f)?;
        self.units(f)?;
        writeln!(f)?;
        self.memory_table(f)?;
        if !self.notes.is_empty() {
            writeln!(f, "\nnotes")?;
        }
        for note in &self.notes {
            writeln!(f, "  {}", note.key_path)?;
            for line in wrap(&note.text, WIDTH - 4) {
                writeln!(f, "    {line}")?;
            }
        }
        Ok(())
    }
}

impl Plan {
    fn model_line(&self) -> String {
        let model = &self.model;
        let weights = if model.has_random_weights { ", random weights" } else { "" };
        format!(
            "{}: {}, {} parameters{} in {} blocks, {}{weights}",
            model.name,
            model.family,
            count(model.num_parameters as f64),
            model.of_them_trained(count),
            model.num_hidden_layers,
            model.dtype,
        )
    }

    fn mesh_line(&self) -> String {
        let mesh = self.mesh;
        let device = match (self.device, mesh.world_size()) {
            (DeviceType::Cpu, _) => "on the CPU",
            (DeviceType::Cuda, 1) => "on a GPU",
            (DeviceType::Cuda, _) => "each on a GPU",
        };
        format!(
            "{} = {} data-parallel x {} sequence-parallel, {device}",
            mesh.world_size(),
            mesh.size(Axis::Dp),
            mesh.size(Axis::Sp)
        )
    }

    fn heads_line(&self) -> String {
        let model = &self.model;
        let all = format!(
            "{} query, {} kv, {} wide",
            model.num_attention_heads, model.num_key_value_heads, model.head_dim
        );
        if self.heads.len() == 1 {
            return all;
        }
        let size = |split: &HeadSplit| (split.q.len(), split.kv.len());
        let first = size(&self.heads[0]);
        let last = self.heads.iter().map(size).next_back().unwrap_or(first);
        if self.heads.iter().all(|split| size(split) == first) {
            format!("{all}; each rank has {} query and {} kv", first.0, first.1)
        } else {
            format!(
                "{all}; ranks have {} to {} query and up to {} kv",
                last.0,
                first.0,
                self.most_kv()
            )
        }
    }

    fn most_kv(&self) -> usize {
        self.heads.iter().map(|split| split.kv.len()).max().unwrap_or(0)
    }

    fn zero_line(&self) -> String {
        let zero = &self.zero;
        let sharded: Vec<_> = [
            ("weights", zero.shards_params),
            ("gradients", zero.shards_gradients),
            ("optimizer state", zero.shards_optimizer),
        ]
        .into_iter()
        .filter_map(|(name, is_sharded)| is_sharded.then_some(name))
        .collect();
        let sharded = if sharded.is_empty() {
            "nothing is sharded".to_owned()
        } else {
            format!("{} sharded over {} ranks", sharded.join(", "), self.mesh.world_size())
        };
        format!(
            "stage {}: {sharded}; gradients add up in {} and travel in {}",
            zero.stage.number(),
            zero.grad_accum_dtype,
            zero.reduce_dtype
        )
    }

    fn batch_line(&self) -> String {
        let batch = self.batch;
        let padded = if batch.padded_length == batch.max_length {
            String::new()
        } else {
            format!(" padded to {}", grouped(batch.padded_length))
        };
        format!(
            "{} of up to {} tokens{padded}, {} on each rank; {} a step, up to {} tokens",
            plural(batch.micro_batch_size, "row"),
            grouped(batch.max_length),
            grouped(batch.local_tokens),
            plural(batch.micro_batches_per_step, "micro-batch"),
            grouped(batch.max_tokens_per_step),
        )
    }

    fn tiles_line(&self) -> String {
        let local = self.batch.local_tokens;
        let tile = |name: &str, len: usize| {
            if len >= local {
                format!("{name} whole")
            } else {
                format!("{name} {} tokens", grouped(len))
            }
        };
        [
            tile("projections", self.tiles.qkv),
            tile("MLP", self.tiles.mlp),
            tile("loss", self.tiles.head),
        ]
        .join(", ")
    }

    fn keep_line(&self) -> String {
        let keep = self.keep;
        let place = |place: Place| match place {
            Place::Device => "",
            Place::Host => " on the host",
            Place::Disk => " on disk",
        };
        if keep.graph {
            return "every intermediate value of a block; nothing is computed again".to_owned();
        }
        let inputs = match keep.inputs_every {
            1 => "the input of each block".to_owned(),
            every => format!("the input of every {every}th block"),
        };
        let attention = match keep.attention {
            KeepAttention::Auto => "the output of attention where there is room".to_owned(),
            KeepAttention::All => "the output of attention".to_owned(),
            KeepAttention::Blocks(0) => {
                return format!("{inputs}{}; attention is computed again", place(keep.inputs_on));
            }
            KeepAttention::Blocks(number) => {
                format!("the output of attention of {}", plural(number, "block"))
            }
        };
        format!("{inputs}{}, {attention}{}", place(keep.inputs_on), place(keep.attention_on))
    }

    fn attention_line(&self) -> String {
        let AttentionPlan { head_groups, query_tile, .. } = self.attention;
        let mut parts = Vec::new();
        if head_groups > 1 {
            parts.push(format!("in {head_groups} groups of heads, one after the other"));
        }
        if query_tile > 0 {
            parts.push(format!("{} queries and keys at once", grouped(query_tile)));
        }
        if parts.is_empty() { "all heads and tokens at once".to_owned() } else { parts.join(", ") }
    }

    fn steps_line(&self) -> String {
        let steps = self.steps;
        let mut parts = vec![match steps.train_iters {
            0 => plural(steps.epochs, "epoch"),
            n => plural(n, "optimizer step"),
        }];
        if steps.min_iterations > 0 {
            parts.push(format!(
                "of data repeated to at least {}",
                plural(steps.min_iterations, "optimizer step")
            ));
        }
        if steps.exit_iteration > 0 {
            parts.push(format!("stopped after {}", plural(steps.exit_iteration, "optimizer step")));
        }
        parts.join(", ")
    }

    fn units(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<22}{:>6}{:>16}{:>18}", "units", "count", "parameters", "shard elements")?;
        for unit in &self.zero.units {
            let (parameters, shard) = (grouped(unit.num_parameters), grouped(unit.shard_len));
            writeln!(f, "  {:<20}{:>6}{parameters:>16}{shard:>18}", unit.name, unit.count)?;
        }
        Ok(())
    }

    fn memory_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = &self.memory;
        let has_disk = memory.disk_bytes() > 0;
        let mut line = |name: &str, device: &str, host: &str, disk: &str| {
            write!(f, "{name:<28}{device:>16}{host:>18}")?;
            if has_disk { writeln!(f, "{disk:>18}") } else { writeln!(f) }
        };
        line("memory of a rank", "device", "host", "disk")?;
        for row in &memory.rows {
            let name = format!("  {}", row.kind.name());
            line(&name, &bytes(row.device_bytes), &bytes(row.host_bytes), &bytes(row.disk_bytes))?;
        }
        let (device, host, disk) =
            (memory.device_bytes(), memory.host_bytes(), memory.disk_bytes());
        line("  in all", &bytes(device), &bytes(host), &bytes(disk))?;
        let kept = memory.kept_attention_bytes * self.model.num_hidden_layers as u64;
        if kept == 0 {
            return Ok(());
        }
        let on = |place| bytes(if self.keep.attention_on == place { kept } else { 0 });
        let (device, host, disk) = (on(Place::Device), on(Place::Host), on(Place::Disk));
        line("  + attention outputs", &device, &host, &disk)
    }
}

/// `1 step`, `2 steps`, `3 micro-batches`.
fn plural(number: usize, noun: &str) -> String {
    let ending = match number {
        1 => "",
        _ if noun.ends_with("ch") => "es",
        _ => "s",
    };
    format!("{} {noun}{ending}", grouped(number))
}

/// `8030261248` as `8.03 B`.
fn count(number: f64) -> String {
    let (scale, unit) = match number {
        n if n >= 1e9 => (1e9, " B"),
        n if n >= 1e6 => (1e6, " M"),
        n if n >= 1e3 => (1e3, " K"),
        _ => return format!("{number}"),
    };
    format!("{:.2}{unit}", number / scale)
}

/// Bytes in binary units; nothing is a dash.
fn bytes(bytes: u64) -> String {
    let (scale, unit) = match bytes {
        0 => return "-".to_owned(),
        b if b >= 1 << 40 => (1u64 << 40, "TiB"),
        b if b >= 1 << 30 => (1 << 30, "GiB"),
        b if b >= 1 << 20 => (1 << 20, "MiB"),
        _ => (1 << 10, "KiB"),
    };
    format!("{:.2} {unit}", bytes as f64 / scale as f64)
}

/// Lines of at most `width` characters, broken at blanks.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
