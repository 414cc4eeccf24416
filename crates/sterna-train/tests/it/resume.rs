//! A run that is saved, ended and resumed is the run that was never ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde_json::{Value, json};
use sterna_comm::RankEnv;
use sterna_testkit::{TestRank, spawn_ranks};
use sterna_train::{
    EarlyExit, EvalMetrics, IterationMetrics, Observer, Stop, TrainError, TrainOptions,
    TrainSummary, train,
};
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::conformance::Recorder;
use crate::equivalence::{assert_same, set};
use crate::tiny;

/// Optimizer steps of the whole run, and after how many it is ended.
const NUM_STEPS: u64 = 6;
const NUM_BEFORE: u64 = 3;

type Changes = [(&'static str, Value)];

/// What a run leaves behind.
pub(crate) struct Run {
    pub(crate) result: Result<TrainSummary, TrainError>,
    pub(crate) recorder: Recorder,
    /// The bytes of the weights exported at the end.
    weights: Option<Vec<u8>>,
}

impl Run {
    /// Loss and gradient norm of each step.
    fn figures(&self) -> Vec<f64> {
        let steps = self.recorder.iterations.iter();
        steps.flat_map(|metrics| [metrics.loss, metrics.grad_norm]).collect()
    }
}

/// A recipe over the tiny model in `folder` that saves checkpoints to `checkpoints` when it ends and resumes from there, and
/// exports the weights to `out` when it has made all steps.
fn recipe(folder: &Path, checkpoints: &Path, changes: &Changes) -> Value {
    let mut recipe = tiny::recipe(folder);
    recipe["train_iters"] = json!(NUM_STEPS);
    recipe["exit_iteration"] = json!(0);
    // A curve with a warm-up: it must go on where it was.
    recipe["scheduler"] = json!({"name": "cosine", "warmup_ratio": 0.3});
    recipe["checkpoint"] = json!([
        {"type": "sterna", "output_dir": checkpoints, "auto_resume": true, "save_end_of_training": true},
        {"type": "huggingface", "output_dir": folder.join("out"), "save_every_n_steps": NUM_STEPS},
    ]);
    for (pointer, value) in changes {
        set(&mut recipe, pointer, value.clone());
    }
    recipe
}

fn run(folder: &Path, env: &RankEnv, recipe: &Value, stop: Stop) -> Run {
    let recipe = tiny::load(folder, &format!("recipe-{}", env.rank), recipe);
    let mut recorder = Recorder::default();
    let options = TrainOptions { stop, ..TrainOptions::default() };
    let result = train(&recipe, env, &options, &mut recorder);
    let weights = fs::read(folder.join(format!("out/global_step_{NUM_STEPS}/model.safetensors")));
    Run { result, recorder, weights: weights.ok() }
}

/// Runs `changes` as `env` until `num_steps` are made in all, and fails if it cannot.
fn run_until(
    folder: &Path,
    checkpoints: &Path,
    env: &RankEnv,
    changes: &Changes,
    num_steps: u64,
) -> Run {
    let mut recipe = recipe(folder, checkpoints, changes);
    recipe["exit_iteration"] = json!(num_steps);
    let run = run(folder, env, &recipe, Stop::default());
    if let Err(error) = &run.result {
        panic!("{changes:?}: {error}");
    }
    run
}

/// The whole run, and one that is ended and resumed: equal bit for bit.
fn check_bit_equal(shared: &Path, own: &Path, env: &RankEnv, changes: &Changes) {
    let whole = run_until(own, &shared.join("whole"), env, changes, NUM_STEPS);
    let parts = shared.join("parts");
    let before = run_until(own, &parts, env, changes, NUM_BEFORE);
    let dir = parts.join(format!("checkpoint-{NUM_BEFORE}"));
    assert_eq!(before.recorder.checkpoints, std::slice::from_ref(&dir), "{changes:?}");
    let after = run_until(own, &parts, env, changes, NUM_STEPS);
    assert_eq!(after.recorder.resumed, Some((dir, NUM_BEFORE)));
    assert_eq!([before.figures(), after.figures()].concat(), whole.figures(), "{changes:?}");
    let rates = |run: &Run| -> Vec<f64> { run.recorder.iterations.iter().map(|m| m.lr).collect() };
    assert_eq!([rates(&before), rates(&after)].concat(), rates(&whole), "{changes:?}");
    if env.rank == 0 {
        assert!(whole.weights.is_some());
        assert!(after.weights == whole.weights, "{changes:?}: the weights differ");
    }
}

#[test]
fn a_resumed_run_in_one_process_is_the_whole_run_bit_for_bit() {
    let variants: [&Changes; 6] = [
        &[],
        &[("gradient_accumulation_steps", json!(2)), ("loss_average", json!("token"))],
        &[("model.dtype", json!("bf16")), ("deepspeed.zero_optimization.stage", json!(3))],
        &[("model.dtype", json!("bf16")), ("memory", json!({"moments_dtype": "bf16"}))],
        &[("memory", json!({"optimizer_on": "disk", "disk_dir": "/tmp"}))],
        &[
            ("model.dtype", json!("bf16")),
            (
                "memory",
                json!({"moments_dtype": "bf16", "optimizer_on": "disk", "disk_dir": "/tmp"}),
            ),
        ],
    ];
    for changes in variants {
        let folder = tempfile::tempdir().expect("a temporary folder");
        check_bit_equal(folder.path(), folder.path(), &RankEnv::single(), changes);
    }
}

#[test]
fn epochs_end_where_they_would_have() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    let run = |dir: &str, exit_iteration: u64| {
        let changes = [
            ("train_iters", json!(0)),
            ("epochs", json!(3)),
            ("gradient_accumulation_steps", json!(2)),
            (
                "checkpoint",
                json!([{"output_dir": path(dir), "auto_resume": true, "save_every_n_epochs": 1, "save_end_of_training": true}]),
            ),
        ];
        run_until(folder.path(), &path(dir), &RankEnv::single(), &changes, exit_iteration)
    };
    let whole = run("whole", 0);
    let num_steps = whole.recorder.iterations.len() as u64;
    let parts: Vec<Run> =
        [1, num_steps / 2, 0].into_iter().map(|exit| run("parts", exit)).collect();
    let figures: Vec<f64> = parts.iter().flat_map(Run::figures).collect();
    assert_eq!(figures, whole.figures());
    let epochs =
        |run: &Run| -> Vec<usize> { run.recorder.iterations.iter().map(|m| m.epoch).collect() };
    assert_eq!(parts.iter().flat_map(epochs).collect::<Vec<_>>(), epochs(&whole));
    // One more for each end.
    let steps = |dir: &str| -> Vec<u64> {
        sterna_checkpoint::list(&path(dir))
            .expect("readable")
            .iter()
            .map(|listed| listed.step)
            .collect()
    };
    let mut expected = [steps("whole"), vec![num_steps / 2, 1]].concat();
    expected.sort_unstable_by(|a, b| b.cmp(a));
    expected.dedup();
    assert_eq!(steps("parts"), expected);
    assert_eq!(steps("whole").len(), 3, "an epoch each: {:?}", steps("whole"));
    // Nothing is left to do.
    assert!(run("parts", 0).recorder.iterations.is_empty());
}

/// The environment of a rank for its job number `job` of this test, which meets at a port of its own.
pub(crate) fn job(rank: &TestRank, job: usize) -> RankEnv {
    let mut env = RankEnv::from_env().expect("the environment of a rank");
    let path = rank.folder.join(format!("port-{job}"));
    if env.rank == 0 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let complete = rank.folder.join(format!("port-{job}.new"));
        fs::write(&complete, port.to_string()).expect("written");
        fs::rename(&complete, &path).expect("renamed");
    }
    while !path.exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let text = fs::read_to_string(&path).expect("readable");
    env.master_port = text.parse().expect("a port");
    env
}

