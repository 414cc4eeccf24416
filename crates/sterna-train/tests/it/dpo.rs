//! `type: dpo`: losses of pairs against TRL's, and runs however they are split and packed.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sterna_comm::RankEnv;
use sterna_recipe::{DpoLoss, DpoOptions};
use sterna_testkit::{TestRank, spawn_ranks, tiny_config, tiny_model};
use sterna_train::{
    TrainError, TrainOptions,
    engine::Engine,
    objective::{Counts, Dpo, Pair, Pairs, pair_loss},
    train,
};

use crate::conformance::Recorder;
use crate::equivalence::assert_same;
use crate::objective::descend;
use crate::one_batch::OneBatch;
use crate::tiny;

const LOSSES: [DpoLoss; 13] = [
    DpoLoss::Sigmoid,
    DpoLoss::SigmoidNorm,
    DpoLoss::Hinge,
    DpoLoss::Ipo,
    DpoLoss::Robust,
    DpoLoss::ExoPair,
    DpoLoss::NcaPair,
    DpoLoss::SppoHard,
    DpoLoss::ApoZero,
    DpoLoss::ApoDown,
    DpoLoss::Simpo,
    DpoLoss::Orpo,
    DpoLoss::Sft,
];

/// The sum of losses and their weights.
pub(crate) fn options(losses: &[(DpoLoss, f64)], beta: f64, label_smoothing: f64) -> DpoOptions {
    let (loss_type, loss_weights) = losses.iter().copied().unzip();
    let (ref_model, simpo_gamma) = (None, 0.5);
    DpoOptions {
        ref_model,
        beta,
        label_smoothing,
        simpo_gamma,
        desirable_weight: 1.0,
        undesirable_weight: 1.0,
        loss_type,
        loss_weights,
    }
}

pub(crate) fn fixture(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    let values = value.as_array().expect("a list").iter();
    values.map(|value| value.as_f64().expect("a number")).collect()
}

pub(crate) fn assert_near(found: f64, expected: f64, case: &Value) {
    let is_near = (found - expected).abs() <= 1e-12 * expected.abs().max(1.0);
    assert!(is_near, "{found} and {expected} of {case}");
}

/// `golden/make_dpo_losses.py`: TRL's `dpo_loss` in double precision, slopes by autograd.
#[test]
fn losses_of_pairs_are_trls() {
    for case in &fixture("dpo_losses.json") {
        let number = |key: &str| case[key].as_f64().unwrap();
        let pair = |key: &str| Pair {
            chosen: case[key][0].as_f64().unwrap(),
            rejected: case[key][1].as_f64().unwrap(),
        };
        let name = case["loss_type"].as_str().unwrap();
        let loss_type = LOSSES.into_iter().find(|loss| loss.name() == name).expect("known");
        let options = options(&[], number("beta"), number("label_smoothing"));
        // Those of IPO are means there.
        let one_label = Pair { chosen: 1.0, rejected: 1.0 };
        let found = pair_loss(loss_type, &options, pair("policy"), pair("reference"), one_label);
        let slopes = pair("slopes");
        assert_near(found.loss, number("loss"), case);
        assert_near(found.slopes.chosen, slopes.chosen, case);
        assert_near(found.slopes.rejected, slopes.rejected, case);
    }
}

/// `golden/make_dpo_losses.py`: weighted losses of batches of replies of different lengths by TRL's trainers, in double precision.
#[test]
fn weighted_losses_of_batches_are_trls() {
    let cases = fixture("dpo_batches.json");
    for case in &cases {
        let losses: Vec<(DpoLoss, f64)> = case["loss_type"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| LOSSES.into_iter().find(|loss| *name == loss.name()).expect("known"))
            .zip(numbers(&case["loss_weights"]))
            .collect();
        let number = |key: &str| case[key].as_f64().unwrap();
        let mut options = options(&losses, number("beta"), number("label_smoothing"));
        options.simpo_gamma = case["simpo_gamma"].as_f64().unwrap_or(0.5);
        let num_labels: Vec<usize> =
            numbers(&case["num_labels"]).into_iter().map(|num| num as usize).collect();
        let (policy, reference) = (numbers(&case["policy"]), numbers(&case["reference"]));
        let is_compared = losses.iter().any(|(loss, _)| loss.has_reference());
        let reference = is_compared.then_some(&reference[..]);
        let pairs = Pairs::new(&options, &policy, reference, &num_labels);
        let counts = Counts::of(&num_labels);
        assert_near(pairs.mean(counts), number("loss"), case);
        for (found, expected) in
            pairs.slopes_of_mean(counts).into_iter().zip(numbers(&case["slopes"]))
        {
            assert_near(found, expected, case);
        }
        for (name, mean) in pairs.figures.means(pairs.figures.values()) {
            assert_near(mean, case["figures"][name].as_f64().unwrap(), case);
        }
    }
    for loss in LOSSES.into_iter().filter(|loss| *loss != DpoLoss::ExoPair) {
        let has_it =
            |case: &Value| case["loss_type"].as_array().unwrap().contains(&loss.name().into());
        assert!(cases.iter().any(has_it), "{}", loss.name());
    }
}

