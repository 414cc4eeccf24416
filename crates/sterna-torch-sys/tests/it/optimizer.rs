//! The fused AdamW step against `torch.optim.AdamW`.

use sterna_testkit::assert_close;
use sterna_torch_sys::{AdamW, Error, fused_adamw_};
use tch::{Kind, Tensor};

/// Gradient, then parameter and state after the step, for five parameters: printed by `golden/make_adamw.py`.
struct Step {
    grad: [f64; 5],
    param: [f64; 5],
    exp_avg: [f64; 5],
    exp_avg_sq: [f64; 5],
}

const FIRST_PARAM: [f64; 5] = [1.0, -2.0, 0.5, 1e-3, 3.0];
const STEPS: [Step; 3] = [
    Step {
        grad: [0.1, -0.2, 1e-7, 3.0, 0.0],
        param: [9.890_001e-1, -1.988_000_05, 4.985_909_091e-1, -9.000_996_667e-3, 2.997],
        exp_avg: [1e-2, -2e-2, 1e-8, 3e-1, 0.0],
        exp_avg_sq: [5e-4, 2e-3, 5e-16, 4.5e-1, 0.0],
    },
    Step {
        grad: [0.15, -0.45, -4.999_98e-2, 5.95, -0.05],
        param: [
            9.781_506_537e-1,
            -1.976_570_453,
            5.054_416_997e-1,
            -1.858_131_827e-2,
            3.001_352_395,
        ],
        exp_avg: [2.4e-2, -6.3e-2, -4.999_971e-3, 8.65e-1, -5e-3],
        exp_avg_sq: [1.6e-3, 1.2025e-2, 1.249_99e-4, 2.197_625, 1.25e-4],
    },
    Step {
        grad: [0.3, -0.6, 3e-7, 9.0, 0.0],
        param: [
            9.679_046_769e-1,
            -1.965_112_985,
            5.106_907_305e-1,
            -2.800_433_355e-2,
            3.004_105_564,
        ],
        exp_avg: [5.16e-2, -1.167e-1, -4.499_943_9e-3, 1.6785, -4.5e-3],
        exp_avg_sq: [6.02e-3, 2.942_375e-2, 1.187_490_5e-4, 6.137_743_75, 1.1875e-4],
    },
];
const ADAMW: AdamW = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, weight_decay: 0.1, eps: 1e-6 };

/// The five values, often enough that the kernel's vector part and its rest both see them.
fn repeated(values: &[f64; 5]) -> Tensor {
    Tensor::from_slice(values).to_kind(Kind::Float).repeat([13])
}

#[test]
fn three_steps_are_those_of_torch() {
    let param = repeated(&FIRST_PARAM);
    let (exp_avg, exp_avg_sq) = (param.zeros_like(), param.zeros_like());
    for (i, step) in STEPS.iter().enumerate() {
        let grad = repeated(&step.grad);
        fused_adamw_(&param, &grad, &exp_avg, &exp_avg_sq, i as i64 + 1, &ADAMW).unwrap();
        // fp32 rounds each of about ten operations to 6e-8.
        for (name, actual, expected) in [
            ("param", &param, &step.param),
            ("exp_avg", &exp_avg, &step.exp_avg),
            ("exp_avg_sq", &exp_avg_sq, &step.exp_avg_sq),
            ("grad", &grad, &step.grad),
        ] {
            assert_close(&format!("{name} {i}"), actual, &repeated(expected), 6e-7, 1e-9);
        }
    }
}

#[test]
fn tensors_that_are_not_alike_are_refused() {
    let param = repeated(&FIRST_PARAM);
    for (other, found) in [
        (Tensor::from_slice(&[1.0_f32]), "`grad` is [1] Float"),
        (param.to_kind(Kind::BFloat16), "`grad` is [65] BFloat16"),
        (Tensor::stack(&[&param, &param], 1).select(1, 0), "`grad` is [65] Float, not contiguous"),
    ] {
        let error = fused_adamw_(&param, &other, &param, &param, 1, &ADAMW).unwrap_err();
        assert!(matches!(error, Error::Operand { .. }), "{error}");
        assert!(error.to_string().contains(found), "{error}");
    }
}
