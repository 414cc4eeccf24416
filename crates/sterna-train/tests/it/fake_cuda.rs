//! Whole runs on a device that is not the host (`sterna-fake-cuda`): nothing of the host mixed in, the CPU's numbers but for the
//! order of sums, which attention and our kernels have of their own, and the same bits wherever tensors wait.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};
use sterna_comm::RankEnv;
use sterna_hf::WeightFiles;
use sterna_testkit::{TestRank, spawn_ranks};
use sterna_train::{DeviceChoice, TrainOptions, train};

use crate::conformance::Recorder;
use crate::equivalence::{assert_same, set};
use crate::tiny;

/// Few: our kernels run on threads of the host, one for each of the device.
const NUM_STEPS: u64 = 1;

/// What a run computes: loss and gradient norm of each step, each evaluation's loss, and the weights after the last step.
#[derive(Debug, PartialEq)]
struct Outcome {
    figures: Vec<f64>,
    weights: BTreeMap<String, Vec<u8>>,
}

/// A run with `changes` to the tiny recipe on `device`.
fn run(folder: &Path, device: DeviceChoice, changes: &[(&str, Value)]) -> Outcome {
    let mut recipe = tiny::recipe(folder);
    set(&mut recipe, "train_iters", json!(NUM_STEPS));
    let out = folder.join("out");
    // What the run before this one has left.
    if out.exists() {
        fs::remove_dir_all(&out).expect("removed");
    }
    recipe["checkpoint"] =
        json!([{"type": "huggingface", "output_dir": out, "save_every_n_steps": NUM_STEPS}]);
    for (path, value) in changes {
        set(&mut recipe, path, value.clone());
    }
    let recipe = tiny::load(folder, "recipe", &recipe);
    let mut recorder = Recorder::default();
    let options = TrainOptions { device, ..TrainOptions::default() };
    train(&recipe, &RankEnv::single(), &options, &mut recorder)
        .unwrap_or_else(|error| panic!("{device:?} {changes:?}: {error}"));
    let of_steps = recorder.iterations.iter().flat_map(|metrics| [metrics.loss, metrics.grad_norm]);
    let figures = of_steps.chain(recorder.evals.iter().map(|metrics| metrics.loss)).collect();
    let files = WeightFiles::open(&recorder.exports[0]).expect("an export");
    let bytes = |name: &str| files.tensor(name).expect("named by the files").bytes.to_vec();
    let weights = files.names().map(|name| (name.to_owned(), bytes(name))).collect();
    Outcome { figures, weights }
}

/// A process of its own: libtorch looks for CUDA once, and other tests have let it look before.
fn alone(test: impl FnOnce(&Path)) {
    spawn_ranks(1, |rank: &TestRank| {
        sterna_fake_cuda::install();
        test(&rank.folder);
    });
}

#[test]
fn ranks_on_a_device_compute_what_they_compute_on_the_host() {
    alone(|folder| {
        let on_host = run(folder, DeviceChoice::Cpu, &[]);
        let on_device = run(folder, DeviceChoice::Cuda, &[]);
        assert_same("default", &on_device.figures, &on_host.figures);
        // Where things wait, and what is computed again: the same bits.
        let memory = json!({"keep_inputs_every": 2, "keep_attention": 1, "inputs_on": "host", "attention_on": "host"});
        assert_eq!(run(folder, DeviceChoice::Cuda, &[("memory", memory)]), on_device);
    });
}

#[test]
fn ranks_with_states_on_the_host_step_as_those_on_the_device_bit_for_bit() {
    alone(|folder| {
        // The second micro-batch adds to gradients that have left the device.
        let twice = ("gradient_accumulation_steps", json!(2));
        let on_device = run(folder, DeviceChoice::Cuda, &[twice.clone()]);
        let offload = json!({"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}});
        let zero = ("deepspeed", json!({"zero_optimization": offload}));
        sterna_fake_cuda::reset_host_syncs();
        assert_eq!(run(folder, DeviceChoice::Cuda, &[twice.clone(), zero]), on_device);
        println!("SYNCS {:#?}", sterna_fake_cuda::host_sync_causes());
        let memory = ("memory", json!({"optimizer_on": "host", "gradients_on": "device"}));
        assert_eq!(run(folder, DeviceChoice::Cuda, &[twice, memory]), on_device);
    });
}
