//! Optimizer states of sharded units, wherever they live.

use std::{path::Path, time::Duration};

use sterna_arch::{ModelConfig, UnitLayout};
use sterna_comm::{Comm, RankEnv};
use sterna_recipe::ZeroStage;
use sterna_testkit::{TestRank, spawn_ranks, tiny_config};
use sterna_torch_sys::AdamW;
use sterna_train::{
    TrainError,
    load::WeightSource,
    zero::{Sharding, StatePlacement, Zero},
};
use tch::{Device, Kind, Tensor};

const ADAMW: AdamW = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, weight_decay: 0.1, eps: 1e-8 };
const STAGES: [ZeroStage; 4] = [ZeroStage::Zero, ZeroStage::One, ZeroStage::Two, ZeroStage::Three];

/// The states of a tiny model after three steps with gradients that differ on each rank.
fn stepped(comm: &Comm, stage: ZeroStage, kind: Kind, moments: Kind, disk: Option<&Path>) -> Zero {
    let _no_grad = tch::no_grad_guard();
    let config = tiny_config("llama").to_string();
    let config = ModelConfig::from_json(&config, Path::new("tiny")).expect("a config");
    let world = comm.world();
    // Without the head, and the embedding last, so that it is reduced in pieces after the layers.
    let mut units = config.arch.units().all().to_vec();
    units.pop();
    units.rotate_left(1);
    let placement = StatePlacement {
        param_kind: kind,
        grad_kind: Kind::Float,
        reduce_kind: Kind::Float,
        compute_device: Device::Cpu,
        param_device: Device::Cpu,
        grad_device: Device::Cpu,
        optimizer_device: Device::Cpu,
        optimizer_disk: disk.map(Into::into),
        moments_kind: moments,
        seed: 42,
    };
    let layouts = units.iter().map(|unit| UnitLayout::new(unit, world.size())).collect();
    let mut zero = Zero::new(world, layouts, Sharding::new(stage, world.size()), None, placement)
        .expect("states");
    zero.load(&WeightSource::Random { seed: 1 }).expect("weights");
    for step in 1..=3 {
        for unit_idx in 0..zero.num_units() {
            let mut gradients = zero.gradients(unit_idx).expect("gradients");
            for (i, view) in gradients.views.iter_mut().flatten().enumerate() {
                tch::manual_seed((100 * step + 10 * unit_idx + world.rank()) as i64);
                let _ = view.g_add_(&(Tensor::randn_like(view) * (i as f64 + 1.0)));
            }
            zero.reduce(world, gradients).expect("reduced");
        }
        zero.finish_gradients(world).expect("reduced");
        zero.step(world, &ADAMW, step as u64, 0.7).expect("a step");
    }
    zero
}

/// All weights after [`stepped`], as the model's dtype widened to fp32.
fn weights(
    comm: &Comm,
    stage: ZeroStage,
    kind: Kind,
    moments: Kind,
    disk: Option<&Path>,
) -> Tensor {
    let (mut zero, world) = (stepped(comm, stage, kind, moments, disk), comm.world());
    let units = (0..zero.num_units()).map(|unit_idx| {
        let params = zero.gather(world, unit_idx).expect("gathered");
        Tensor::cat(&params.iter().map(|x| x.flatten(0, -1)).collect::<Vec<_>>(), 0)
    });
    Tensor::cat(&units.collect::<Vec<_>>(), 0).to_kind(Kind::Float)
}

fn comm(env: &RankEnv) -> Comm {
    Comm::init(env, 1, Duration::from_secs(30)).expect("all ranks join")
}

#[test]
fn ranks_with_states_on_disk_are_those_with_states_in_memory_bit_for_bit() {
    spawn_ranks(2, |rank: &TestRank| {
        let comm = comm(&RankEnv::from_env().expect("the environment of a rank"));
        for stage in STAGES {
            for (kind, moments) in [
                (Kind::Float, Kind::Float),
                (Kind::BFloat16, Kind::Float),
                (Kind::BFloat16, Kind::BFloat16),
            ] {
                let in_memory = weights(&comm, stage, kind, moments, None);
                let on_disk = weights(&comm, stage, kind, moments, Some(&rank.folder));
                assert_eq!(in_memory, on_disk, "{stage:?} {kind:?} {moments:?}");
                assert_eq!(std::fs::read_dir(&rank.folder).expect("a folder").count(), 0);
            }
        }
    });
}

#[test]
#[expect(clippy::result_large_err, reason = "closures return the crate's own error")]
fn a_snapshot_of_ranks_has_the_bytes_that_are_written_at_once() {
    spawn_ranks(2, |rank: &TestRank| {
        let comm = comm(&RankEnv::from_env().expect("the environment of a rank"));
        for stage in STAGES {
            for (kind, moments, disk) in [
                (Kind::Float, Kind::Float, None),
                (Kind::BFloat16, Kind::BFloat16, None),
                (Kind::BFloat16, Kind::BFloat16, Some(rank.folder.as_path())),
            ] {
                let zero = stepped(&comm, stage, kind, moments, disk);
                let (mut copied, mut direct) = (Vec::new(), Vec::new());
                let snapshot = zero.snapshot().expect("copied");
                snapshot
                    .write(|bytes| {
                        copied.extend_from_slice(bytes);
                        Ok::<(), TrainError>(())
                    })
                    .expect("written");
                zero.write_states(|bytes| {
                    direct.extend_from_slice(bytes);
                    Ok(())
                })
                .expect("written");
                assert!(copied == direct, "{stage:?} {kind:?} {moments:?}");
                assert_eq!(direct.len() as u64, zero.snapshot_bytes());
                assert!(direct.iter().any(|byte| *byte != 0));
            }
        }
    });
}
