//! Ops against double precision: each on random inputs, forward and backward, on the device that is measured.
//!
//! What an op should give is written here once more, as plain expressions in double precision on the CPU under autograd. Both get
//! the same inputs, those that the dtype can hold. The error is `|actual - expected| / |expected|` in the l2 norm.

mod attention;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;
use serde_json::json;
use sterna_arch::RopeLayout;
use sterna_ops::cross_entropy::{self, IGNORE_INDEX};
use sterna_ops::rope::{self, RopeTable};
use sterna_ops::{linear, rms_norm, swiglu};
use sterna_torch_sys::{random, vjp};
use tch::{Device, Kind, Tensor};

use crate::context::Context;
use crate::record::{Findings, Table};

/// The dtypes that models train in.
const KINDS: [Kind; 2] = [Kind::BFloat16, Kind::Float];

/// Why the bounds are what they are, for the reader of the report.
const BOUNDS: &str = "Bounds. bf16 rounds by at most 2^-9 (2.0e-3). 6e-3 is three roundings one after the other, the most that a definition here \
has between its inputs and its results; a matrix product is rounded once after an fp32 sum: 3e-3; attention rounds probabilities and their \
gradients before they are multiplied, and its output before the backward reads it: 1.2e-2. fp32 rounds by at most 6e-8, exponentials and \
rotary angles of many radians lose more: 1e-5, which a product in tf32 (3e-4) would not meet.";

/// One result of one op.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Check {
    op: String,
    kind: Kind,
    result: &'static str,
    error: f64,
    bound: f64,
}

/// The largest errors that are right, by what an op is made of.
#[derive(Debug, Clone, Copy)]
enum Bound {
    /// A few roundings.
    Pointwise,
    /// One after a sum.
    Product,
    Attention,
}

impl Bound {
    fn of(self, kind: Kind) -> f64 {
        match (kind, self) {
            (Kind::BFloat16, Self::Pointwise) => 6e-3,
            (Kind::BFloat16, Self::Product) => 3e-3,
            (Kind::BFloat16, Self::Attention) => 1.2e-2,
            _ => 1e-5,
        }
    }
}

/// Collects the checks of one dtype.
pub(crate) struct Checks {
    device: Device,
    is_tiny: bool,
    kind: Kind,
    seed: i64,
    found: Vec<Check>,
    /// Shapes that the op under check was given.
    operands: RefCell<Vec<String>>,
    /// Ops that ended in a panic, with its words.
    panics: Vec<String>,
}

impl Checks {
    fn new(device: Device, is_tiny: bool, kind: Kind) -> Self {
        Self {
            device,
            is_tiny,
            kind,
            seed: 0,
            found: Vec::new(),
            operands: RefCell::default(),
            panics: Vec::new(),
        }
    }

    /// Normal numbers times `scale` that the dtype can hold, in double precision on the CPU. Each call draws others.
    fn random(&mut self, size: &[i64], scale: f64) -> Tensor {
        self.seed += 1;
        tch::manual_seed(self.seed);
        let values = Tensor::randn(size, (Kind::Float, Device::Cpu)) * scale;
        values.to_kind(self.kind).to_kind(Kind::Double)
    }

    /// As an op gets it.
    fn given(&self, x: &Tensor) -> Tensor {
        self.operands.borrow_mut().push(format!("{:?}", x.size()));
        x.to_device(self.device).to_kind(self.kind)
    }

