use sterna_testkit::assert_close;
use tch::{Kind, Tensor};

use crate::panic_message;

#[test]
fn within_tolerance_passes() {
    let expected = Tensor::from_slice(&[1.0, -100.0, 0.0, f64::NAN, f64::INFINITY]);
    let actual = Tensor::from_slice(&[1.001, -100.1, 0.0005, f64::NAN, f64::INFINITY]);
    assert_close("x", &actual, &expected, 1e-3, 5e-4);
}

#[test]
fn the_message_points_at_the_element_furthest_off() {
    // Element [1, 0] is off by 0.5 of 2, element [1, 2] by 1 of 1000: the first is further beyond its allowance.
    let expected = Tensor::from_slice(&[0.0, 1.0, 1.0, 2.0, 1.0, 1000.0]).view([2, 3]);
    let actual = Tensor::from_slice(&[0.0, 1.0, 1.0, 2.5, 1.0, 1001.0]).view([2, 3]);
    let text = panic_message(|| assert_close("dq", &actual, &expected, 1e-4, 0.0));
    assert_eq!(
        text,
        "`dq` [2, 3]: 2 of 6 elements differ\n  \
         furthest off at [1, 0]: actual 2.5e0, expected 2e0, absolute error 5e-1, relative error 2.5e-1\n  \
         largest absolute error 1e0; allowed 0e0 + 1e-4 * |expected|"
    );
}

#[test]
fn nan_and_infinity_match_only_themselves() {
    for (actual, expected) in
        [(f64::NAN, 1.0), (1.0, f64::NAN), (f64::INFINITY, 1.0), (1.0, f64::NEG_INFINITY)]
    {
        let [actual, expected] = [actual, expected].map(|x| Tensor::from_slice(&[x]));
        let text = panic_message(|| assert_close("x", &actual, &expected, 0.5, 0.5));
        assert!(text.contains("1 of 1 elements differ"), "{text}");
    }
}

#[test]
fn shapes_must_be_equal_and_dtypes_need_not() {
    let x = Tensor::from_slice(&[1.0, 2.0]);
    assert_close("x", &x.to_kind(Kind::BFloat16), &x, 0.0, 0.0);
    let text = panic_message(|| assert_close("x", &x.view([2, 1]), &x, 1.0, 1.0));
    assert!(text.contains("`x`: shape differs"), "{text}");
}
