//! Vector-Jacobian products against derivatives worked out by hand.

use sterna_torch_sys::{Error, vjp};
use tch::{Device, Kind, Tensor};

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor).unwrap()
}

#[test]
fn cotangents_weigh_every_output() {
    let (x, y) = (leaf(&[1.0, 2.0, 3.0]), leaf(&[4.0, 5.0, 6.0]));
    let (product, square) = (&x * &y, &x * &x);
    let (d_product, d_square) =
        (Tensor::from_slice(&[1.0, 10.0, 100.0]), Tensor::from_slice(&[0.5, 0.0, -1.0]));
    let grads = vjp(&[&product, &square], &[&d_product, &d_square], &[&x, &y], false).unwrap();
    // dx = d_product * y + d_square * 2x = [4 + 1, 50 + 0, 600 - 6]; dy = d_product * x.
    assert_eq!(values(grads[0].as_ref().unwrap()), [5.0, 50.0, 594.0]);
    assert_eq!(values(grads[1].as_ref().unwrap()), [1.0, 20.0, 300.0]);
    assert!(!x.grad().defined(), "nothing is accumulated in the leaf");
}

#[test]
fn an_unused_input_has_no_gradient() {
    let (x, unused) = (leaf(&[1.0]), leaf(&[2.0]));
    let y = &x * 3.0;
    let grads = vjp(&[&y], &[&Tensor::from_slice(&[2.0])], &[&unused, &x], false).unwrap();
    assert!(grads[0].is_none());
    assert_eq!(values(grads[1].as_ref().unwrap()), [6.0]);
}

#[test]
fn a_retained_graph_serves_twice_and_a_freed_one_is_an_error() {
    let x = leaf(&[3.0]);
    let y = &x * &x;
    let one = Tensor::from_slice(&[1.0]);
    for retain_graph in [true, false] {
        let grads = vjp(&[&y], &[&one], &[&x], retain_graph).unwrap();
        assert_eq!(values(grads[0].as_ref().unwrap()), [6.0]);
    }
    let error = vjp(&[&y], &[&one], &[&x], false).unwrap_err();
    assert!(
        matches!(&error, Error::Torch { message } if message.contains("second time")),
        "{error}"
    );
}

#[test]
fn works_under_no_grad_and_keeps_the_dtype() {
    let x = Tensor::ones([4], (Kind::BFloat16, Device::Cpu)).set_requires_grad(true);
    let y = &x * 2.0;
    let _guard = tch::no_grad_guard();
    let grads = vjp(&[&y], &[&y.ones_like()], &[&x], false).unwrap();
    let grad = grads[0].as_ref().unwrap();
    assert_eq!((grad.kind(), grad.requires_grad()), (Kind::BFloat16, false));
    assert_eq!(values(&grad.to_kind(Kind::Double)), [2.0; 4]);
}

#[test]
fn a_wrong_shape_is_an_error_that_names_both() {
    let x = leaf(&[1.0, 2.0]);
    let y = &x * 2.0;
    let error = vjp(&[&y], &[&Tensor::from_slice(&[1.0, 1.0, 1.0])], &[&x], false).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("[3]") && text.contains("[2]"), "{text}");
    assert!(!text.contains("frame #"), "no C++ stack in the message: {text}");
}

#[test]
fn an_allocation_that_fails_is_out_of_memory() {
    // One element of storage seen 2^46 times; the gradient of a selection from it has 2^48 bytes, more than can be addressed.
    let x = Tensor::zeros([1], (Kind::Float, Device::Cpu)).expand([1 << 46], false);
    let x = x.set_requires_grad(true);
    let y = x.get(0);
    let error = vjp(&[&y], &[&y.ones_like()], &[&x], false).unwrap_err();
    assert!(matches!(&error, Error::OutOfMemory { .. }), "{error}");
    assert!(error.hint().is_some());
}
