//! Time of one block and the head at the shapes of SmolLM2-135M, whole and op by op.
//!
//! ```text
//! OMP_NUM_THREADS=2 cargo bench -p sterna-model -- [tokens] [documents]
//! ```
#![expect(clippy::print_stdout, reason = "a benchmark's result is what it prints")]
#![expect(clippy::unwrap_used, reason = "a benchmark that fails should say so at once")]

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use sterna_arch::ModelConfig;
use sterna_comm::{Comm, RankEnv};
use sterna_model::head::{self, HeadGrads, HeadParams};
use sterna_model::{
    AttentionContext, BlockContext, BlockGrads, BlockParams, Documents, HeadGroup, Keep, block,
    embed, init, rotary,
};
use sterna_ops::attention::{self, AttentionSpec, Implementation};
use sterna_ops::{cross_entropy, linear, rms_norm, rope, swiglu};
use tch::{Device, Kind, Tensor};

const KIND: Kind = Kind::BFloat16;

fn main() {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<i64>().ok());
    let num_tokens = numbers.next().unwrap_or(4096);
    let num_documents = numbers.next().unwrap_or(1);
    println!(
        "{num_tokens} tokens in {num_documents} documents, {} threads",
        tch::get_num_threads()
    );
    let bench = Bench::new(num_tokens, num_documents);
    bench.ops();
    bench.block();
    bench.ends();
}

struct Bench {
    config: ModelConfig,
    documents: Documents,
    num_tokens: i64,
}

/// The shortest time of a few runs: what else runs on the machine only adds.
fn time<T>(name: &str, mut f: impl FnMut() -> T) -> Duration {
    let mut times: Vec<Duration> = (0..5)
        .map(|_| {
            let start = Instant::now();
            let _ = f();
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("{name:<44} {:>9.2} ms", times[0].as_secs_f64() * 1e3);
    times[0]
}

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (KIND, Device::Cpu))
}

impl Bench {
    fn new(num_tokens: i64, num_documents: i64) -> Bench {
        let config = json!({
            "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5, "rope_theta": 100_000.0, "hidden_act": "silu", "tie_word_embeddings": true,
        });
        let lengths = sterna_ops::tile::tiles(
            num_tokens,
            (num_tokens as u64).div_ceil(num_documents as u64) as i64,
        );
        Bench {
            config: ModelConfig::from_json(&config.to_string(), Path::new("SmolLM2-135M")).unwrap(),
            documents: Documents::new(lengths.collect()),
            num_tokens,
        }
    }

    fn ops(&self) {
        let (s, d, f) = (self.num_tokens, 576, 1536);
        let (x, norm, gate, up) = (random(&[s, d]), random(&[d]), random(&[s, f]), random(&[s, f]));
        println!("-- ops");
        time("rms_norm forward", || rms_norm::forward(&x, &norm, 1e-5));
        let mut d_norm = Tensor::zeros([d], (Kind::Float, Device::Cpu));
        time("rms_norm backward", || rms_norm::backward(&x, &x, &norm, 1e-5, Some(&mut d_norm)));
        time("swiglu forward", || swiglu::forward(&gate, &up));
        time("swiglu backward", || swiglu::backward(&gate, &gate, &up));
        for (name, o, i) in [
            ("o_proj", 576, 576),
            ("k_proj", 192, 576),
            ("gate_proj", 1536, 576),
            ("down_proj", 576, 1536),
        ] {
            let (x, weight, d_y) = (random(&[s, i]), random(&[o, i]), random(&[s, o]));
            let mut d_weight = Tensor::zeros([o, i], (Kind::Float, Device::Cpu));
            time(&format!("{name} forward"), || linear::forward(&x, &weight, None));
            time(&format!("{name} d_x"), || linear::backward_input(&d_y, &weight));
            time(&format!("{name} d_weight"), || {
                linear::backward_params(&d_y, &x, Some(&mut d_weight), None);
            });
        }
        let table = self.ropes().remove(0);
        let (q, k) = (random(&[s, 9, 64]), random(&[s, 3, 64]));
        time("rope q", || rope::forward(&q, &table));
        let spec = AttentionSpec {
            kv_of_q: vec![0, 0, 0, 1, 1, 1, 2, 2, 2],
            scale: 0.125,
            softcap: None,
            sliding_window: None,
            implementation: Implementation::Automatic,
        };
        let (o, lse) = attention::forward(&q, &k, &k, &spec, &self.documents);
        time("attention forward", || attention::forward(&q, &k, &k, &spec, &self.documents));
        time("attention backward", || {
            attention::backward(&o, &q, &k, &k, &o, &lse, &spec, &self.documents)
        });
        let spec = AttentionSpec { sliding_window: Some(s / 8), ..spec };
        time("attention forward, window of an eighth", || {
            attention::forward(&q, &k, &k, &spec, &self.documents)
        });
        time("attention backward, window of an eighth", || {
            attention::backward(&o, &q, &k, &k, &o, &lse, &spec, &self.documents)
        });
        let rows = s.min(1024);
        let (logits, labels) =
            (random(&[rows, 49152]), Tensor::randint(49152, [rows], (Kind::Int64, Device::Cpu)));
        let weights = Tensor::ones([rows], (Kind::Double, Device::Cpu));
        time(&format!("cross_entropy forward, {rows} rows"), || {
            cross_entropy::forward(&logits, &labels)
        });
        time(&format!("cross_entropy with gradient, {rows} rows"), || {
            cross_entropy::forward_backward(&logits, &labels, &weights)
        });
    }

