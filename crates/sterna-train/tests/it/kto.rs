//! Replies that are good or bad, without pairs: losses against TRL's, and runs however they are split and packed.

use std::{fs, path::Path};

use serde_json::{Value, json};
use sterna_comm::RankEnv;
use sterna_recipe::DpoLoss;
use sterna_train::{
    engine::Engine,
    objective::{Kto, Replies},
};

use crate::dpo::{
    assert_near, figure, fixture, numbers, options, run, twelve_steps_from_itself, two_ranks_as_one,
};
use crate::equivalence::assert_same;
use crate::objective::descend;
use crate::one_batch::OneBatch;

/// `golden/make_dpo_losses.py`: batches of replies by TRL's `KTOTrainer` in double precision, slopes by autograd.
#[test]
fn losses_of_replies_are_trls() {
    for case in &fixture("kto_batches.json") {
        let number = |key: &str| case[key].as_f64().unwrap();
        let loss_type =
            if case["loss_type"] == "kto" { DpoLoss::Kto } else { DpoLoss::ApoZeroUnpaired };
        let mut options = options(&[(loss_type, 1.0)], number("beta"), 0.0);
        options.desirable_weight = number("desirable_weight");
        options.undesirable_weight = number("undesirable_weight");
        let num_labels: Vec<usize> =
            numbers(&case["num_labels"]).into_iter().map(|num| num as usize).collect();
        let (policy, reference) = (numbers(&case["policy"]), numbers(&case["reference"]));
        let kl = case["figures"]["kl"].as_f64().unwrap();
        let replies = Replies::new(&options, &policy, &reference, &num_labels, kl);
        let num_replies = num_labels.iter().filter(|num| **num > 0).count() as f64;
        assert_near(replies.loss / num_replies, number("loss"), case);
        for (found, expected) in replies.slopes.iter().zip(numbers(&case["slopes"])) {
            assert_near(found / num_replies, expected, case);
        }
        let means = replies.figures.means(replies.figures.values());
        assert_eq!(means.len(), case["figures"].as_object().unwrap().len(), "{case}");
        for (name, mean) in means {
            assert_near(mean, case["figures"][name].as_f64().unwrap(), case);
        }
    }
}

/// The loss of a step down the gradient against the square of its norm. The distance of the models does not move with it.
#[test]
fn gradients_of_replies_are_the_slope_of_their_loss() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let of = OneBatch::new(folder.path());
    let num_labels = of.batch.num_labels_of_samples();
    let losses = of.engine(of.options()).forward(&of.batch).expect("computed").of_samples;
    let reference: Vec<f64> =
        losses.iter().enumerate().map(|(i, sample)| -sample.sum - i as f64 % 3.0).collect();
    let mut options = options(&[(DpoLoss::Kto, 0.8)], 0.3, 0.0);
    options.undesirable_weight = 1.5;
    let kto = Kto::new(&options, &of.batch, &reference, 0.7, 0.5);
    let mut engine = of.engine(of.options());
    let loss = engine.forward_backward(&of.batch, &kto).expect("computed").loss;
    let norm = engine.zero.gradient_norm(of.comm.world()).expect("one rank");
    let loss_of = |engine: &mut Engine<'_>| {
        let losses = engine.forward(&of.batch).expect("computed").of_samples;
        let policy: Vec<f64> = losses.iter().map(|sample| -sample.sum).collect();
        0.5 * Replies::new(&options, &policy, &reference, &num_labels, 0.7).loss
    };
    let by = 1e-3 / norm.powi(2);
    descend(&of, &mut engine, by);
    let below = loss_of(&mut engine);
    descend(&of, &mut engine, -2.0 * by);
    let above = loss_of(&mut engine);
    let slope = (above - below) / (2.0 * by);
    assert!((slope / norm.powi(2) - 1.0).abs() < 2e-2, "{slope} and {}", norm.powi(2));
    assert!(below < loss && loss < above, "{below} {loss} {above}");
}

/// Replies of different lengths, good and bad ones.
fn changes(folder: &Path, loss_type: &str) -> Vec<(&'static str, Value)> {
    let rows: Vec<String> = (0..120)
        .map(|i| {
            let is_good = i % 5 < 3;
            let text =
                if is_good { format!("{i} is {}", i * i % 17) } else { "no ".repeat(1 + i % 4) };
            json!({
                "prompt": [{"role": "user", "content": "why? ".repeat(1 + i % 3).trim()}],
                "completion": [{"role": "assistant", "content": text.trim()}],
                "label": is_good,
            })
            .to_string()
        })
        .collect();
    let path = folder.join("replies.jsonl");
    fs::create_dir_all(folder).expect("made");
    fs::write(&path, rows.join("\n")).expect("written");
    vec![
        ("data.sources", json!([{"name_or_path": path}])),
        ("loss_type", json!(loss_type)),
        ("undesirable_weight", json!(1.5)),
    ]
}

#[test]
fn good_replies_become_likelier_than_bad_ones() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let longer = twelve_steps_from_itself(folder.path());
    for loss in ["kto", "apo_zero_unpaired"] {
        let changes = [&changes(folder.path(), loss)[..], &longer].concat();
        let recorder = run(folder.path(), &RankEnv::single(), loss, &changes);
        let (first, last) = (&recorder.evals[0], &recorder.evals[recorder.evals.len() - 1]);
        // A model that is its own reference: half of what a reply counts at most.
        assert!(figure(&first.figures, "kl") < 1e-6);
        assert!(figure(&first.figures, "rewards/chosen").abs() < 1e-5);
        assert!((0.5..0.75).contains(&first.loss), "{}", first.loss);
        assert!(last.loss < 0.9 * first.loss, "{loss}: {} then {}", first.loss, last.loss);
        let reward = |name: &str| figure(&last.figures, name);
        assert!(reward("rewards/chosen") > reward("rewards/rejected") + 0.2, "{loss}");
        let has_kl = recorder.iterations.iter().any(|step| figure(&step.figures, "kl") > 0.0);
        assert_eq!(has_kl, loss == "kto");
    }
}

/// A pack sees neither of its other replies; the distance of the models is of other prompts there, so without it.
#[test]
fn packed_replies_are_single_replies() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let changes = changes(folder.path(), "apo_zero_unpaired");
    let held_out = json!([{"name_or_path": folder.path().join("replies.jsonl"), "split": "train"}]);
    let of = |name: &str, is_packed: bool| {
        let more = [
            ("data.pack_samples", json!(is_packed)),
            ("data.train_eval_split", json!([1.0, 0.0])),
            ("data.eval_sources", held_out.clone()),
            ("exit_iteration", json!(1)),
            ("eval_interval", json!(1)),
        ];
        run(folder.path(), &RankEnv::single(), name, &[&changes[..], &more].concat())
            .evals
            .remove(0)
    };
    let (packed, single) = (of("packed", true), of("single", false));
    assert!(packed.num_samples < single.num_samples, "several replies in a pack");
    let all = |eval: &sterna_train::EvalMetrics| {
        let means = eval.figures.iter().filter(|(name, _)| *name != "kl").map(|(_, mean)| *mean);
        std::iter::once(eval.loss).chain(means).collect::<Vec<f64>>()
    };
    assert_same("packs", &all(&packed), &all(&single));
}

/// The distance of the models too, which is of the prompts of each micro-batch and averaged over the step.
#[test]
fn replies_on_two_ranks_are_those_of_one() {
    two_ranks_as_one(&|folder| changes(folder, "kto"));
}