    /// Runs `check` and keeps its words if it panics.
    fn protected(&mut self, name: &str, check: impl FnOnce(&mut Self)) {
        self.operands.take();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(self))) {
            let words = panic.downcast_ref::<String>().cloned();
            let words = words.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
            let kind = kind_name(self.kind);
            // tch quotes libtorch's text.
            let words = words.unwrap_or_default().replace("\\n", "\n");
            let operands = self.operands.take().join(" ");
            self.panics.push(format!("{name}, {kind}, given {operands}: {words}"));
        }
    }

    fn compare(&mut self, op: &str, bound: Bound, results: &[(&'static str, &Tensor, &Tensor)]) {
        for (result, actual, expected) in results {
            self.found.push(Check {
                op: op.to_owned(),
                kind: self.kind,
                result,
                error: relative_error(actual, expected),
                bound: bound.of(self.kind),
            });
        }
    }
}

/// `|actual - expected| / |expected|`, infinite where a value is not finite or the shapes differ.
fn relative_error(actual: &Tensor, expected: &Tensor) -> f64 {
    if actual.size() != expected.size() {
        return f64::INFINITY;
    }
    let norm = |x: &Tensor| x.square().sum(Kind::Double).sqrt().double_value(&[]);
    let actual = actual.to_device(Device::Cpu).to_kind(Kind::Double);
    let error = norm(&(actual - expected)) / norm(expected);
    if error.is_finite() { error } else { f64::INFINITY }
}

/// The value of `function` and the gradients of its inputs, by autograd.
fn with_gradients(
    function: impl Fn(&[Tensor]) -> Tensor,
    inputs: &[&Tensor],
    d_y: Option<&Tensor>,
) -> (Tensor, Vec<Tensor>) {
    let leaves: Vec<Tensor> = inputs.iter().map(|x| x.detach().set_requires_grad(true)).collect();
    let y = function(&leaves);
    let ones = y.ones_like();
    let leaves: Vec<&Tensor> = leaves.iter().collect();
    let gradients = vjp(&[&y], &[d_y.unwrap_or(&ones)], &leaves, false)
        .expect("plain expressions have gradients");
    let gradients = gradients.into_iter().zip(inputs);
    let gradients = gradients.map(|(d_x, x)| d_x.unwrap_or_else(|| x.zeros_like())).collect();
    (y.detach(), gradients)
}

/// Checks every op but attention in both dtypes.
///
/// # Errors
///
/// None: what is wrong is among the findings.
pub fn run(context: &Context) -> Result<Findings> {
    let checks = [&FUSED[..], &[("linear", linear_checks)]].concat();
    Ok(findings(&run_all(context.device, context.is_tiny, &checks)))
}

/// Checks attention by each kernel, in a section of its own: what a kernel breaks for good costs no other op.
///
/// # Errors
///
/// As [`run`].
pub fn run_attention(context: &Context) -> Result<Findings> {
    let checks: [Op; 1] = [("attention", attention::checks)];
    Ok(findings(&run_all(context.device, context.is_tiny, &checks)))
}

/// Runs every fused kernel at the sizes of a tiny run, for memory checkers, and returns what was wrong.
pub fn fused(device: Device) -> Vec<String> {
    findings(&run_all(device, true, &FUSED)).failures
}

/// The name of an op, and what checks it.
type Op = (&'static str, fn(&mut Checks));

/// The ops that have kernels of ours.
const FUSED: [Op; 5] = [
    ("cross-entropy", cross_entropy_checks),
    ("rotary", rope_checks),
    ("SwiGLU", swiglu_checks),
    ("RMSNorm", rms_norm_checks),
    ("normal numbers", normal_checks),
];

/// Runs some checks in both dtypes. One that panics, as an op does that libtorch refuses, costs only itself.
fn run_all(device: Device, is_tiny: bool, ops: &[Op]) -> Vec<Checks> {
    let of_kind = |kind| {
        let mut checks = Checks::new(device, is_tiny, kind);
        for (name, check) in ops {
            checks.protected(name, check);
        }
        checks
    };
    KINDS.into_iter().map(of_kind).collect()
}

fn cross_entropy_checks(checks: &mut Checks) {
    let (len, vocab) = if checks.is_tiny { (9, 1031) } else { (1024, 128_256) };
    let logits = checks.random(&[len, vocab], 4.0);
    let labels: Vec<i64> =
        (0..len).map(|row| if row % 3 == 1 { IGNORE_INDEX } else { row * 7919 % vocab }).collect();
    let labels = Tensor::from_slice(&labels);
    let scale = 1.0 / 512.0;
    let (expected, gradients) = with_gradients(
        |x| {
            let log_p = x[0].log_softmax(1, Kind::Double);
            let is_label = labels.not_equal(IGNORE_INDEX);
            let index = labels.where_scalarother(&is_label, 0).unsqueeze(1);
            -(log_p.gather(1, &index, false).squeeze_dim(1) * is_label).sum(Kind::Double)
        },
        &[&logits],
        None,
    );
    let d_logits = &gradients[0] * scale;
    let given = checks.given(&logits);
    let labels_given = labels.to_device(checks.device);
    let loss = cross_entropy::forward(&given, &labels_given).sum;
    let weights = labels_given.ones_like().to_kind(Kind::Double) * scale;
    let loss_of_both = cross_entropy::forward_backward(&given, &labels_given, &weights).sum;
    let results = [
        ("loss", &loss, &expected),
        ("loss", &loss_of_both, &expected),
        ("d_logits", &given, &d_logits),
    ];
    checks.compare("cross-entropy", Bound::Pointwise, &results);
}

fn rope_checks(checks: &mut Checks) {
    let len = if checks.is_tiny { 33 } else { 4096 };
    let (heads, dim) = (8_i64, 128_i64);
    let x = checks.random(&[len, heads, dim], 1.0);
    let d_y = checks.random(&[len, heads, dim], 1.0);
    let inv_freq: Vec<f32> =
        (0..dim / 2).map(|i| 500_000_f32.powf(-2.0 * i as f32 / dim as f32)).collect();
    let positions = Tensor::arange(len, (Kind::Int64, Device::Cpu)) * 31;
    // In single precision, as transformers computes angles: at position 100,000 double precision has other ones.
    let angles = positions.to_kind(Kind::Float).outer(&Tensor::from_slice(&inv_freq));
    let angles = Tensor::cat(&[&angles, &angles], 1).unsqueeze(1).to_kind(Kind::Double);
    let (y, gradients) = with_gradients(
        |x| {
            let halves = x[0].chunk(2, 2);
            let rotated = Tensor::cat(&[&-&halves[1], &halves[0]], 2);
            &x[0] * angles.cos() + rotated * angles.sin()
        },
        &[&x],
        Some(&d_y),
    );
    let table = RopeTable::new(
        &positions.to_device(checks.device),
        RopeLayout::Halves,
        &inv_freq,
        1.0,
        checks.kind,
    );
    let actual = rope::forward(&checks.given(&x), &table);
    let d_x = rope::backward(&checks.given(&d_y), &table);
    let results = [("y", &actual, &y), ("d_x", &d_x, &gradients[0])];
    checks.compare("rotary", Bound::Pointwise, &results);
}

fn swiglu_checks(checks: &mut Checks) {
    let (len, width) = if checks.is_tiny { (33, 65) } else { (2048, 14_336) };
    let [gate, up, d_y] = [3.0, 1.0, 1.0].map(|scale| checks.random(&[len, width], scale));
    let (y, gradients) =
        with_gradients(|x| &x[0] * x[0].sigmoid() * &x[1], &[&gate, &up], Some(&d_y));
    let [gate, up, d_y] = [&gate, &up, &d_y].map(|x| checks.given(x));
    let actual = swiglu::forward(&gate, &up);
    let (d_gate, d_up) = swiglu::backward(&d_y, &gate, &up);
    let results =
        [("y", &actual, &y), ("d_gate", &d_gate, &gradients[0]), ("d_up", &d_up, &gradients[1])];
    checks.compare("SwiGLU", Bound::Pointwise, &results);
}

fn rms_norm_checks(checks: &mut Checks) {
    let (len, width) = if checks.is_tiny { (33, 96) } else { (4096, 4096) };
    let eps = 1e-5;
    let x = checks.random(&[len, width], 2.0);
    let weight = checks.random(&[width], 1.0);
    let d_y = checks.random(&[len, width], 1.0);
    let (y, gradients) = with_gradients(
        |x| {
            let mean_square = x[0].square().mean_dim(-1_i64, true, Kind::Double);
            &x[1] * (&x[0] * (mean_square + eps).rsqrt())
        },
        &[&x, &weight],
        Some(&d_y),
    );
    let mut d_weight = Tensor::zeros(width, (Kind::Float, checks.device));
    let [x, weight, d_y] = [&x, &weight, &d_y].map(|x| checks.given(x));
    let actual = rms_norm::forward(&x, &weight, eps);
    let d_x = rms_norm::backward(&d_y, &x, &weight, eps, Some(&mut d_weight));
    let results =
        [("y", &actual, &y), ("d_x", &d_x, &gradients[0]), ("d_weight", &d_weight, &gradients[1])];
    checks.compare("RMSNorm", Bound::Pointwise, &results);
}

/// Not within a bound: random weights are the same bits wherever they are drawn.
fn normal_checks(checks: &mut Checks) {
    let len = if checks.is_tiny { 10_007 } else { 16 << 20 };
    let draw = |device| {
        let mut x = Tensor::empty([len], (checks.kind, device));
        // Across the index at which 32 bits end.
        random::fill_normal(&mut x, 0x1234_5678_9abc_def0, (1 << 32) - 5_000, 0.02)
            .expect("its operands are as they should be");
        x.to_device(Device::Cpu)
    };
    let (actual, expected) = (draw(checks.device), draw(Device::Cpu));
    let others = actual.not_equal_tensor(&expected).sum(Kind::Int64).int64_value(&[]);
    assert!(others == 0, "{others} of {len} numbers have other bits than the host's");
    checks.compare("normal numbers", Bound::Pointwise, &[("x", &actual, &expected)]);
}

fn linear_checks(checks: &mut Checks) {
    let (len, inner, outer) = if checks.is_tiny { (33, 64, 48) } else { (2048, 4096, 6144) };
    let x = checks.random(&[len, inner], 1.0);
    let weight = checks.random(&[outer, inner], 0.02);
    let bias = checks.random(&[outer], 1.0);
    let d_y = checks.random(&[len, outer], 1.0);
    let (y, gradients) =
        with_gradients(|x| x[0].mm(&x[1].tr()) + &x[2], &[&x, &weight, &bias], Some(&d_y));
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, checks.device));
    let (mut d_weight, mut d_bias) = (zeros(&[outer, inner]), zeros(&[outer]));
    let [x, weight, bias, d_y] = [&x, &weight, &bias, &d_y].map(|x| checks.given(x));
    let actual = linear::forward(&x, &weight, Some(&bias));
    let d_x = linear::backward_input(&d_y, &weight);
    linear::backward_params(&d_y, &x, Some(&mut d_weight), Some(&mut d_bias));
    let results = [
        ("y", &actual, &y),
        ("d_x", &d_x, &gradients[0]),
        ("d_weight", &d_weight, &gradients[1]),
        ("d_bias", &d_bias, &gradients[2]),
    ];
    checks.compare("linear", Bound::Product, &results);
}

