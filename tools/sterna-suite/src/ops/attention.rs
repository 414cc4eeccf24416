//! Attention of every kernel against plain softmax in double precision, and kernels against each other at length.

use std::ops::Range;

use sterna_ops::attention::{self, AttentionSpec, Documents, Implementation};
use sterna_torch_sys::cuda_attention::{cudnn_backward, cudnn_forward};
use tch::{Device, Kind, Tensor};

use super::{Bound, Checks, with_gradients};

/// What is attended to, and by which heads.
struct Case {
    name: &'static str,
    documents: Vec<Range<i64>>,
    /// Query heads, kv heads, head size.
    heads: (i64, i64, i64),
    window: Option<i64>,
}

fn cases(is_tiny: bool) -> Vec<Case> {
    // A tiny run cuts lengths, not cases.
    let len = |full: i64| if is_tiny { (full / 32).max(3) } else { full };
    let pack = |lens: &[i64]| {
        let mut end = 0;
        let next = |&full: &i64| {
            end += len(full);
            end - len(full)..end
        };
        lens.iter().map(next).collect()
    };
    let single = |full: i64| pack(&[full]);
    vec![
        Case {
            name: "one document, GQA 8:2 of 128",
            documents: single(1500),
            heads: (8, 2, 128),
            window: None,
        },
        Case {
            name: "one document, 4 heads of 64",
            documents: single(1111),
            heads: (4, 4, 64),
            window: None,
        },
        Case {
            name: "pack of 5, GQA 8:2 of 128",
            documents: pack(&[700, 96, 513, 3, 200]),
            heads: (8, 2, 128),
            window: None,
        },
        Case {
            name: "window of an 8th, GQA 8:2 of 128",
            documents: single(1500),
            heads: (8, 2, 128),
            window: Some(len(187)),
        },
        Case {
            name: "pack of 5, window, GQA 6:3 of 64",
            documents: pack(&[700, 96, 513, 3, 200]),
            heads: (6, 3, 64),
            window: Some(len(100)),
        },
    ]
}

impl Case {
    fn spec(&self, implementation: Implementation) -> AttentionSpec {
        let (queries, kvs, dim) = self.heads;
        AttentionSpec {
            kv_of_q: (0..queries).map(|head| (head * kvs / queries) as usize).collect(),
            scale: 1.0 / (dim as f64).sqrt(),
            softcap: None,
            sliding_window: self.window,
            implementation,
        }
    }
}

pub(super) fn checks(checks: &mut Checks) {
    for case in cases(checks.is_tiny) {
        checks.protected(case.name, |checks| check(checks, &case));
    }
    if checks.kind == Kind::BFloat16 && checks.device.is_cuda() {
        checks.protected("long document", long_document);
    }
}

fn check(checks: &mut Checks, case: &Case) {
    let len = case.documents.last().map_or(0, |document| document.end);
    let (queries, kvs, dim) = case.heads;
    let q = checks.random(&[len, queries, dim], 1.0);
    let [k, v] = [0, 1].map(|_| checks.random(&[len, kvs, dim], 1.0));
    let d_o = checks.random(&[len, queries, dim], 1.0);
    let documents = Documents::new(case.documents.clone());
    let spec = case.spec(Implementation::Automatic);
    let mask = mask(&case.documents, case.window);
    let (o, gradients) =
        with_gradients(|x| plain(&x[0], &x[1], &x[2], &spec, &mask), &[&q, &k, &v], Some(&d_o));
    let [q, k, v, d_o] = [&q, &k, &v, &d_o].map(|x| checks.given(x));
    let name = format!("attention: {}", case.name);
    let (actual, lse) = attention::forward(&q, &k, &v, &spec, &documents);
    let (d_q, d_k, d_v) = attention::backward(&d_o, &q, &k, &v, &actual, &lse, &spec, &documents);
    let compare = |checks: &mut Checks, name: &str, [o_is, d_q, d_k, d_v]: [&Tensor; 4]| {
        let results = [
            ("o", o_is, &o),
            ("d_q", d_q, &gradients[0]),
            ("d_k", d_k, &gradients[1]),
            ("d_v", d_v, &gradients[2]),
        ];
        checks.compare(name, Bound::Attention, &results);
    };
    compare(checks, &name, [&actual, &d_q, &d_k, &d_v]);
    // What a short document is not given to cuDNN for is its time; it computes the same.
    let is_cudnns = checks.kind == Kind::BFloat16
        && checks.device.is_cuda()
        && case.documents.len() == 1
        && case.window.is_none();
    if is_cudnns {
        let (o, lse) = cudnn_forward([&q, &k, &v], true, spec.scale)
            .unwrap_or_else(|error| panic!("cuDNN's forward: {error}"));
        let gradients = cudnn_backward([&d_o, &q, &k, &v, &o, &lse], true, spec.scale);
        let [d_q, d_k, d_v] = gradients.unwrap_or_else(|error| panic!("cuDNN's backward: {error}"));
        compare(checks, &format!("{name}, cuDNN"), [&o, &d_q, &d_k, &d_v]);
    }
}

