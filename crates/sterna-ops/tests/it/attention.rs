//! Attention against an explicit softmax over an explicit mask, in double precision.

use std::ops::Range;

use sterna_ops::attention::{AttentionSpec, Documents, Implementation, backward, forward, sinks};
use tch::{Device, Kind, Tensor};

use crate::oracle::{AUTOGRAD, DIFFERENCES, assert_close, autograd, differences, random};

/// One attention problem.
struct Case {
    spec: AttentionSpec,
    documents: Vec<Range<i64>>,
    num_kv: i64,
    head_dim: i64,
}

impl Case {
    fn new(kv_of_q: &[usize], num_kv: i64, lengths: &[i64], sliding_window: Option<i64>) -> Case {
        let mut end = 0;
        let documents = lengths
            .iter()
            .map(|len| {
                end += len;
                end - len..end
            })
            .collect();
        let spec = AttentionSpec {
            kv_of_q: kv_of_q.to_vec(),
            scale: 0.3,
            softcap: None,
            sliding_window,
            implementation: Implementation::Automatic,
        };
        Case { spec, documents, num_kv, head_dim: 8 }
    }

    fn num_tokens(&self) -> i64 {
        self.documents.last().map_or(0, |range| range.end)
    }

    fn inputs(&self) -> [Tensor; 3] {
        let (s, n, h) = (self.num_tokens(), self.spec.kv_of_q.len() as i64, self.head_dim);
        [
            random(&[s, n, h], 1) * 3.0,
            random(&[s, self.num_kv, h], 2) * 3.0,
            random(&[s, self.num_kv, h], 3),
        ]
    }

    /// `[s, s]`, minus infinity where a query does not see a key: written from the definition, one pair at a time.
    fn mask(&self) -> Tensor {
        let s = self.num_tokens();
        let window = self.spec.sliding_window.unwrap_or(s);
        let document_of =
            |token: i64| self.documents.iter().position(|range| range.contains(&token));
        let values: Vec<f64> = (0..s * s)
            .map(|pair| {
                let (i, j) = (pair / s, pair % s);
                let is_visible = document_of(i) == document_of(j) && j <= i && i - j < window;
                if is_visible { 0.0 } else { f64::NEG_INFINITY }
            })
            .collect();
        Tensor::from_slice(&values).view([s, s])
    }

    /// Scores `[n, s, s]`.
    fn scores(&self, q: &Tensor, k: &Tensor, mask: &Tensor) -> Tensor {
        q.transpose(0, 1).matmul(&self.repeated(k).permute([1, 2, 0])) * self.spec.scale + mask
    }

    fn repeated(&self, k: &Tensor) -> Tensor {
        let kv_of_q: Vec<i64> = self.spec.kv_of_q.iter().map(|kv| *kv as i64).collect();
        k.index_select(1, &Tensor::from_slice(&kv_of_q))
    }

    fn explicit(&self, x: &[Tensor], mask: &Tensor) -> Tensor {
        let p = self.scores(&x[0], &x[1], mask).softmax(-1, None::<Kind>);
        p.matmul(&self.repeated(&x[2]).transpose(0, 1)).transpose(0, 1)
    }

    /// Forward and backward against the explicit softmax under autograd.
    fn check(&self) {
        let [q, k, v] = self.inputs();
        let (mask, documents) = (self.mask(), Documents::new(self.documents.clone()));
        let (o, lse) = forward(&q, &k, &v, &self.spec, &documents);
        let inputs = [q.shallow_clone(), k.shallow_clone(), v.shallow_clone()];
        assert_close("o", &o, &self.explicit(&inputs, &mask), AUTOGRAD);
        let expected_lse = self.scores(&q, &k, &mask).logsumexp(-1_i64, false);
        assert_close("lse", &lse, &expected_lse, AUTOGRAD);
        let d_o = random(&o.size(), 4);
        let (d_q, d_k, d_v) = backward(&d_o, &q, &k, &v, &o, &lse, &self.spec, &documents);
        let used_only = |x: &[Tensor]| self.explicit(x, &mask);
        let expected = autograd(used_only, &[&q, &k, &v], &d_o);
        for (name, (actual, expected)) in
            ["d_q", "d_k", "d_v"].iter().zip([&d_q, &d_k, &d_v].iter().zip(&expected))
        {
            assert_close(name, actual, expected, 10.0 * AUTOGRAD);
        }
    }
}