    fn ropes(&self) -> Vec<sterna_model::RopeTable> {
        let positions: Vec<i64> = (0..self.num_tokens).collect();
        rotary::tables(&self.config.arch, &positions, self.num_tokens as usize, KIND, Device::Cpu)
    }

    fn block(&self) {
        let comm = Comm::init(&RankEnv::single(), 1, Duration::from_secs(30)).unwrap();
        let layer = &self.config.arch.layers[0];
        let groups = HeadGroup::of_all_ranks(&layer.mixer, 1, 1).unwrap();
        let ropes = self.ropes();
        let tensors: Vec<Tensor> = layer
            .params
            .iter()
            .map(|spec| {
                let shape: Vec<i64> = spec.shape.iter().map(|size| *size as i64).collect();
                let mut values = Tensor::empty([spec.numel() as i64], (KIND, tch::Device::Cpu));
                init::fill(&mut values, spec, 1, &(0..spec.numel())).unwrap();
                values.view(shape.as_slice())
            })
            .collect();
        let zeros = tensors.iter().map(|x| Some(x.zeros_like().to_kind(Kind::Float))).collect();
        let all: Vec<usize> = (0..layer.params.len()).collect();
        let mut grads = BlockGrads::new(layer, &all, zeros).unwrap();
        let params = BlockParams::new(layer, &all, tensors).unwrap();
        let x = random(&[self.num_tokens, 576]);
        for tile_len in [self.num_tokens, 1024, 256] {
            println!("-- block, tiles of {tile_len}");
            let ctx = BlockContext {
                layer,
                layer_idx: 0,
                attention: AttentionContext {
                    sp: comm.sp(),
                    groups: &groups,
                    documents: &self.documents,
                    rope: Some(&ropes[0]),
                    num_rows: 1,
                    streaming: None,
                    implementation: Implementation::Automatic,
                    qkv_tile_len: tile_len,
                },
                routing: None,
                route: None,
                mlp_tile_len: tile_len,
            };
            for (name, keep) in [
                ("input", Keep { attention: false, graph: false }),
                ("input and attention", Keep { attention: true, graph: false }),
                ("everything", Keep { attention: true, graph: true }),
            ] {
                time(&format!("forward, keeping {name}"), || {
                    block::forward(&ctx, &params, None, &x, keep).unwrap()
                });
                let mut all_kept: Vec<_> = (0..5)
                    .map(|_| block::forward(&ctx, &params, None, &x, keep).unwrap().1)
                    .collect();
                time(&format!("backward, having kept {name}"), || {
                    block::backward(&ctx, &params, &mut grads, None, all_kept.pop().unwrap(), &x)
                        .unwrap()
                });
            }
        }
    }

    fn ends(&self) {
        let x = random(&[self.num_tokens, 576]);
        let params =
            HeadParams { own: vec![random(&[576])], embedding: Some(random(&[49152, 576])) };
        let zeros = |shape: &[i64]| Some(Tensor::zeros(shape, (Kind::Float, Device::Cpu)));
        let mut grads = HeadGrads { own: vec![zeros(&[576])], embedding: zeros(&[49152, 576]) };
        let labels: Vec<i64> = (0..self.num_tokens).map(|token| token * 11 % 49152).collect();
        let weights = Tensor::full([self.num_tokens], 1e-3, (Kind::Double, Device::Cpu));
        println!("-- head and embedding");
        for tile_len in [4096, 2048, 1024, 256] {
            time(&format!("head with gradient, tiles of {tile_len}"), || {
                head::loss_and_backward(
                    &self.config.arch,
                    &params,
                    &mut grads,
                    &x,
                    &labels,
                    &weights,
                    tile_len,
                )
                .unwrap()
            });
        }
        time("head without gradient, tiles of 1024", || {
            head::loss(&self.config.arch, &params, &x, &labels, 1024).unwrap()
        });
        let embedding = params.embedding.as_ref().expect("the head is tied");
        time("embedding forward", || {
            embed::forward(&self.config.arch, embedding, &labels).unwrap()
        });
        let mut d_weight = grads.embedding.unwrap();
        time("embedding backward", || {
            embed::backward(&self.config.arch, None, &mut d_weight, &labels, &x).unwrap();
        });
    }
}