/// [`check_bit_equal`] on two ranks, each with a model and data of its own and a shared folder for checkpoints.
fn check_bit_equal_on_two(changes: &Changes) {
    spawn_ranks(2, |rank: &TestRank| {
        let own = rank.folder.join(rank.rank.to_string());
        let parts = rank.folder.join("parts");
        let whole = run_until(&own, &rank.folder.join("whole"), &job(rank, 0), changes, NUM_STEPS);
        let before = run_until(&own, &parts, &job(rank, 1), changes, NUM_BEFORE);
        let after = run_until(&own, &parts, &job(rank, 2), changes, NUM_STEPS);
        assert_eq!([before.figures(), after.figures()].concat(), whole.figures(), "{changes:?}");
        if rank.rank == 0 {
            assert!(whole.weights.is_some());
            assert!(after.weights == whole.weights, "{changes:?}: the weights differ");
        }
    });
}

#[test]
fn a_resumed_run_on_two_ranks_is_the_whole_run_bit_for_bit_at_every_stage() {
    let stage = |stage: u8| ("deepspeed.zero_optimization.stage", json!(stage));
    let (sp, gas) =
        (("sequence_parallel_size", json!(2)), ("gradient_accumulation_steps", json!(2)));
    let bf16 = ("model.dtype", json!("bf16"));
    check_bit_equal_on_two(&[stage(0), gas.clone()]);
    check_bit_equal_on_two(&[stage(1), sp.clone(), bf16.clone()]);
    check_bit_equal_on_two(&[stage(2), gas.clone()]);
    check_bit_equal_on_two(&[stage(3), sp, bf16, gas]);
}

