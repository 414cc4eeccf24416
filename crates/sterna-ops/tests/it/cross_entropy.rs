//! The loss against libtorch's own cross-entropy under autograd.

use sterna_ops::cross_entropy::{IGNORE_INDEX, forward, forward_backward};
use tch::{Kind, Reduction, Tensor};

use crate::oracle::{AUTOGRAD, DIFFERENCES, assert_close, autograd, differences, random};

/// A third of the tokens have no label.
fn labels(len: i64, vocab_size: i64) -> Tensor {
    let labels: Vec<i64> = (0..len)
        .map(|row| if row % 3 == 1 { IGNORE_INDEX } else { (row * 7) % vocab_size })
        .collect();
    Tensor::from_slice(&labels)
}

fn plain(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.cross_entropy_loss(labels, None::<Tensor>, Reduction::Sum, IGNORE_INDEX, 0.0)
}

/// `[s]`.
fn each(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.cross_entropy_loss(labels, None::<Tensor>, Reduction::None, IGNORE_INDEX, 0.0)
}

fn ones(labels: &Tensor) -> Tensor {
    labels.ones_like().to_kind(Kind::Double)
}

#[test]
fn loss_and_gradient_in_double_precision() {
    let (logits, labels) = (random(&[10, 7], 1) * 5.0, labels(10, 7));
    let expected = each(&logits, &labels);
    let losses = forward(&logits, &labels);
    assert_close("losses", &losses.of_rows, &expected, AUTOGRAD);
    assert_close("sum", &losses.sum, &expected.sum(Kind::Double), AUTOGRAD);
    let (d_logits, weights) = (logits.copy(), random(&[10], 2));
    let losses = forward_backward(&d_logits, &labels, &weights);
    assert_close("losses", &losses.of_rows, &expected, AUTOGRAD);
    assert_close("sum", &losses.sum, &expected.sum(Kind::Double), AUTOGRAD);
    assert_close(
        "d_logits",
        &d_logits,
        &autograd(|x| each(&x[0], &labels), &[&logits], &weights)[0],
        AUTOGRAD,
    );
    assert_close(
        "d_logits",
        &d_logits,
        &differences(|x| each(&x[0], &labels), &[&logits], &weights)[0],
        DIFFERENCES,
    );
}

/// The gradient is computed from the logits as they are and rounded once: at most half a unit in the last of 8 bits.
#[test]
fn bf16_logits_have_a_gradient_rounded_once() {
    // More than one block of rows.
    let (len, vocab_size) = (300, 5000);
    let logits = (random(&[len, vocab_size], 3) * 8.0).to_kind(Kind::BFloat16);
    let labels = labels(len, vocab_size);
    let exact = logits.to_kind(Kind::Double);
    let expected_loss = plain(&exact, &labels);
    let expected = &autograd(|x| plain(&x[0], &labels), &[&exact], &Tensor::from(1.0))[0];
    let loss = forward(&logits, &labels).sum;
    assert_close("loss", &(loss / &expected_loss), &Tensor::from(1.0), 1e-6);
    let _ = forward_backward(&logits, &labels, &ones(&labels));
    let error = (logits.to_kind(Kind::Double) - expected).abs() / (expected.abs() + 1e-30);
    let worst = error.max().double_value(&[]);
    assert!(worst < 1.0 / 256.0 * 1.01, "relative error {worst}");
}

#[test]
fn no_label_at_all_is_no_loss_and_no_gradient() {
    let logits = random(&[4, 3], 1);
    let labels = Tensor::full([4], IGNORE_INDEX, (Kind::Int64, tch::Device::Cpu));
    let loss = forward_backward(&logits, &labels, &ones(&labels)).sum;
    assert_close("loss", &loss, &Tensor::from(0.0), 0.0);
    assert_close("d_logits", &logits, &logits.zeros_like(), 0.0);
}