/// In fp32 a short reply that was learnt by heart has a log-probability of 0.
#[test]
fn the_odds_of_a_certain_reply_have_a_slope() {
    let options = options(&[(DpoLoss::Orpo, 1.0)], 0.5, 0.0);
    let pair = |chosen: f64, rejected: f64| Pair { chosen, rejected };
    let of = |policy| pair_loss(DpoLoss::Orpo, &options, policy, pair(0.0, 0.0), pair(2.0, 4.0));
    let (certain, nearly) = (of(pair(0.0, -4.0)), of(pair(-1e-12, -4.0)));
    assert!(certain.loss.abs() < 1e-11, "{certain:?}");
    for (certain, nearly) in [
        (certain.slopes.chosen, nearly.slopes.chosen),
        (certain.slopes.rejected, nearly.slopes.rejected),
    ] {
        assert!((certain - nearly).abs() < 1e-9, "{certain} and {nearly}");
    }
}

/// The loss of a step down the gradient against the square of its norm, for every kind of loss.
#[test]
fn gradients_of_pairs_are_the_slope_of_their_loss() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let of = OneBatch::new(folder.path());
    let num_labels = of.batch.num_labels_of_samples();
    assert_eq!(num_labels.len() % 2, 0, "pairs: {num_labels:?}");
    let losses = of.engine(of.options()).forward(&of.batch).expect("computed").of_samples;
    // A reference model that likes the better reply a little more, and the worse one a little less.
    let reference: Vec<f64> = losses
        .iter()
        .enumerate()
        .map(|(i, sample)| -sample.sum + if i % 2 == 0 { 3.0 } else { -2.0 })
        .collect();
    let (of_batch, alone) = (Counts::of(&num_labels), LOSSES.map(|loss| vec![(loss, 1.0)]));
    let mixed = vec![(DpoLoss::Sigmoid, 0.7), (DpoLoss::Ipo, 0.2), (DpoLoss::Sft, 3.0)];
    for losses in alone.into_iter().chain([mixed]) {
        let smoothing = if losses[0].0 == DpoLoss::Robust { 0.1 } else { 0.0 };
        let options = options(&losses, 0.3, smoothing);
        // As with two micro-batches of a step that have as many pairs and tokens.
        let counts = Counts { pairs: 2.0 * of_batch.pairs, tokens: 2.0 * of_batch.tokens };
        let dpo = Dpo::new(&options, &of.batch, Some(&reference), counts);
        let mut engine = of.engine(of.options());
        let loss = engine.forward_backward(&of.batch, &dpo).expect("computed").loss;
        let norm = engine.zero.gradient_norm(of.comm.world()).expect("one rank");
        let loss_of = |engine: &mut Engine<'_>| {
            let losses = engine.forward(&of.batch).expect("computed").of_samples;
            let policy: Vec<f64> = losses.iter().map(|sample| -sample.sum).collect();
            0.5 * Pairs::new(&options, &policy, Some(&reference), &num_labels).mean(of_batch)
        };
        let name = format!("{losses:?}");
        // Down and up again by so little that the loss is a line, and so much that fp32 tells the ends apart.
        let by = 1e-3 / norm.powi(2);
        descend(&of, &mut engine, by);
        let below = loss_of(&mut engine);
        descend(&of, &mut engine, -2.0 * by);
        let above = loss_of(&mut engine);
        let slope = (above - below) / (2.0 * by);
        assert!((slope / norm.powi(2) - 1.0).abs() < 2e-2, "{name}: {slope} and {}", norm.powi(2));
        assert!(below < loss && loss < above, "{name}: {below} {loss} {above}");
    }
}

