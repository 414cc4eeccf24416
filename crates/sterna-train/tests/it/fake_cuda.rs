//! Whole runs on a device that is not the host (`sterna-fake-cuda`): nothing of the host mixed in, the CPU's numbers but for the
//! order of sums, which attention and our kernels have of their own, and the same bits wherever tensors wait.

use std::{collections::BTreeMap, fs, path::Path, thread, time::Duration};

use serde_json::{Value, json};
use sterna_comm::RankEnv;
use sterna_data::{PrepareReport, Progress};
use sterna_hf::WeightFiles;
use sterna_plan::Plan;
use sterna_testkit::{TestRank, spawn_ranks};
use sterna_train::{DeviceChoice, EvalMetrics, IterationMetrics, Observer, TrainOptions, train};

use crate::conformance::Recorder;
use crate::equivalence::{assert_same, set};
use crate::resume::job;
use crate::tiny;

/// Few: our kernels run on threads of the host, one for each of the device.
const NUM_STEPS: u64 = 1;

/// What a run computes: loss and gradient norm of each step, each evaluation's loss, and the weights after the last step.
#[derive(Debug, PartialEq)]
struct Outcome {
    figures: Vec<f64>,
    weights: BTreeMap<String, Vec<u8>>,
}

/// The tiny recipe with `changes`.
fn recipe(folder: &Path, changes: &[(&str, Value)]) -> Value {
    let mut recipe = tiny::recipe(folder);
    set(&mut recipe, "train_iters", json!(NUM_STEPS));
    for (path, value) in changes {
        set(&mut recipe, path, value.clone());
    }
    recipe
}

/// A run with `changes` to the tiny recipe on `device`.
fn run(folder: &Path, device: DeviceChoice, changes: &[(&str, Value)]) -> Outcome {
    let mut recipe = recipe(folder, changes);
    let out = folder.join("out");
    // What the run before this one has left.
    if out.exists() {
        fs::remove_dir_all(&out).expect("removed");
    }
    recipe["checkpoint"] =
        json!([{"type": "huggingface", "output_dir": out, "save_every_n_steps": NUM_STEPS}]);
    let recipe = tiny::load(folder, "recipe", &recipe);
    let mut recorder = Recorder::default();
    let options = TrainOptions { device, ..TrainOptions::default() };
    train(&recipe, &RankEnv::single(), &options, &mut recorder)
        .unwrap_or_else(|error| panic!("{device:?} {changes:?}: {error}"));
    let of_steps = recorder.iterations.iter().flat_map(|metrics| [metrics.loss, metrics.grad_norm]);
    let figures = of_steps.chain(recorder.evals.iter().map(|metrics| metrics.loss)).collect();
    let files = WeightFiles::open(recorder.exports.last().expect("one")).expect("an export");
    let bytes = |name: &str| files.tensor(name).expect("named by the files").bytes().to_vec();
    let weights = files.names().map(|name| (name.to_owned(), bytes(name))).collect();
    Outcome { figures, weights }
}

/// A process of its own: libtorch looks for CUDA once, and other tests have let it look before.
pub(crate) fn alone(test: impl FnOnce(&Path)) {
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
        let memory = json!({"inputs_on": "disk", "attention_on": "disk", "disk_dir": folder});
        assert_eq!(run(folder, DeviceChoice::Cuda, &[("memory", memory)]), on_device);
    });
}

