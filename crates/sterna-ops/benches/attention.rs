//! Time of attention over packed documents, 9 heads of 64 on 3, in bf16: this crate's against libtorch's own kernel.
//!
//! ```text
//! OMP_NUM_THREADS=2 cargo bench -p sterna-ops -- [tokens] [documents]
//! ```
#![expect(clippy::print_stdout, reason = "a benchmark's result is what it prints")]

use std::time::Instant;

use sterna_ops::attention::{AttentionSpec, Documents, Implementation, backward, forward};
use sterna_ops::tile::tiles;
use tch::{Device, Kind, Tensor};

fn main() {
    let numbers: Vec<i64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let cases = match numbers[..] {
        [num_tokens] => vec![(num_tokens, 1)],
        [num_tokens, num_documents, ..] => vec![(num_tokens, num_documents)],
        [] => vec![(4096, 35), (4096, 8), (4096, 1)],
    };
    println!("{} threads; shortest of 5, in turn, ms", tch::get_num_threads());
    for (num_tokens, num_documents) in cases {
        compare(num_tokens, num_documents);
    }
}

fn compare(num_tokens: i64, num_documents: i64) {
    let tile_len = (num_tokens as u64).div_ceil(num_documents as u64) as i64;
    let documents = Documents::new(tiles(num_tokens, tile_len).collect());
    let spec = AttentionSpec {
        kv_of_q: vec![0, 0, 0, 1, 1, 1, 2, 2, 2],
        scale: 0.125,
        softcap: None,
        sliding_window: None,
        implementation: Implementation::Automatic,
    };
    let random = |heads: i64| Tensor::randn([num_tokens, heads, 64], (Kind::BFloat16, Device::Cpu));
    let (q, k, v, d_o) = (random(9), random(3), random(3), random(9));
    let (o, lse) = forward(&q, &k, &v, &spec, &documents);
    let run_forward = || drop(forward(&q, &k, &v, &spec, &documents));
    let run_backward = || drop(backward(&d_o, &q, &k, &v, &o, &lse, &spec, &documents));

    // Every kv head once for each query head that reads it, as views.
    let of = |x: &Tensor, document: &std::ops::Range<i64>| {
        let len = document.end - document.start;
        let x = x.narrow(0, document.start, len).unflatten(1, [3, -1]).permute([1, 2, 0, 3]);
        x.expand([3, 3, len, 64], false)
    };
    let of_lse = |document: &std::ops::Range<i64>| {
        lse.narrow(1, document.start, document.end - document.start).unflatten(0, [3, 3])
    };
    let libtorch_forward = || {
        for document in documents.ranges() {
            let [q, k, v] = [&q, &k, &v].map(|x| of(x, document));
            drop(Tensor::internal_scaled_dot_product_flash_attention_for_cpu(
                &q,
                &k,
                &v,
                0.0,
                true,
                None::<Tensor>,
                spec.scale,
            ));
        }
    };
    let libtorch_backward = || {
        for document in documents.ranges() {
            let [d_o, q, k, v, o] = [&d_o, &q, &k, &v, &o].map(|x| of(x, document));
            drop(Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
                &d_o,
                &q,
                &k,
                &v,
                &o,
                &of_lse(document),
                0.0,
                true,
                None::<Tensor>,
                spec.scale,
            ));
        }
    };
    let times = shortest([&run_forward, &libtorch_forward, &run_backward, &libtorch_backward]);
    println!(
        "{num_tokens} tokens in {num_documents}: forward {:.2}, libtorch {:.2}; backward {:.2}, libtorch {:.2}",
        times[0], times[1], times[2], times[3]
    );
}

/// The shortest time of each in milliseconds, taken in turn: what else runs on the machine hits all of them.
fn shortest(runs: [&dyn Fn(); 4]) -> [f64; 4] {
    let mut times = [f64::INFINITY; 4];
    for _ in 0..5 {
        for (run, time) in runs.iter().zip(&mut times) {
            let start = Instant::now();
            run();
            *time = time.min(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    times
}
