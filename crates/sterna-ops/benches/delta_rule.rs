//! Time of the gated delta rule over packed documents, 8 value heads on 4 key heads of 128, in bf16, against attention of such heads.
//!
//! ```text
//! OMP_NUM_THREADS=2 cargo bench -p sterna-ops --bench delta_rule -- [tokens] [documents]
//! ```
#![expect(clippy::print_stdout, reason = "a benchmark's result is what it prints")]

use std::time::Instant;

use sterna_ops::attention::{self, AttentionSpec, Documents, Implementation};
use sterna_ops::delta_rule::{self, Inputs};
use sterna_ops::tile::tiles;
use tch::{Device, Kind, Tensor};

fn main() {
    let numbers: Vec<i64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let cases = match numbers[..] {
        [num_tokens] => vec![(num_tokens, 1)],
        [num_tokens, num_documents, ..] => vec![(num_tokens, num_documents)],
        [] => vec![(4096, 35), (4096, 1)],
    };
    println!("{} threads; shortest of 3, tokens/s", tch::get_num_threads());
    for (num_tokens, num_documents) in cases {
        compare(num_tokens, num_documents);
    }
}

fn compare(num_tokens: i64, num_documents: i64) {
    let tile_len = (num_tokens as u64).div_ceil(num_documents as u64) as i64;
    let documents = Documents::new(tiles(num_tokens, tile_len).collect());
    let map = [0, 0, 1, 1, 2, 2, 3, 3];
    let random =
        |heads: i64| Tensor::randn([num_tokens, heads, 128], (Kind::BFloat16, Device::Cpu));
    let (q, k, v, d_o) = (random(4), random(4), random(8), random(8));
    let numbers = || Tensor::rand([num_tokens, 8], (Kind::Float, Device::Cpu));
    let (g, beta) = (-numbers(), numbers());
    let inputs = Inputs {
        q: &q,
        k: &k,
        v: &v,
        g: &g,
        beta: &beta,
        key_of_value: &map,
        documents: &documents,
    };
    let (_, states) = delta_rule::forward(&inputs);
    let of_rule = || drop(delta_rule::forward(&inputs));
    let backward_of_rule = || drop(delta_rule::backward(&d_o, &inputs, &states));

    let spec = AttentionSpec {
        kv_of_q: map.to_vec(),
        scale: 1.0 / 128.0_f64.sqrt(),
        softcap: None,
        sliding_window: None,
        implementation: Implementation::Automatic,
    };
    let (q, v) = (random(8), random(4));
    let (o, lse) = attention::forward(&q, &k, &v, &spec, &documents);
    let of_attention = || drop(attention::forward(&q, &k, &v, &spec, &documents));
    let backward_of_attention =
        || drop(attention::backward(&d_o, &q, &k, &v, &o, &lse, &spec, &documents));
    let rate = |f: &dyn Fn()| {
        let seconds = (0..3).map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        });
        num_tokens as f64 / seconds.fold(f64::INFINITY, f64::min)
    };
    println!(
        "{num_tokens} tokens in {num_documents}: rule {:.0} forward, {:.0} backward; attention {:.0} forward, {:.0} backward",
        rate(&of_rule),
        rate(&backward_of_rule),
        rate(&of_attention),
        rate(&backward_of_attention),
    );
}