/// One process writes the checkpoint, two and three ranks go on from it in other ways, and one from theirs: all as the whole run in
/// one process, within the order of fp32 sums.
fn check_other_world(world_size: usize, alone: &Changes, together: &Changes) {
    spawn_ranks(world_size, |rank: &TestRank| {
        let own = rank.folder.join(rank.rank.to_string());
        let single = RankEnv::single();
        let whole = run_until(&own, &own.join("whole"), &single, alone, NUM_STEPS).figures();
        // Every rank alone, so that the last one, whose folder is gone on from, cannot be late.
        run_until(&own, &own.join("parts"), &single, alone, NUM_BEFORE);
        let split = 2 * NUM_BEFORE as usize;
        let last = rank.folder.join((world_size - 1).to_string()).join("parts");
        let joined = run_until(&own, &last, &job(rank, 0), together, NUM_STEPS - 1);
        let resumed = joined.recorder.resumed.as_ref().map(|(_, step)| *step);
        assert_eq!(resumed, Some(NUM_BEFORE));
        assert_same("joined", &joined.figures(), &whole[split..split + 4]);
        // What the ranks wrote together, each goes on from alone.
        let copy = own.join("copy");
        fs::create_dir(&copy).expect("made");
        let name = format!("checkpoint-{}", NUM_STEPS - 1);
        copy_folder(&last.join(&name), &copy.join(&name));
        let after = run_until(&own, &copy, &single, alone, NUM_STEPS);
        assert_same("alone again", &after.figures(), &whole[split + 4..]);
    });
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).expect("made");
    for entry in fs::read_dir(from).expect("readable") {
        let path = entry.expect("readable").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_folder(&path, &to);
        } else {
            fs::copy(&path, &to).expect("copied");
        }
    }
}

#[test]
fn a_checkpoint_loads_on_other_ranks_stages_and_axes() {
    let stage = |stage: u8| ("deepspeed.zero_optimization.stage", json!(stage));
    let sp = |size: u8| ("sequence_parallel_size", json!(size));
    let gas = ("gradient_accumulation_steps", json!(2));
    check_other_world(2, &[], &[sp(2), stage(1)]);
    check_other_world(3, &[], &[sp(3), stage(3)]);
    // Two accumulated micro-batches become two ranks: other steps of the sampler, the same samples.
    check_other_world(2, std::slice::from_ref(&gas), &[stage(2)]);
}

/// All experts of a layer at once, then each by itself, and back.
#[test]
fn a_checkpoint_loads_with_experts_in_other_groups() {
    let model = tempfile::tempdir().expect("a temporary folder");
    tiny::write_experts(model.path(), 4);
    let alone = [
        ("model.name_or_path", json!(model.path())),
        ("model.random_weights", json!(true)),
        ("deepspeed.zero_optimization.stage", json!(0)),
    ];
    let together = [
        alone[0].clone(),
        alone[1].clone(),
        ("deepspeed.zero_optimization.stage", json!(3)),
        ("sequence_parallel_size", json!(2)),
        ("memory.expert_group_bytes", json!(1)),
    ];
    check_other_world(2, &alone, &together);
}