#[test]
fn ranks_with_states_on_the_host_step_as_those_on_the_device_bit_for_bit() {
    alone(|folder| {
        // The second micro-batch adds to gradients that have left the device; the second step to none of the first one's.
        let run = |changes: &[(&str, Value)]| {
            let twice = [("gradient_accumulation_steps", json!(2)), ("train_iters", json!(2))];
            run(folder, DeviceChoice::Cuda, &[&twice, changes].concat())
        };
        let on_device = run(&[]);
        let offload = json!({"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}});
        let zero = ("deepspeed", json!({"zero_optimization": offload}));
        assert_eq!(run(&[zero]), on_device);
        let memory = ("memory", json!({"optimizer_on": "host", "gradients_on": "device"}));
        assert_eq!(run(&[memory]), on_device);
    });
}

/// Experts gathered one by one, from the host and to it, with accumulation and blocks that are computed again.
#[test]
fn ranks_with_experts_on_a_device_compute_what_they_compute_on_the_host() {
    alone(|folder| {
        let model = folder.join("experts");
        tiny::write_experts(&model, 4);
        let run = |device, changes: &[(&str, Value)]| {
            let of_model = [
                ("model.name_or_path", json!(model)),
                ("model.random_weights", json!(true)),
                ("gradient_accumulation_steps", json!(2)),
            ];
            run(folder, device, &[&of_model, changes].concat())
        };
        let on_device = run(DeviceChoice::Cuda, &[]);
        assert_same("experts", &on_device.figures, &run(DeviceChoice::Cpu, &[]).figures);
        let memory = json!({
            "keep_inputs_every": 2, "keep_attention": 1, "inputs_on": "host", "attention_on": "host", "optimizer_on": "host",
        });
        assert_eq!(run(DeviceChoice::Cuda, &[("memory", memory.clone())]), on_device);
        // Other buffers, whose squares add up in another order: only the norm's last bits may differ.
        let mut one_by_one = memory;
        one_by_one["expert_group_bytes"] = json!(1);
        let offload =
            json!({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}});
        let changes = [("memory", one_by_one), ("deepspeed", offload)];
        let one_by_one = run(DeviceChoice::Cuda, &changes);
        assert_same("one by one", &one_by_one.figures, &on_device.figures);
        assert_eq!(one_by_one.figures[0].to_bits(), on_device.figures[0].to_bits(), "the loss");
    });
}

/// What a delta net keeps waits on the host and on disk: its output, and states of which documents this short leave none.
#[test]
fn ranks_with_delta_nets_on_a_device_compute_what_they_compute_on_the_host() {
    alone(|folder| {
        let model = folder.join("delta-nets");
        tiny::write_delta_nets(&model);
        let run = |device, changes: &[(&str, Value)]| {
            let of_model =
                [("model.name_or_path", json!(model)), ("model.random_weights", json!(true))];
            run(folder, device, &[&of_model, changes].concat())
        };
        let on_device = run(DeviceChoice::Cuda, &[]);
        assert_same("delta nets", &on_device.figures, &run(DeviceChoice::Cpu, &[]).figures);
        let memory = json!({"keep_inputs_every": 2, "keep_attention": 1, "inputs_on": "host", "attention_on": "host"});
        assert_eq!(run(DeviceChoice::Cuda, &[("memory", memory)]), on_device);
        let memory = json!({"inputs_on": "disk", "attention_on": "disk", "disk_dir": folder});
        assert_eq!(run(DeviceChoice::Cuda, &[("memory", memory)]), on_device);
    });
}

#[test]
fn ranks_with_streamed_keys_on_the_host_are_those_with_keys_on_the_device_bit_for_bit() {
    alone(|folder| {
        let streamed = |place: &str| {
            let mut memory = json!({"attention_query_tile": 40, "attention_head_groups": 2, "attention_on": place});
            if place == "disk" {
                memory["disk_dir"] = json!(folder);
            }
            memory
        };
        let run = |place| run(folder, DeviceChoice::Cuda, &[("memory", streamed(place))]);
        let on_device = run("device");
        assert_eq!(run("host"), on_device);
        assert_eq!(run("disk"), on_device);
    });
}

/// Two ranks on one device, so that what travels between them goes through the host as well.
#[test]
fn ranks_with_shards_on_the_host_are_those_with_shards_on_the_device_bit_for_bit() {
    spawn_ranks(2, |rank: &TestRank| {
        sterna_fake_cuda::install();
        let run = |device: &str, job_idx: usize| {
            let offload = json!({"stage": 3, "offload_optimizer": {"device": device}, "offload_param": {"device": device}});
            let changes = [
                ("deepspeed", json!({"zero_optimization": offload})),
                ("sequence_parallel_size", json!(2)),
                ("gradient_accumulation_steps", json!(2)),
                ("train_iters", json!(2)),
            ];
            // Ranks that write one file read halves of it.
            let name = format!("recipe-{job_idx}-{}", rank.rank);
            let recipe = tiny::load(&rank.folder, &name, &recipe(&rank.folder, &changes));
            let options = TrainOptions { device: DeviceChoice::Cuda, ..TrainOptions::default() };
            let mut recorder = Recorder::default();
            train(&recipe, &job(rank, job_idx), &options, &mut recorder).expect("a run");
            let of_steps = recorder.iterations.iter();
            let figures: Vec<_> =
                of_steps.map(|metrics| (metrics.loss, metrics.grad_norm)).collect();
            (figures, recorder.evals.iter().map(|metrics| metrics.loss).collect::<Vec<_>>())
        };
        assert_eq!(run("cpu", 0), run("none", 1));
    });
}

/// What makes the host wait in the steps of a run, startup and exports not counted.
#[derive(Default)]
struct HostWaits(Vec<(String, u64)>);

impl Observer for HostWaits {
    fn on_tokenize(&mut self, _: Progress<'_>) {}

    fn on_reference(&mut self, _: usize, _: usize) {}

    fn on_start(&mut self, _: &Plan, _: &PrepareReport, _: u64, _: &sterna_train::Processor) {
        sterna_fake_cuda::reset_host_syncs();
    }

    fn on_iteration(&mut self, _: &IterationMetrics) {
        self.0.extend(sterna_fake_cuda::host_sync_causes());
    }

    fn on_eval(&mut self, _: &EvalMetrics) {}
    fn on_export(&mut self, _: &Path) {}
    fn on_resume(&mut self, _: &Path, _: u64) {}
    fn on_checkpoint(&mut self, _: &Path) {}
}

/// The list of docs/concepts/engine.md.
#[test]
fn ranks_wait_for_the_device_where_the_page_says_so_and_nowhere_else() {
    alone(|folder| {
        let waits = |changes: &[(&str, Value)]| {
            let recipe = tiny::load(folder, "recipe", &recipe(folder, changes));
            let options = TrainOptions { device: DeviceChoice::Cuda, ..TrainOptions::default() };
            let mut waits = HostWaits::default();
            train(&recipe, &RankEnv::single(), &options, &mut waits).expect("a run");
            waits.0
        };
        let places = json!({
            "keep_inputs_every": 2, "keep_attention": 1, "inputs_on": "host", "attention_on": "host",
        });
        let offload = json!({"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}});
        let named = |causes: &[(&str, u64)]| -> Vec<(String, u64)> {
            causes.iter().map(|(what, count)| ((*what).to_owned(), *count)).collect()
        };
        // The loss of each micro-batch and of its two samples, the sums of squares, and the end of the step, which is timed.
        let (loss, squares, end) = (
            "aten::copy_ from the device, Double [3]",
            ("aten::copy_ from the device, Double [12]", 1),
            ("device synchronize", 1),
        );
        assert_eq!(waits(&[]), named(&[squares, (loss, 1), end]));
        let twice = ("gradient_accumulation_steps", json!(2));
        let changes =
            [twice, ("memory", places), ("deepspeed", json!({"zero_optimization": offload}))];
        // The end of all copies in either direction before the host steps.
        let copies = ("event synchronize", 2);
        assert_eq!(waits(&changes), named(&[squares, (loss, 2), end, copies]));
    });
}

#[test]
fn ranks_that_come_later_find_the_kernels_compiled() {
    spawn_ranks(2, |rank: &TestRank| {
        sterna_fake_cuda::install();
        let first_is_done = rank.folder.join("first-is-done");
        while rank.rank == 1 && !first_is_done.exists() {
            thread::sleep(Duration::from_millis(50));
        }
        run(&rank.folder, DeviceChoice::Cuda, &[]);
        assert_eq!(sterna_fake_cuda::num_compilations(), 1 - rank.rank as u64);
        let names = fs::read_dir(rank.folder.join("cache")).expect("the recipe's cache_dir");
        let names = names.map(|entry| entry.expect("listed").file_name().into_string().unwrap());
        let kernels: Vec<String> =
            names.filter(|name| name.starts_with("sterna-kernels-")).collect();
        assert_eq!(kernels.len(), 1, "{kernels:?}");
        fs::write(first_is_done, "").expect("written");
    });
}
