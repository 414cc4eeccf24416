//! An objective whose weights depend on what the model says of all labels, against the slope of its loss.

use sterna_comm::{RankEnv, ReduceOp};
use sterna_data::MicroBatch;
use sterna_testkit::{TestRank, spawn_ranks};
use sterna_train::{
    TrainError,
    engine::Engine,
    objective::{Labels, Loss, Objective, Sft, TokenWeights},
};
use tch::{Kind, Tensor};

use crate::one_batch::OneBatch;

/// `(sum over labels of -ln p)^2 / 2`: the weight of each is the sum over all, those of other ranks too.
struct Squared;

impl Objective for Squared {
    fn token_weights(&self, labels: &mut Labels<'_>) -> Result<TokenWeights, TrainError> {
        let sum = -labels.log_probs()?.sum(Kind::Double);
        labels.sp.all_reduce_(&sum, ReduceOp::Sum)?;
        let sum = sum.double_value(&[]);
        let part = 1.0 / labels.sp.size() as f64;
        Ok(TokenWeights { weights: labels.uniform(sum), loss: Loss::Value(part * sum * sum / 2.0) })
    }

    fn share(&self, _: &MicroBatch) -> f64 {
        0.0
    }
}

/// A step of so much down the gradient.
pub(crate) fn descend(of: &OneBatch, engine: &mut Engine<'_>, by: f64) {
    for unit_idx in 0..engine.zero.num_units() {
        let params = engine.zero.gather(of.comm.world(), unit_idx).expect("one rank");
        let gradients = engine.zero.gradients(unit_idx).expect("one rank");
        for (param, gradient) in params.iter().zip(&gradients.views) {
            // One rank keeps weights whole: these are views of them.
            let gradient = gradient.as_ref().expect("all is trained");
            let _ = param.shallow_clone().g_sub_(&(gradient * by));
        }
    }
}

#[test]
fn weights_that_depend_on_the_model_give_the_gradient_of_the_loss() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let of = OneBatch::new(folder.path());
    let mut engine = of.engine(of.options());
    let loss = engine.forward_backward(&of.batch, &Squared).expect("computed").loss;
    let sum = engine.forward(&of.batch).expect("computed").loss;
    assert!((loss / (sum * sum / 2.0) - 1.0).abs() < 1e-12, "{loss} of {sum}");
    let norm = engine.zero.gradient_norm(of.comm.world()).expect("one rank");
    // Down and up again by a ten-thousandth of the loss, which fp32 tells apart to a thousandth.
    let by = 1e-4 * loss / norm.powi(2);
    let squared = |engine: &mut Engine<'_>| {
        let sum = engine.forward(&of.batch).expect("computed").loss;
        sum * sum / 2.0
    };
    descend(&of, &mut engine, by);
    let below = squared(&mut engine);
    descend(&of, &mut engine, -2.0 * by);
    let above = squared(&mut engine);
    let slope = (above - below) / (2.0 * by);
    assert!((slope / norm.powi(2) - 1.0).abs() < 5e-3, "{slope} against {}", norm.powi(2));
}

/// One weight for all labels gives a multiple of the gradient of their sum, whoever found the weight.
#[test]
fn a_weight_that_was_computed_counts_as_one_that_was_known() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let of = OneBatch::new(folder.path());
    let norm_of = |objective: &dyn Objective| {
        let mut engine = of.engine(of.options());
        engine.forward_backward(&of.batch, objective).expect("computed");
        engine.zero.gradient_norm(of.comm.world()).expect("one rank")
    };
    let sum = of.engine(of.options()).forward(&of.batch).expect("computed").loss;
    let (computed, known) = (norm_of(&Squared), norm_of(&Sft::new(sum)));
    assert!((computed / known - 1.0).abs() < 1e-6, "{computed} and {known}");
}

/// Loss and gradient norm of ranks that share the sequence, all of them together.
fn squared(of: &OneBatch) -> (f64, f64) {
    let mut engine = of.engine(of.options());
    let loss = engine.forward_backward(&of.batch, &Squared).expect("computed").loss;
    engine.zero.finish_gradients(of.comm.world()).expect("reduced");
    let loss = Tensor::from(loss);
    of.comm.sp().all_reduce_(&loss, ReduceOp::Sum).expect("reduced");
    let norm = engine.zero.gradient_norm(of.comm.world()).expect("reduced");
    (loss.double_value(&[]), norm)
}

#[test]
fn weights_that_depend_on_the_labels_of_two_ranks_are_those_of_one() {
    spawn_ranks(2, |rank: &TestRank| {
        let own = rank.folder.join(rank.rank.to_string());
        std::fs::create_dir(&own).expect("made");
        let alone = squared(&OneBatch::new(&own));
        let env = RankEnv::from_env().expect("the environment of a rank");
        let together = squared(&OneBatch::of_rank(&own, &env));
        assert!((together.0 / alone.0 - 1.0).abs() < 1e-5, "{together:?} and {alone:?}");
        assert!((together.1 / alone.1 - 1.0).abs() < 1e-5, "{together:?} and {alone:?}");
    });
}