/// A recipe over pairs of replies of different lengths, compared with a model of other weights.
fn recipe(folder: &Path) -> Value {
    let mut recipe = tiny::recipe(folder);
    let rows: Vec<String> = (0..24)
        .map(|i| {
            let reply = |text: String| json!([{"role": "assistant", "content": text}]);
            json!({
                "prompt": [{"role": "user", "content": "why? ".repeat(1 + i % 3).trim()}],
                "chosen": reply(format!("{i} is {}", i * i % 17)),
                "rejected": reply("no ".repeat(1 + i % 5).trim().to_owned()),
            })
            .to_string()
        })
        .collect();
    let pairs = folder.join("pairs.jsonl");
    fs::write(&pairs, rows.join("\n")).expect("written");
    let reference = folder.join("reference");
    if !reference.exists() {
        fs::create_dir_all(&reference).expect("made");
        let config = fs::read_to_string(folder.join("model/config.json")).expect("readable");
        tiny_model(&reference, &serde_json::from_str(&config).expect("JSON"), 8);
    }
    recipe["type"] = json!("dpo");
    recipe["ref_model"] = json!({"name_or_path": reference});
    recipe["data"]["sources"] = json!([{"name_or_path": pairs}]);
    recipe["beta"] = json!(0.5);
    recipe["eval_on_start"] = json!(true);
    recipe["loss_average"] = json!("token");
    recipe
}

pub(crate) fn run(folder: &Path, env: &RankEnv, name: &str, changes: &[(&str, Value)]) -> Recorder {
    let mut recipe = recipe(folder);
    for (path, value) in changes {
        crate::equivalence::set(&mut recipe, path, value.clone());
    }
    // What a change takes away.
    recipe.as_object_mut().expect("a recipe").retain(|_, value| !value.is_null());
    let recipe = tiny::load(folder, &format!("{name}-{}", env.rank), &recipe);
    let mut recorder = Recorder::default();
    train(&recipe, env, &TrainOptions::default(), &mut recorder)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    recorder
}

/// Loss, gradient norm and what is reported of each step, then of each evaluation.
pub(crate) fn figures(recorder: &Recorder) -> Vec<f64> {
    let means = |figures: &[(&str, f64)]| figures.iter().map(|(_, mean)| *mean).collect::<Vec<_>>();
    let of_steps = recorder
        .iterations
        .iter()
        .flat_map(|step| [vec![step.loss, step.grad_norm], means(&step.figures)].concat());
    let of_evals =
        recorder.evals.iter().flat_map(|eval| [vec![eval.loss], means(&eval.figures)].concat());
    of_steps.chain(of_evals).collect()
}

/// One of the figures of a step or an evaluation.
pub(crate) fn figure(figures: &[(&str, f64)], name: &str) -> f64 {
    figures.iter().find(|(found, _)| *found == name).expect("reported").1
}

/// Steps of a model that is its own reference, evaluated before and after.
pub(crate) fn twelve_steps_from_itself(folder: &Path) -> [(&'static str, Value); 4] {
    [
        ("ref_model", json!({"name_or_path": folder.join("model")})),
        ("train_iters", json!(12)),
        ("exit_iteration", json!(0)),
        ("eval_interval", json!(12)),
    ]
}

#[test]
fn a_model_that_is_its_own_reference_starts_at_ln_2_and_learns_to_prefer() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let recorder =
        run(folder.path(), &RankEnv::single(), "own", &twelve_steps_from_itself(folder.path()));
    let (first, last) = (&recorder.evals[0], &recorder.evals[recorder.evals.len() - 1]);
    assert!((first.loss - std::f64::consts::LN_2).abs() < 1e-6, "{}", first.loss);
    assert!(figure(&first.figures, "rewards/margins").abs() < 1e-5);
    assert!(last.loss < 0.9 * first.loss, "{} then {}", first.loss, last.loss);
    assert!(figure(&last.figures, "rewards/accuracies") > 0.9);
    assert!(figure(&last.figures, "rewards/margins") > 0.2);
}

