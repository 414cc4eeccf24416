//! Rates of matrix products in bf16 and fp32, and errors of products and attention in bf16 against double precision.
//!
//! ```text
//! OMP_NUM_THREADS=1 cargo bench -p sterna-ops --bench products
//! OMP_NUM_THREADS=1 STERNA_BF16_PRODUCTS=fp32 cargo bench -p sterna-ops --bench products
//! ```
#![expect(clippy::print_stdout, reason = "a benchmark's result is what it prints")]

use std::time::Instant;

use sterna_ops::attention::{AttentionSpec, Documents, Implementation, backward, forward};
use sterna_ops::linear;
use sterna_torch_sys::products::Bf16Products;
use tch::{Device, Kind, Tensor};

/// Tokens of a tile, inputs and outputs of SmolLM2-135M's `gate_proj`.
const SHAPE: [i64; 3] = [1024, 576, 1536];

fn main() {
    let products = Bf16Products::of_this_process().expect("a variable that is set well");
    println!("{} threads; products of bf16 in {products}", tch::get_num_threads());
    rates();
    errors_of_products();
    errors_of_attention();
}

fn operands(kind: Kind) -> [Tensor; 3] {
    tch::manual_seed(0);
    let [s, i, o] = SHAPE;
    [[s, i], [o, i], [s, o]].map(|shape| Tensor::randn(shape, (kind, Device::Cpu)))
}

fn rates() {
    println!(
        "\nGFLOP/s of {SHAPE:?}, best of 2 s each    y = x w^T   d_x = d_y w   d_w += d_y^T x"
    );
    for (name, kind, is_ours) in [
        ("libtorch, fp32", Kind::Float, false),
        ("libtorch, bf16", Kind::BFloat16, false),
        ("sterna, bf16", Kind::BFloat16, true),
    ] {
        let [x, weight, d_y] = operands(kind);
        let mut d_weight = Tensor::zeros(weight.size(), (Kind::Float, Device::Cpu));
        let of_y = rate(|| {
            drop(if is_ours { linear::forward(&x, &weight, None) } else { x.mm(&weight.tr()) });
        });
        let of_d_x = rate(|| {
            drop(if is_ours { linear::backward_input(&d_y, &weight) } else { d_y.mm(&weight) });
        });
        let of_d_weight = rate(|| {
            if is_ours {
                linear::backward_params(&d_y, &x, Some(&mut d_weight), None);
            } else {
                let _ = d_weight.g_add_(&d_y.tr().mm(&x));
            }
        });
        println!("{name:40} {of_y:12.1} {of_d_x:13.1} {of_d_weight:16.1}");
    }
}

/// GFLOP/s of the fastest of the runs of two seconds.
fn rate(mut run: impl FnMut()) -> f64 {
    run();
    let (started, mut best) = (Instant::now(), f64::INFINITY);
    while started.elapsed().as_secs_f64() < 2.0 {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * SHAPE.iter().product::<i64>() as f64 / best / 1e9
}

fn exact(x: &Tensor) -> Tensor {
    x.to_kind(Kind::Double)
}

/// Root mean square of the differences, relative to that of the values.
fn error(actual: &Tensor, expected: &Tensor) -> f64 {
    let rms = |x: &Tensor| x.square().mean(None::<Kind>).double_value(&[]).sqrt();
    rms(&(exact(actual) - expected)) / rms(expected)
}

fn errors_of_products() {
    let [x, weight, d_y] = operands(Kind::BFloat16);
    let (y, d_x) = (exact(&x).mm(&exact(&weight).tr()), exact(&d_y).mm(&exact(&weight)));
    let d_w = exact(&d_y).tr().mm(&exact(&x));
    let mut d_weight = Tensor::zeros(weight.size(), (Kind::Float, Device::Cpu));
    linear::backward_params(&d_y, &x, Some(&mut d_weight), None);
    println!("\nerrors of products, root mean square relative        y        d_x        d_w");
    println!(
        "{:45} {:.2e}   {:.2e}   {:.2e}",
        "libtorch",
        error(&x.mm(&weight.tr()), &y),
        error(&d_y.mm(&weight), &d_x),
        error(&d_y.tr().mm(&x), &d_w)
    );
    println!(
        "{:45} {:.2e}   {:.2e}   {:.2e}",
        "sterna",
        error(&linear::forward(&x, &weight, None), &y),
        error(&linear::backward_input(&d_y, &weight), &d_x),
        error(&d_weight, &d_w)
    );
}

/// One document of 1,100 tokens, 6 heads of 64 on 2.
fn errors_of_attention() {
    const LEN: i64 = 1100;
    let documents = Documents::new(std::iter::once(0..LEN).collect());
    let spec = AttentionSpec {
        kv_of_q: vec![0, 0, 0, 1, 1, 1],
        scale: 0.125,
        softcap: None,
        sliding_window: None,
        implementation: Implementation::Automatic,
    };
    let inputs = [6, 2, 2, 6].map(|heads| {
        (Tensor::randn([LEN, heads, 64], (Kind::Float, Device::Cpu)) * 1.5).to_kind(Kind::BFloat16)
    });
    let run = |kind: Kind| {
        let [q, k, v, d_o] = inputs.each_ref().map(|x| x.to_kind(kind));
        let (o, lse) = forward(&q, &k, &v, &spec, &documents);
        let (d_q, d_k, d_v) = backward(&d_o, &q, &k, &v, &o, &lse, &spec, &documents);
        [o, lse, d_q, d_k, d_v]
    };
    let (expected, actual) = (run(Kind::Double), run(Kind::BFloat16));
    println!("\nerrors of attention, {LEN} tokens");
    for (name, (actual, expected)) in
        ["o", "lse", "d_q", "d_k", "d_v"].iter().zip(actual.iter().zip(&expected))
    {
        println!("  {name:4} {:.2e}", error(actual, expected));
    }
}