/// Sinks are a column of scores whose probabilities multiply nothing.
fn check_sinks(case: &Case) {
    let [q, k, v] = case.inputs();
    let (mask, documents) = (case.mask(), Documents::new(case.documents.clone()));
    // From far below the scores to far above them.
    let sinks = Tensor::linspace(-3.0, 3.0, case.spec.kv_of_q.len() as i64, q_options());
    let explicit = |x: &[Tensor]| {
        let column = x[3].view([-1, 1, 1]).expand([-1, case.num_tokens(), 1], false);
        let scores = Tensor::cat(&[case.scores(&x[0], &x[1], &mask), column], -1);
        let p = scores.softmax(-1, None::<Kind>).narrow(-1, 0, case.num_tokens());
        p.matmul(&case.repeated(&x[2]).transpose(0, 1)).transpose(0, 1)
    };
    let (o, lse) = forward(&q, &k, &v, &case.spec, &documents);
    sinks::forward(&o, &lse, &sinks);
    let inputs = [&q, &k, &v, &sinks];
    assert_close("o", &o, &explicit(&inputs.map(Tensor::shallow_clone)), AUTOGRAD);
    let d_o = random(&o.size(), 4);
    let (d_q, d_k, d_v) = backward(&d_o, &q, &k, &v, &o, &lse, &case.spec, &documents);
    let mut d_sinks = sinks.zeros_like();
    sinks::backward(&d_o, &o, &lse, &sinks, &mut d_sinks);
    let by_autograd = autograd(explicit, &inputs, &d_o);
    let by_differences = differences(explicit, &inputs, &d_o);
    for (input_idx, actual) in [d_q, d_k, d_v, d_sinks].iter().enumerate() {
        let name = format!("gradient {input_idx}");
        assert_close(&name, actual, &by_autograd[input_idx], 10.0 * AUTOGRAD);
        assert_close(&name, actual, &by_differences[input_idx], DIFFERENCES);
    }
}

fn q_options() -> (Kind, Device) {
    (Kind::Double, Device::Cpu)
}

#[test]
fn sinks_take_a_share_of_every_query() {
    check_sinks(&Case::new(&[0, 0, 0, 1, 1], 2, &[6, 1, 4], None));
    check_sinks(&Case::new(&[0, 1], 2, &[9, 3], Some(4)));
}

#[test]
fn one_document() {
    Case::new(&[0, 1], 2, &[33], None).check();
}

#[test]
fn many_documents_of_many_lengths() {
    Case::new(&[0, 0, 1, 1], 2, &[1, 17, 2, 64, 1, 40], None).check();
}

#[test]
fn one_kv_head_for_all_query_heads() {
    Case::new(&[0, 0, 0, 0, 0], 1, &[20, 9], None).check();
}

#[test]
fn uneven_head_maps_of_two_ranks() {
    Case::new(&[0, 0, 0, 1, 1], 2, &[20, 9], None).check();
    Case::new(&[0, 1, 1, 1], 2, &[20, 9], None).check();
    Case::new(&[0, 0, 1, 2, 2], 3, &[20, 9], Some(4)).check();
}

#[test]
fn a_kv_head_that_nobody_reads_has_no_gradient() {
    Case::new(&[0, 0, 2], 3, &[12], None).check();
}

#[test]
fn windows_smaller_and_larger_than_a_query_tile() {
    // A query tile has 128 queries: bands with one tile, with many, with a window longer than a tile, and of one token.
    for window in [1, 5, 40, 200] {
        Case::new(&[0, 0, 1], 2, &[39, 300, 3], Some(window)).check();
    }
    Case::new(&[0], 1, &[129], Some(128)).check();
}

#[test]
fn a_window_longer_than_two_of_the_longest_query_tiles() {
    // The longest query tile is 512. The first tile sees no whole window, the last is cut short.
    Case::new(&[0, 0], 1, &[1700, 5], Some(1100)).check();
}

#[test]
fn a_window_as_long_as_the_document_is_no_window() {
    Case::new(&[0, 0], 1, &[16, 15], Some(16)).check();
}

#[test]
fn the_gradient_is_the_slope_of_the_forward_itself() {
    for window in [None, Some(3)] {
        let case = Case { head_dim: 4, ..Case::new(&[0, 0, 1], 2, &[5, 4], window) };
        let [q, k, v] = case.inputs();
        let documents = Documents::new(case.documents.clone());
        let (o, lse) = forward(&q, &k, &v, &case.spec, &documents);
        let d_o = random(&o.size(), 4);
        let (d_q, d_k, d_v) = backward(&d_o, &q, &k, &v, &o, &lse, &case.spec, &documents);
        let value = |x: &[Tensor]| forward(&x[0], &x[1], &x[2], &case.spec, &documents).0;
        let expected = differences(value, &[&q, &k, &v], &d_o);
        for (actual, expected) in [d_q, d_k, d_v].iter().zip(&expected) {
            assert_close("gradient", actual, expected, DIFFERENCES);
        }
    }
}