/// Pairs in a pack see neither each other nor their other half.
#[test]
fn packed_pairs_are_single_pairs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let env = RankEnv::single();
    let eval = [("exit_iteration", json!(1)), ("eval_interval", json!(1))];
    let of = |name: &str, is_packed: bool| {
        let pack = ("data.pack_samples", json!(is_packed));
        let split = ("data.train_eval_split", json!([1.0, 0.0]));
        let held_out = folder.path().join("pairs.jsonl");
        let sources = ("data.eval_sources", json!([{"name_or_path": held_out, "split": "train"}]));
        let losses = ("loss_type", json!(["ipo", "sft"]));
        let changes = [&eval[..], &[pack, split, sources, losses]].concat();
        run(folder.path(), &env, name, &changes).evals.remove(0)
    };
    let (packed, single) = (of("packed", true), of("single", false));
    assert!(packed.num_samples < single.num_samples, "several pairs in a pack");
    let all = |eval: &sterna_train::EvalMetrics| {
        let means = eval.figures.iter().map(|(_, mean)| *mean);
        std::iter::once(eval.loss).chain(means).collect::<Vec<f64>>()
    };
    assert_same("packs", &all(&packed), &all(&single));
}

#[test]
fn preferences_on_two_ranks_are_those_of_one() {
    let losses = [("loss_type", json!(["sigmoid", "sft"])), ("loss_weights", json!([1.0, 0.3]))];
    two_ranks_as_one(&|_| losses.to_vec());
}

/// Two micro-batches of one rank against two ranks that share each sequence, and two that have one each; `changes` are of a folder.
pub(crate) fn two_ranks_as_one(changes: &dyn Fn(&Path) -> Vec<(&'static str, Value)>) {
    let two = ("gradient_accumulation_steps", json!(2));
    let zero = ("deepspeed", json!({"zero_optimization": {"stage": 3}}));
    let sp = vec![two.clone(), zero.clone(), ("sequence_parallel_size", json!(2))];
    for (name, variant) in [("sp 2", sp), ("dp 2", vec![zero])] {
        // Ranks join once.
        spawn_ranks(2, |rank: &TestRank| {
            let env = RankEnv::from_env().expect("the environment of a rank");
            let own = rank.folder.join(env.rank.to_string());
            let changes = changes(&own);
            let alone = [&changes[..], std::slice::from_ref(&two)].concat();
            let alone = figures(&run(&own, &RankEnv::single(), "plain", &alone));
            // They compute the reference model too.
            let cache = ("data.cache_dir", json!(own.join("cache of both")));
            let both = [&changes[..], &variant, &[cache]].concat();
            let both = run(&own, &env, "both", &both);
            assert!(both.num_references > 0);
            let both = figures(&both);
            assert_eq!(both.len(), alone.len());
            // Nothing is 0 to a relative difference; what is cut off at 0 is so on both sides.
            let is_zero =
                |values: &[f64]| values.iter().map(|value| *value == 0.0).collect::<Vec<_>>();
            assert_eq!(is_zero(&both), is_zero(&alone), "{both:?} {alone:?}");
            let rest = |values: Vec<f64>| {
                values.into_iter().filter(|value| *value != 0.0).collect::<Vec<_>>()
            };
            assert_same(name, &rest(both), &rest(alone));
        });
    }
}

/// Losses that compare with nothing: no reference model is computed.
#[test]
fn losses_without_a_reference_have_none() {
    for loss in [json!("orpo"), json!(["simpo", "sft"])] {
        spawn_ranks(2, |rank: &TestRank| {
            let env = RankEnv::from_env().expect("the environment of a rank");
            let own = rank.folder.join(env.rank.to_string());
            let changes = [("ref_model", Value::Null), ("loss_type", loss), ("beta", json!(2))];
            let longer = [
                ("train_iters", json!(12)),
                ("exit_iteration", json!(0)),
                ("eval_interval", json!(12)),
            ];
            let learnt = run(&own, &RankEnv::single(), "learnt", &[&changes[..], &longer].concat());
            let (first, last) = (&learnt.evals[0], &learnt.evals[learnt.evals.len() - 1]);
            assert!(last.loss < 0.9 * first.loss, "{} then {}", first.loss, last.loss);
            let alone = run(&own, &RankEnv::single(), "free", &changes);
            assert_eq!(alone.num_references, 0);
            let sp = [
                ("sequence_parallel_size", json!(2)),
                ("deepspeed", json!({"zero_optimization": {"stage": 3}})),
            ];
            let both = run(&own, &env, "free-sp", &[&changes[..], &sp].concat());
            assert_same("sp 2", &figures(&both), &figures(&alone));
        });
    }
}

#[test]
fn resumed_preferences_go_on_with_the_same_reference() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let env = RankEnv::single();
    let checkpoint = |dir: &str, steps: usize| {
        let entry = json!({"output_dir": folder.path().join(dir), "auto_resume": true, "save_end_of_training": true});
        [("checkpoint", entry), ("exit_iteration", json!(steps)), ("eval_on_start", json!(false))]
    };
    let whole = run(folder.path(), &env, "whole", &checkpoint("whole", 4));
    run(folder.path(), &env, "half", &checkpoint("parts", 2));
    let rest = run(folder.path(), &env, "rest", &checkpoint("parts", 4));
    assert_eq!(rest.num_references, 0, "the first run has computed them");
    assert_eq!(rest.iterations.len(), 2);
    for (resumed, step) in rest.iterations.iter().zip(&whole.iterations[2..]) {
        assert_eq!((resumed.loss, &resumed.figures), (step.loss, &step.figures));
    }
}