fn kind_name(kind: Kind) -> &'static str {
    if kind == Kind::BFloat16 { "bf16" } else { "fp32" }
}

fn findings(all: &[Checks]) -> Findings {
    let mut table = Table::new(&["op", "dtype", "errors", "bound", ""]);
    let mut findings = Findings { notes: vec![BOUNDS.to_owned()], ..Findings::default() };
    let mut data = Vec::new();
    for panic in all.iter().flat_map(|checks| &checks.panics) {
        findings.fail(panic);
    }
    let found = all.iter().flat_map(|checks| checks.found.chunk_by(|a, b| a.op == b.op));
    for of_op in found {
        let (name, kind, bound) = (&of_op[0].op, kind_name(of_op[0].kind), of_op[0].bound);
        for Check { result, error, .. } in of_op {
            // JSON has no infinity; such an error is null.
            data.push(json!({"op": name, "dtype": kind, "result": result, "error": error, "bound": bound}));
            if *error > bound {
                let line =
                    format!("{name}, {kind}, {result}: error {error:.1e} is above {bound:.1e}");
                findings.fail(&line);
            }
        }
        let errors: Vec<String> =
            of_op.iter().map(|check| format!("{} {:.1e}", check.result, check.error)).collect();
        let is_right = of_op.iter().all(|check| check.error <= bound);
        table.rows.push(vec![
            name.clone(),
            kind.to_owned(),
            errors.join(", "),
            format!("{bound:.1e}"),
            if is_right { "ok" } else { "WRONG" }.to_owned(),
        ]);
    }
    findings.tables = vec![table];
    findings.data = json!(data);
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_relative_and_never_hidden_by_a_nan_or_a_shape() {
        let expected = Tensor::from_slice(&[3.0, 4.0]);
        let error = |values: &[f64]| relative_error(&Tensor::from_slice(values), &expected);
        assert!((error(&[3.0, 4.5]) - 0.1).abs() < 1e-12);
        assert!(error(&[3.0, f64::NAN]).is_infinite());
        assert!(error(&[3.0]).is_infinite());
    }
}