/// A document with a kernel call for each kv head, beside a short one. All pairs would be 67 million: a few queries are compared,
/// and only their outputs have a gradient.
#[test]
fn a_long_document() {
    let long_len = 8200;
    let case = Case { head_dim: 4, ..Case::new(&[0, 0, 1, 1, 2], 3, &[3, long_len], None) };
    let [q, k, v] = case.inputs();
    let documents = Documents::new(case.documents.clone());
    let (o, lse) = forward(&q, &k, &v, &case.spec, &documents);
    let queries = [2_i64, 3, 500, 4100, 8202];
    let rows = Tensor::from_slice(&queries);
    let mask = Tensor::full([5, 3 + long_len], f64::NEG_INFINITY, (Kind::Double, Device::Cpu));
    for (row, query) in queries.iter().enumerate() {
        let start = if *query < 3 { 0 } else { 3 };
        let _ = mask.get(row as i64).narrow(0, start, query + 1 - start).zero_();
    }
    let explicit = |x: &[Tensor]| case.explicit(x, &mask);
    let q_rows = q.index_select(0, &rows);
    let inputs = [&q_rows, &k, &v];
    let expected_o = explicit(&inputs.map(Tensor::shallow_clone));
    assert_close("o", &o.index_select(0, &rows), &expected_o, AUTOGRAD);
    let expected_lse = case.scores(&q_rows, &k, &mask).logsumexp(-1_i64, false);
    assert_close("lse", &lse.index_select(1, &rows), &expected_lse, AUTOGRAD);

    let d_o_rows = random(&[5, 5, 4], 4);
    let d_o = o.zeros_like().index_copy(0, &rows, &d_o_rows);
    let (d_q, d_k, d_v) = backward(&d_o, &q, &k, &v, &o, &lse, &case.spec, &documents);
    let expected = autograd(explicit, &inputs, &d_o_rows);
    let expected_d_q = d_q.zeros_like().index_copy(0, &rows, &expected[0]);
    assert_close("d_q", &d_q, &expected_d_q, 10.0 * AUTOGRAD);
    assert_close("d_k", &d_k, &expected[1], 10.0 * AUTOGRAD);
    assert_close("d_v", &d_v, &expected[2], 10.0 * AUTOGRAD);
}

/// Heads of one packed buffer, as the exchange hands them over: strided views.
#[test]
fn strided_inputs_give_the_same() {
    let case = Case::new(&[0, 0, 1, 1], 2, &[30, 11], Some(7));
    let [q, k, v] = case.inputs();
    let documents = Documents::new(case.documents.clone());
    let (o, lse) = forward(&q, &k, &v, &case.spec, &documents);
    let d_o = random(&o.size(), 4);
    let contiguous = backward(&d_o, &q, &k, &v, &o, &lse, &case.spec, &documents);
    let packed = Tensor::cat(&[&d_o, &o, &q, &k, &v], 1).split_with_sizes([4, 4, 4, 2, 2], 1);
    let [d_o, o, q, k, v] = &packed[..] else { unreachable!("five parts were packed") };
    assert_close("o", &forward(q, k, v, &case.spec, &documents).0, o, 0.0);
    let strided = backward(d_o, q, k, v, o, &lse, &case.spec, &documents);
    assert_close("d_q", &strided.0, &contiguous.0, 0.0);
    assert_close("d_k", &strided.1, &contiguous.1, 0.0);
    assert_close("d_v", &strided.2, &contiguous.2, 0.0);
}

/// Half precision differs from double by the rounding of its inputs and outputs: 2^-9 relative to values near one.
#[test]
fn half_precisions_agree_with_double() {
    let case = Case { head_dim: 16, ..Case::new(&[0, 0, 1, 1], 2, &[70, 200], Some(50)) };
    let [q, k, v] = case.inputs().map(|x| x.to_kind(Kind::BFloat16).to_kind(Kind::Double));
    let documents = Documents::new(case.documents.clone());
    let run = |kind: Kind| {
        let [q, k, v] = [&q, &k, &v].map(|x| x.to_kind(kind));
        let (o, lse) = forward(&q, &k, &v, &case.spec, &documents);
        let d_o = random(&o.size(), 4).to_kind(Kind::BFloat16).to_kind(kind);
        let (d_q, d_k, d_v) = backward(&d_o, &q, &k, &v, &o, &lse, &case.spec, &documents);
        [o, d_q, d_k, d_v]
    };
    let exact = run(Kind::Double);
    for (kind, tolerance) in [(Kind::Float, 2e-5), (Kind::BFloat16, 4e-2)] {
        for (actual, expected) in run(kind).iter().zip(&exact) {
            assert_eq!(actual.kind(), kind);
            assert_close("half", actual, expected, tolerance);
        }
    }
}

#[test]
fn no_tokens_are_no_work() {
    let empty = Tensor::zeros([0, 2, 8], (Kind::Float, Device::Cpu));
    let spec = AttentionSpec {
        kv_of_q: vec![0, 1],
        scale: 1.0,
        softcap: None,
        sliding_window: Some(4),
        implementation: Implementation::Automatic,
    };
    let (o, lse) = forward(&empty, &empty, &empty, &spec, &Documents::new(Vec::new()));
    assert_eq!((o.size(), lse.size()), (vec![0, 2, 8], vec![2, 0]));
}