/// What is not trained is in a checkpoint, and comes back on other ranks.
#[test]
fn a_checkpoint_loads_with_buffers_on_other_ranks() {
    let model = tempfile::tempdir().expect("a temporary folder");
    tiny::write_buffers(model.path());
    let alone =
        [("model.name_or_path", json!(model.path())), ("model.random_weights", json!(true))];
    for stage in [1, 3] {
        let stage = ("deepspeed.zero_optimization.stage", json!(stage));
        let sp = ("sequence_parallel_size", json!(2));
        let bf16 = ("model.dtype", json!("bf16"));
        let together = [alone[0].clone(), alone[1].clone(), stage, sp];
        check_other_world(2, &alone, &together);
        check_bit_equal_on_two(&[&together[..], &[bf16]].concat());
    }
}

/// Two checkpoints of a run in one process, `checkpoint-2` and `checkpoint-4`.
fn two_checkpoints(folder: &Path) -> PathBuf {
    let checkpoints = folder.join("checkpoints");
    let changes = [(
        "checkpoint",
        json!([{"output_dir": checkpoints, "auto_resume": true, "save_every_n_steps": 2}]),
    )];
    run_until(folder, &checkpoints, &RankEnv::single(), &changes, 4);
    checkpoints
}

#[test]
fn a_damaged_checkpoint_is_left_for_the_one_before() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let checkpoints = two_checkpoints(folder.path());
    let env = RankEnv::single();
    let shard = checkpoints.join("checkpoint-4/rank_00000.safetensors");
    let mut bytes = fs::read(&shard).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&shard, &bytes).expect("written");
    let after = run_until(folder.path(), &checkpoints, &env, &[], NUM_STEPS);
    assert_eq!(after.recorder.resumed, Some((checkpoints.join("checkpoint-2"), 2)));
    // With the older one gone too there is nothing good left, and nothing is overwritten.
    fs::remove_file(checkpoints.join("checkpoint-2/manifest.json")).expect("removed");
    fs::remove_dir_all(checkpoints.join("checkpoint-6")).expect("removed");
    let recipe = recipe(folder.path(), &checkpoints, &[]);
    let error =
        run(folder.path(), &env, &recipe, Stop::default()).result.expect_err("none is good");
    let text = error.to_string();
    for part in [
        "checkpoints, and none of them can be resumed:",
        "checkpoint-4/rank_00000.safetensors` was changed or damaged since it was written",
        "checkpoint-2` is not a checkpoint: it has no `manifest.json`",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn ranks_agree_on_what_is_damaged_although_each_reads_a_part() {
    spawn_ranks(2, |rank: &TestRank| {
        let own = rank.folder.join(rank.rank.to_string());
        let parts = rank.folder.join("parts");
        let sp = [("sequence_parallel_size", json!(2))];
        let every = json!([{"output_dir": parts, "auto_resume": true, "save_every_n_steps": 1}]);
        run_until(&own, &parts, &job(rank, 0), &[sp[0].clone(), ("checkpoint", every)], 3);
        if rank.rank == 0 {
            // Ranks 0 and 1 read the files in turn: the first shard is rank 0's to check, the second rank 1's.
            for (step, shard) in [(3, 0), (2, 1)] {
                let path = parts.join(format!("checkpoint-{step}/rank_0000{shard}.safetensors"));
                let mut bytes = fs::read(&path).expect("readable");
                *bytes.last_mut().expect("not empty") ^= 1;
                fs::write(&path, bytes).expect("written");
            }
        }
        let after = run_until(&own, &parts, &job(rank, 1), &sp, NUM_STEPS);
        assert_eq!(after.recorder.resumed.map(|(_, step)| step), Some(1));
    });
}

#[test]
fn a_checkpoint_of_another_model_or_other_data_is_not_gone_on_from() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let checkpoints = two_checkpoints(folder.path());
    let env = RankEnv::single();
    let why = |changes: &Changes| {
        let recipe = recipe(folder.path(), &checkpoints, changes);
        let run = run(folder.path(), &env, &recipe, Stop::default());
        run.result.expect_err("another recipe").to_string()
    };
    let text = why(&[("model.hf_config_kwargs", json!({"rope_theta": 5e5}))]);
    assert!(text.contains("it is of another recipe: the model's `rope_theta` was"), "{text}");
    let chats = folder.path().join("chats.jsonl");
    let good = fs::read_to_string(&chats).expect("readable");
    fs::write(&chats, good.replacen("why", "who", 1)).expect("written");
    let text = why(&[]);
    assert!(text.contains("or its data changed since"), "{text}");
    fs::write(&chats, good).expect("written");
    // Another learning rate is the user's to choose, and is said in the log.
    let after =
        run_until(folder.path(), &checkpoints, &env, &[("optimizer.lr", json!(1e-3))], NUM_STEPS);
    assert_eq!(after.recorder.resumed.map(|(_, step)| step), Some(4));
}