/// The file in which a run left the reference model's log-probabilities.
fn kept(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder.join("cache")).expect("a cache");
    let paths = entries.map(|entry| entry.expect("readable").path());
    let is_kept = |path: &std::path::PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("sterna-reference"))
    };
    paths.filter(is_kept).collect()
}

#[test]
fn what_a_reference_model_says_is_computed_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let env = RankEnv::single();
    let first = run(folder.path(), &env, "first", &[]);
    assert!(first.num_references > 0);
    let [file] = &kept(folder.path())[..] else { panic!("one file") };
    let of = |recorder: &Recorder| (figures(recorder), recorder.num_references);
    let again = (figures(&first), 0);
    assert_eq!(of(&run(folder.path(), &env, "again", &[])), again);
    // Another loss has the same reference.
    let other = run(folder.path(), &env, "hinge", &[("loss_type", json!("hinge"))]);
    assert_eq!(other.num_references, 0);

    // More steps have more rows, and those that are there are not computed.
    let longer = [("exit_iteration", json!(6)), ("eval_on_start", json!(false))];
    let longer = run(folder.path(), &env, "longer", &longer).num_references;
    assert!((1..first.num_references).contains(&longer), "{longer}");

    let bytes = fs::read(file).expect("readable");
    let flipped = [&bytes[..99], &[bytes[99] ^ 1], &bytes[100..]].concat();
    for damaged in [&flipped[..], &bytes[..bytes.len() - 1], &[]] {
        fs::write(file, damaged).expect("written");
        let repaired = run(folder.path(), &env, "damaged", &[]);
        assert_eq!(of(&repaired), (figures(&first), first.num_references));
        assert_eq!(of(&run(folder.path(), &env, "repaired", &[])), again);
    }
    assert_eq!(kept(folder.path()).len(), 1, "nothing is left beside it");

    let own = folder.path().join("model");
    let another = [("ref_model", json!({"name_or_path": own}))];
    let another = run(folder.path(), &env, "another", &another);
    assert_eq!((another.num_references, kept(folder.path()).len()), (first.num_references, 2));
}

/// Rows are what they are on any number of ranks.
#[test]
fn two_ranks_know_what_one_has_computed() {
    let two = ("gradient_accumulation_steps", json!(2));
    let sp = vec![two.clone(), ("sequence_parallel_size", json!(2))];
    for variant in [vec![], sp] {
        spawn_ranks(2, |rank: &TestRank| {
            let env = RankEnv::from_env().expect("the environment of a rank");
            let own = rank.folder.join(env.rank.to_string());
            let alone = std::slice::from_ref(&two);
            let alone = run(&own, &RankEnv::single(), "alone", alone);
            assert!(alone.num_references > 0);
            let both = run(&own, &env, "both", &variant);
            assert_eq!(both.num_references, 0);
            assert_same("both", &figures(&both), &figures(&alone));
        });
    }
}

#[test]
fn another_architecture_cannot_be_the_reference() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut recipe = recipe(folder.path());
    let other = folder.path().join("other");
    fs::create_dir_all(&other).expect("made");
    tiny_model(&other, &tiny_config("llama"), 8);
    recipe["ref_model"]["name_or_path"] = json!(other);
    let recipe = tiny::load(folder.path(), "other", &recipe);
    let result =
        train(&recipe, &RankEnv::single(), &TrainOptions::default(), &mut Recorder::default());
    assert!(matches!(result, Err(TrainError::OtherReference { .. })), "{result:?}");
}