/// Which keys a query sees: `[s, s]`, zeros and minus infinities.
fn mask(documents: &[Range<i64>], window: Option<i64>) -> Tensor {
    let len = documents.last().map_or(0, |document| document.end);
    let document_of: Vec<i64> = documents
        .iter()
        .enumerate()
        .flat_map(|(i, document)| vec![i as i64; (document.end - document.start) as usize])
        .collect();
    let document_of = Tensor::from_slice(&document_of);
    let at = Tensor::arange(len, (Kind::Int64, Device::Cpu));
    let back = at.unsqueeze(1) - at.unsqueeze(0);
    let is_seen = document_of
        .unsqueeze(1)
        .eq_tensor(&document_of.unsqueeze(0))
        .logical_and(&back.ge(0))
        .logical_and(&back.lt(window.unwrap_or(len)));
    let zeros = Tensor::zeros([len, len], (Kind::Double, Device::Cpu));
    zeros.masked_fill(&is_seen.logical_not(), f64::NEG_INFINITY)
}

/// Softmax attention as its definition has it.
fn plain(q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttentionSpec, mask: &Tensor) -> Tensor {
    let map: Vec<i64> = spec.kv_of_q.iter().map(|&kv| kv as i64).collect();
    let map = Tensor::from_slice(&map);
    let of_heads = |x: &Tensor| x.transpose(0, 1);
    let [k, v] = [k, v].map(|x| of_heads(&x.index_select(1, &map)));
    let scores = of_heads(q).matmul(&k.transpose(1, 2)) * spec.scale + mask;
    scores.softmax(-1, Kind::Double).matmul(&v).transpose(0, 1)
}

/// A document that goes to cuDNN by itself, against flash: double precision would take too long.
fn long_document(checks: &mut Checks) {
    let len = if checks.is_tiny { 256 } else { 32_768 };
    let case = Case {
        name: "long document, GQA 8:2 of 128, against flash",
        documents: std::iter::once(0..len).collect(),
        heads: (8, 2, 128),
        window: None,
    };
    let (queries, kvs, dim) = case.heads;
    let q = checks.random(&[len, queries, dim], 1.0);
    let [k, v] = [0, 1].map(|_| checks.random(&[len, kvs, dim], 1.0));
    let d_o = checks.random(&[len, queries, dim], 1.0);
    let [q, k, v, d_o] = [&q, &k, &v, &d_o].map(|x| checks.given(x));
    let documents = Documents::new(case.documents.clone());
    let run = |implementation| {
        let spec = case.spec(implementation);
        let (o, lse) = attention::forward(&q, &k, &v, &spec, &documents);
        let (d_q, d_k, d_v) = attention::backward(&d_o, &q, &k, &v, &o, &lse, &spec, &documents);
        [o, d_q, d_k, d_v]
    };
    let actual = run(Implementation::Automatic);
    let expected =
        run(Implementation::Flash).map(|x| x.to_device(Device::Cpu).to_kind(Kind::Double));
    let names = ["o", "d_q", "d_k", "d_v"];
    let results: Vec<_> = (0..4).map(|i| (names[i], &actual[i], &expected[i])).collect();
    checks.compare(&format!("attention: {}", case.name), Bound::Attention, &results);
}