#[test]
fn several_entries_save_at_once_and_keep_their_newest() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    let changes = [(
        "checkpoint",
        json!([
            {"type": "deepspeed", "output_dir": path("often"), "save_every_n_steps": 1, "keep_last_n": 2},
            {"output_dir": path("seldom"), "save_every_n_steps": 3},
        ]),
    )];
    run_until(folder.path(), &path("unused"), &RankEnv::single(), &changes, NUM_STEPS);
    let steps = |name: &str| -> Vec<u64> {
        let listed = sterna_checkpoint::list(&path(name)).expect("readable");
        listed.into_iter().map(|listed| listed.step).collect()
    };
    assert_eq!(steps("often"), [6, 5]);
    assert_eq!(steps("seldom"), [6, 3]);
}

/// Asks a run to stop after a step, from within.
struct Stopper {
    recorder: Recorder,
    stop: Stop,
    after: u64,
}

impl Observer for Stopper {
    fn on_tokenize(&mut self, _: sterna_data::Progress<'_>) {}

    fn on_reference(&mut self, _: usize, _: usize) {}

    fn on_start(
        &mut self,
        _: &sterna_plan::Plan,
        _: &sterna_data::PrepareReport,
        _: u64,
        _: &sterna_train::Processor,
    ) {
    }

    fn on_iteration(&mut self, metrics: &IterationMetrics) {
        self.recorder.on_iteration(metrics);
        if metrics.iter == self.after {
            self.stop.request(15);
        }
    }

    fn on_eval(&mut self, _: &EvalMetrics) {}

    fn on_export(&mut self, _: &Path) {}

    fn on_resume(&mut self, _: &Path, _: u64) {}

    fn on_checkpoint(&mut self, dir: &Path) {
        self.recorder.on_checkpoint(dir);
    }
}

#[test]
fn a_run_that_resumes_nothing_does_not_write_among_others_checkpoints() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let checkpoints = two_checkpoints(folder.path());
    let entry = json!([{"output_dir": checkpoints, "save_every_n_steps": 3}]);
    let recipe = recipe(folder.path(), &checkpoints, &[("checkpoint", entry)]);
    let error = run(folder.path(), &RankEnv::single(), &recipe, Stop::default()).result;
    let expected = format!(
        "`{}` has checkpoints of an earlier run, until step `4`, and this run does not go on from them",
        checkpoints.display()
    );
    assert_eq!(error.expect_err("refused").to_string(), expected);
}

/// Asks a run to stop when the backward of a micro-batch begins.
struct AtBackward {
    num_seen: AtomicUsize,
    /// Counted from 1.
    number: usize,
    stop: Stop,
}

impl<S: tracing::Subscriber> Layer<S> for AtBackward {
    fn on_new_span(&self, span: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        let is_it = span.metadata().name() == "backward"
            && self.num_seen.fetch_add(1, Relaxed) + 1 == self.number;
        if is_it {
            self.stop.request(15);
        }
    }
}

