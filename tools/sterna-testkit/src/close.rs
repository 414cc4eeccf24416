//! Comparison of tensors within a tolerance.

use tch::{Kind, Tensor};

/// Asserts that `|actual - expected| <= atol + rtol * |expected|` for every element, and that the shapes are equal.
///
/// The comparison is done in fp64, whatever the dtypes. A NaN matches a NaN only, an infinity itself only.
///
/// # Panics
///
/// If they differ. The message has `name`, how many elements differ, and the one that is furthest off.
#[track_caller]
pub fn assert_close(name: &str, actual: &Tensor, expected: &Tensor, rtol: f64, atol: f64) {
    assert_eq!(actual.size(), expected.size(), "`{name}`: shape differs from the expected one");
    let shape = actual.size();
    let [actual, expected] = [actual, expected].map(values);
    // How many times the error is what is allowed; zero for an element that is good.
    let excess = |(a, e): (&f64, &f64)| {
        let same_special =
            !e.is_finite() && (a.to_bits() == e.to_bits() || a.is_nan() && e.is_nan());
        let (error, allowed) = ((a - e).abs(), atol + rtol * e.abs());
        if same_special || (e.is_finite() && error <= allowed) {
            0.0
        } else if error.is_finite() {
            error / allowed
        } else {
            f64::INFINITY
        }
    };
    let excesses: Vec<f64> = actual.iter().zip(&expected).map(excess).collect();
    let num_wrong = excesses.iter().filter(|&&excess| excess > 0.0).count();
    if num_wrong == 0 {
        return;
    }
    let (worst, _) =
        excesses.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("one is wrong");
    let (a, e) = (actual[worst], expected[worst]);
    let max_abs = actual.iter().zip(&expected).map(|(a, e)| (a - e).abs()).fold(0.0_f64, f64::max);
    panic!(
        "`{name}` {shape:?}: {num_wrong} of {} elements differ\n  \
         furthest off at {:?}: actual {a:e}, expected {e:e}, absolute error {:e}, relative error {:e}\n  \
         largest absolute error {max_abs:e}; allowed {atol:e} + {rtol:e} * |expected|",
        excesses.len(),
        position(worst, &shape),
        (a - e).abs(),
        (a - e).abs() / e.abs(),
    );
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.detach().to_device(tch::Device::Cpu).to_kind(Kind::Double).reshape([-1]);
    Vec::try_from(flat).expect("a flat fp64 tensor is a vector")
}

/// The indices of the element with number `flat` in row-major order.
fn position(flat: usize, shape: &[i64]) -> Vec<usize> {
    let mut rest = flat;
    let mut position: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&dim| {
            let index = rest % dim as usize;
            rest /= dim as usize;
            index
        })
        .collect();
    position.reverse();
    position
}
