//! The first lines of a run: what is trained, on what, by whom.

use sterna_data::PrepareReport;
use sterna_mesh::Axis;
use sterna_plan::Plan;
use sterna_train::{Bf16Products, Gpu, Processor};

use super::{GIB, base10};

/// Model, ranks, batch and steps, and what the reader of the recipe should know.
pub(super) fn run(plan: &Plan, num_steps: u64, processor: &Processor) -> Vec<String> {
    let Plan { model, mesh, batch, zero, .. } = plan;
    let sequences = batch.micro_batch_size * batch.micro_batches_per_step;
    let random = if model.has_random_weights { ", random weights" } else { "" };
    let mut lines = vec![
        format!(
            "model: {} ({}), {} parameters{}, {}{random}",
            model.name,
            model.family,
            base10(model.num_parameters as f64),
            model.of_them_trained(base10),
            model.dtype
        ),
        format!(
            "ranks: {} = DP {} x SP {}, ZeRO stage {}",
            mesh.world_size(),
            mesh.size(Axis::Dp),
            mesh.size(Axis::Sp),
            zero.stage.number()
        ),
        format!(
            "step:  {sequences} sequence{} of up to {} tokens (micro-batch {}, gradient accumulation {}, DP {})",
            plural(sequences),
            batch.max_length,
            batch.micro_batch_size,
            plan.steps.gradient_accumulation_steps,
            mesh.size(Axis::Dp)
        ),
        format!("steps: {num_steps}"),
    ];
    lines.insert(1, device(processor));
    lines.extend(plan.notes.iter().map(|note| format!("note:  {}: {}", note.key_path, note.text)));
    lines
}

/// What the printing rank computes on; those of other ranks are its like, or slower.
fn device(processor: &Processor) -> String {
    let Gpu { index, properties, driver_version } = match processor {
        Processor::Gpu(gpu) => gpu,
        Processor::Cpu { bf16_products } => {
            let products = match bf16_products {
                None => "",
                Some(Bf16Products::Native) => ", bf16 products by its bf16 instructions",
                Some(Bf16Products::Widened) => ", bf16 products in fp32, rounded once",
            };
            return format!("device: CPU{products}");
        }
    };
    let (major, minor) = properties.compute_capability;
    let (cuda_major, cuda_minor) = properties.driver_cuda;
    let driver = driver_version.as_ref().map_or_else(String::new, |version| format!(" {version}"));
    format!(
        "device: GPU {index}, {}, {:.2} GB, compute capability {major}.{minor}, driver{driver} for CUDA {cuda_major}.{cuda_minor}",
        properties.name,
        properties.total_memory as f64 / GIB
    )
}

/// What each source gave and what was dropped.
pub(super) fn data(report: &PrepareReport) -> Vec<String> {
    let sets = [("data: ", Some(&report.train)), ("eval: ", report.eval.as_ref())];
    let mut lines = Vec::new();
    for (name, set) in sets.into_iter().filter_map(|(name, set)| Some((name, set?))) {
        let packs = set.packs.map_or_else(String::new, |packs| {
            format!(
                " in {} pack{}, {:.1}% full",
                packs.packs,
                plural(packs.packs),
                100.0 * packs.fill
            )
        });
        lines.push(format!(
            "{name} {} samples, {} tokens{packs}",
            set.samples,
            base10(set.tokens as f64)
        ));
        for source in &set.sources {
            lines.push(format!("{name} {}: {}", source.name, source.format));
        }
        lines.extend(set.about_length().map(|line| format!("{name} {line}")));
        for source in set.sources.iter().filter(|source| source.stats.samples_without_label > 0) {
            lines.push(format!(
                "{name} {} samples of {} have no label",
                source.stats.samples_without_label, source.name
            ));
        }
    }
    lines
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use sterna_train::observe::gpus::Properties;

    use super::*;

    #[test]
    fn a_gpu_is_named_with_what_decides_how_it_is_used() {
        let mut gpu = Gpu {
            index: 0,
            properties: Properties {
                name: "NVIDIA H200".to_owned(),
                total_memory: 150_000_000_000,
                compute_capability: (9, 0),
                driver_cuda: (13, 0),
                uuid: "GPU-0".to_owned(),
            },
            driver_version: Some("580.95.05".to_owned()),
        };
        assert_snapshot!(device(&Processor::Gpu(gpu.clone())), @"device: GPU 0, NVIDIA H200, 139.70 GB, compute capability 9.0, driver 580.95.05 for CUDA 13.0");
        gpu.driver_version = None;
        assert_snapshot!(device(&Processor::Gpu(gpu)), @"device: GPU 0, NVIDIA H200, 139.70 GB, compute capability 9.0, driver for CUDA 13.0");
    }

    #[test]
    fn a_cpu_is_named_with_how_it_multiplies() {
        let on = |bf16_products| device(&Processor::Cpu { bf16_products });
        assert_snapshot!(on(None), @"device: CPU");
        assert_snapshot!(on(Some(Bf16Products::Native)), @"device: CPU, bf16 products by its bf16 instructions");
        assert_snapshot!(on(Some(Bf16Products::Widened)), @"device: CPU, bf16 products in fp32, rounded once");
    }
}