#[test]
fn a_step_that_is_given_up_leaves_everything_as_it_was() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (env, checkpoints) = (RankEnv::single(), folder.path().join("checkpoints"));
    let gas = ("gradient_accumulation_steps", json!(4));
    let whole = run_until(
        folder.path(),
        &folder.path().join("whole"),
        &env,
        std::slice::from_ref(&gas),
        NUM_STEPS,
    );
    // Told to stop while the second step has begun: the run looks before its second micro-batch.
    let entry = json!([{"output_dir": checkpoints, "auto_resume": true}]);
    let recipe = recipe(folder.path(), &checkpoints, &[gas.clone(), ("checkpoint", entry)]);
    let loaded = tiny::load(folder.path(), "given-up", &recipe);
    let stop = Stop::default();
    let layer = AtBackward { num_seen: AtomicUsize::new(0), number: 5, stop: stop.clone() };
    let options = TrainOptions { stop, ..TrainOptions::default() };
    let mut recorder = Recorder::default();
    let summary =
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            train(&loaded, &env, &options, &mut recorder).expect("stopped in order")
        });
    assert_eq!((summary.num_steps, recorder.iterations.len()), (1, 1));
    let after = run_until(folder.path(), &checkpoints, &env, &[gas], NUM_STEPS);
    assert_eq!(after.figures(), whole.figures()[2..]);
}

#[test]
fn a_run_that_is_told_to_stop_saves_and_can_be_resumed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (env, checkpoints) = (RankEnv::single(), folder.path().join("checkpoints"));
    let whole = run_until(folder.path(), &folder.path().join("whole"), &env, &[], NUM_STEPS);
    // An entry that never saves by itself.
    let entry = json!([{"output_dir": checkpoints, "auto_resume": true}]);
    let recipe = recipe(folder.path(), &checkpoints, &[("checkpoint", entry)]);
    let loaded = tiny::load(folder.path(), "stopped", &recipe);
    let stop = Stop::default();
    let mut stopper = Stopper { recorder: Recorder::default(), stop: stop.clone(), after: 2 };
    let options = TrainOptions { stop, ..TrainOptions::default() };
    let summary = train(&loaded, &env, &options, &mut stopper).expect("stopped in order");
    let dir = checkpoints.join("checkpoint-2");
    assert_eq!(summary.early_exit, Some(EarlyExit::Signal(15)));
    assert_eq!((summary.num_steps, summary.checkpoint), (2, Some(dir.clone())));
    assert_eq!(stopper.recorder.checkpoints, [dir]);
    let after = run_until(folder.path(), &checkpoints, &env, &[], NUM_STEPS);
    assert_eq!(after.figures(), whole.figures()[4..]);
}

#[test]
fn rows_of_steps_that_are_made_again_are_replaced() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let checkpoints = two_checkpoints(folder.path());
    let metrics = folder.path().join("metrics.jsonl");
    let logged = [
        ("train_log_iter_interval", json!(1)),
        ("train_log_metrics_path", json!(metrics)),
        (
            "checkpoint",
            json!([{"output_dir": checkpoints, "auto_resume": true, "save_every_n_steps": 2}]),
        ),
    ];
    let env = RankEnv::single();
    let iters = || -> Vec<u64> {
        let text = fs::read_to_string(&metrics).expect("readable");
        let rows = text.lines().map(|row| serde_json::from_str::<Value>(row).expect("a row"));
        rows.filter(|row| row["loss"].is_number())
            .map(|row| row["iter"].as_u64().expect("a step"))
            .collect()
    };
    fs::remove_dir_all(&checkpoints).expect("removed");
    // Ends after step 5 as a kill would: its row is there, its checkpoint is not.
    run_until(folder.path(), &checkpoints, &env, &logged, 5);
    assert_eq!(iters(), [1, 2, 3, 4, 5]);
    run_until(folder.path(), &checkpoints, &env, &logged, NUM_STEPS);
    assert_eq!(iters(), [1, 2, 3, 4, 5, 6]);
    // Another file is not cut.
    fs::remove_dir_all(checkpoints.join("checkpoint-6")).expect("removed");
    fs::write(&metrics, "{\"mine\": 1}\n".repeat(200)).expect("written");
    run_until(folder.path(), &checkpoints, &env, &logged, NUM_STEPS);
    assert_eq!(iters(), [5, 6]);
    assert!(fs::read_to_string(&metrics).expect("readable").starts_with("{\"mine\": 1}\n"));
}
