//! The gated delta rule against its recurrence, token by token; its convolution against plain sums.

use std::ops::Range;

use sterna_ops::attention::Documents;
use sterna_ops::delta_rule::{self, Gradients, Inputs};
use sterna_ops::{causal_conv, l2_norm};
use tch::{Device, Kind, Tensor};

use crate::oracle::{AUTOGRAD, DIFFERENCES, assert_close, autograd, differences, random};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

/// Chunks and runs of them end inside and at the end of these.
const LENGTHS: [i64; 7] = [1, 63, 64, 65, 200, 1025, 3];

fn documents(lengths: &[i64]) -> Documents {
    let mut end = 0;
    let next = |len: &i64| {
        end += len;
        end - len..end
    };
    Documents::new(lengths.iter().map(next).collect())
}

/// `q`, `k`, `v`, `g` and `beta` of so many tokens, with a head map.
struct Case {
    inputs: Vec<Tensor>,
    map: Vec<usize>,
}

impl Case {
    fn new(num_tokens: i64, num_keys: i64, map: &[usize], h_k: i64, h_v: i64) -> Case {
        let (s, n) = (num_tokens, map.len() as i64);
        let inputs = vec![
            random(&[s, num_keys, h_k], 1),
            random(&[s, num_keys, h_k], 2),
            random(&[s, n, h_v], 3),
            // Decays from almost none to almost all.
            -(random(&[s, n], 4) * 3.0).exp() * 0.2,
            random(&[s, n], 5).sigmoid(),
        ];
        Case { inputs, map: map.to_vec() }
    }

    fn of<'a>(&'a self, inputs: &'a [Tensor], documents: &'a Documents) -> Inputs<'a> {
        let [q, k, v, g, beta] = inputs else { unreachable!() };
        Inputs { q, k, v, g, beta, key_of_value: &self.map, documents }
    }

    fn all(&self) -> Vec<&Tensor> {
        self.inputs.iter().collect()
    }

    fn to_kind(&self, kind: Kind) -> Vec<Tensor> {
        let of = |(idx, x): (usize, &Tensor)| x.to_kind(if idx == 3 { Kind::Float } else { kind });
        self.inputs.iter().enumerate().map(of).collect()
    }
}

fn list(grads: Gradients) -> [Tensor; 5] {
    let Gradients { q, k, v, g, beta } = grads;
    [q, k, v, g, beta]
}

/// Equation 10 of the paper, token by token, differentiable.
fn recurrence(inputs: &[Tensor], map: &[usize], documents: &Documents) -> Tensor {
    let normalise = |x: &Tensor| {
        let length = (x.square().sum_dim_intlist(-1_i64, true, None::<Kind>) + 1e-6).sqrt();
        let map: Vec<i64> = map.iter().map(|key| *key as i64).collect();
        (x / length).index_select(1, &Tensor::from_slice(&map))
    };
    let (q, k, v) = (normalise(&inputs[0]), normalise(&inputs[1]), &inputs[2]);
    let q = q / (k.size()[2] as f64).sqrt();
    let mut outputs = Vec::new();
    for document in documents.ranges() {
        let mut state = Tensor::zeros([map.len() as i64, k.size()[2], v.size()[2]], F64);
        for token in document.clone() {
            let [q, k, v] = [&q, &k, v].map(|x| x.get(token));
            let [g, beta] = [&inputs[3], &inputs[4]].map(|x| x.get(token).view([-1, 1]));
            let decayed = state * g.exp().unsqueeze(2);
            let stored = (&decayed * k.unsqueeze(2)).sum_dim_intlist(1_i64, false, None::<Kind>);
            let written = (v - stored) * beta;
            state = &decayed + k.unsqueeze(2) * written.unsqueeze(1);
            outputs.push((&state * q.unsqueeze(2)).sum_dim_intlist(1_i64, false, None::<Kind>));
        }
    }
    Tensor::stack(&outputs, 0)
}

#[test]
fn delta_rule_is_its_recurrence() {
    let documents = documents(&LENGTHS);
    for (num_keys, map) in [(3, vec![0, 1, 2]), (2, vec![0, 0, 0, 1])] {
        let case = Case::new(documents.num_tokens(), num_keys, &map, 5, 4);
        let (o, states) = delta_rule::forward(&case.of(&case.inputs, &documents));
        let expected = recurrence(&case.inputs, &map, &documents);
        assert_close("o", &o, &expected, AUTOGRAD);
        assert_eq!(states.size()[0], delta_rule::num_states(&documents) as i64);
        let d_o = random(&o.size(), 6);
        let grads = delta_rule::backward(&d_o, &case.of(&case.inputs, &documents), &states);
        let expected = autograd(|x| recurrence(x, &map, &documents), &case.all(), &d_o);
        for (name, (actual, expected)) in
            ["q", "k", "v", "g", "beta"].iter().zip(list(grads).iter().zip(&expected))
        {
            // Gradients of short vectors, and sums over a document.
            assert_close(name, actual, expected, 100.0 * AUTOGRAD);
        }
    }
}

#[test]
fn gradients_of_the_delta_rule_are_slopes() {
    let documents = documents(&[3, 5]);
    let case = Case::new(8, 1, &[0, 0], 3, 2);
    let (o, states) = delta_rule::forward(&case.of(&case.inputs, &documents));
    let d_o = random(&o.size(), 6);
    let grads = delta_rule::backward(&d_o, &case.of(&case.inputs, &documents), &states);
    let value = |x: &[Tensor]| delta_rule::forward(&case.of(x, &documents)).0;
    let expected = differences(value, &case.all(), &d_o);
    for (actual, expected) in list(grads).iter().zip(&expected) {
        assert_close("slope", actual, expected, DIFFERENCES);
    }
}

/// Keys that are all alike, no decay and everything replaced: the system is a triangle of ones.
#[test]
fn delta_rule_of_one_key_gives_the_last_value() {
    let documents = documents(&[130]);
    let mut case = Case::new(130, 1, &[0], 4, 3);
    case.inputs[1] = random(&[1, 1, 4], 2).expand([130, 1, 4], false).contiguous();
    case.inputs[0] = &case.inputs[1] * 3.0;
    case.inputs[3] = Tensor::zeros([130, 1], F64);
    case.inputs[4] = Tensor::ones([130, 1], F64);
    let (o, _) = delta_rule::forward(&case.of(&case.inputs, &documents));
    // A key of length one but for what is added to its square, and queries by the root of their width.
    assert_close("o", &(o * 2.0), &case.inputs[2], 1e-5);
}

#[test]
fn documents_of_the_delta_rule_are_runs_of_their_own() {
    let lengths = [70, 1, 64, 1100, 129];
    let packed = documents(&lengths);
    let case = Case::new(packed.num_tokens(), 2, &[0, 0, 1], 8, 6);
    for kind in [Kind::Double, Kind::BFloat16] {
        let inputs = case.to_kind(kind);
        let inputs: Vec<Tensor> = if kind == Kind::Double {
            case.all().iter().map(|x| x.copy()).collect()
        } else {
            inputs
        };
        let (o, states) = delta_rule::forward(&case.of(&inputs, &packed));
        let d_o = random(&o.size(), 6).to_kind(kind);
        let grads = list(delta_rule::backward(&d_o, &case.of(&inputs, &packed), &states));
        for range in packed.ranges() {
            let of = |x: &Tensor| narrow(x, range);
            let own: Vec<Tensor> = inputs.iter().map(of).collect();
            let alone = documents(&[range.end - range.start]);
            let (o_alone, states) = delta_rule::forward(&case.of(&own, &alone));
            assert_eq!(o_alone, of(&o), "{range:?}");
            let alone = list(delta_rule::backward(&of(&d_o), &case.of(&own, &alone), &states));
            for (grad, alone) in grads.iter().zip(&alone) {
                assert_eq!(*alone, of(grad), "{range:?}");
            }
        }
    }
}

/// Inputs that are rounded to bf16 in both: what is left is single precision inside and one rounding of each result.
#[test]
fn delta_rule_of_bf16_rounds_results_once() {
    let documents = documents(&[300, 212]);
    let case = Case::new(512, 2, &[0, 0, 1, 1], 16, 16);
    let half = case.to_kind(Kind::BFloat16);
    let exact: Vec<Tensor> = half.iter().map(|x| x.to_kind(Kind::Double)).collect();
    let (o, states) = delta_rule::forward(&case.of(&half, &documents));
    let (expected, exact_states) = delta_rule::forward(&case.of(&exact, &documents));
    assert_eq!((o.kind(), states.kind()), (Kind::BFloat16, Kind::Float));
    let d_o = random(&o.size(), 6).to_kind(Kind::BFloat16);
    let grads = list(delta_rule::backward(&d_o, &case.of(&half, &documents), &states));
    let d_o = d_o.to_kind(Kind::Double);
    let exact = list(delta_rule::backward(&d_o, &case.of(&exact, &documents), &exact_states));
    for (actual, expected) in
        [&o].into_iter().chain(&grads).zip([&expected].into_iter().chain(&exact))
    {
        let actual = actual.to_kind(Kind::Double);
        let error = ((actual - expected).norm() / expected.norm()).double_value(&[]);
        // Half a unit in the last of 8 bits is 2^-9 of a number at most.
        assert!(error < 1.0 / 512.0, "{error:e}");
    }
}

#[test]
fn log_decay_has_its_gradients() {
    let (a, a_log, dt_bias) = (random(&[7, 3], 1) * 4.0, random(&[3], 2), random(&[3], 3));
    let plain = |x: &[Tensor]| -(x[1].exp()) * (x[0].exp() * x[2].exp() + 1.0).log();
    let inputs = [&a, &a_log, &dt_bias];
    let g = delta_rule::log_decay(&a, &a_log, &dt_bias);
    assert_close("g", &g, &plain(&inputs.map(Tensor::copy)), AUTOGRAD);
    let d_g = random(&[7, 3], 4);
    let (mut d_a_log, mut d_dt_bias) = (Tensor::zeros([3], F64), Tensor::zeros([3], F64));
    let d_a = delta_rule::log_decay_backward(
        &d_g,
        &a,
        &a_log,
        &dt_bias,
        Some(&mut d_a_log),
        Some(&mut d_dt_bias),
    );
    let actual = [d_a, d_a_log, d_dt_bias];
    for (actual, expected) in actual.iter().zip(autograd(plain, &inputs, &d_g)) {
        assert_close("gradient", actual, &expected, AUTOGRAD);
    }
}

#[test]
fn l2_norm_of_rows() {
    let (x, d_y) = (random(&[3, 4, 5], 1) * 0.01, random(&[3, 4, 5], 2));
    let plain = |x: &[Tensor]| {
        let squares: Tensor = x[0].square();
        &x[0] / (squares.sum_dim_intlist(-1_i64, true, None::<Kind>) + 1e-6).sqrt()
    };
    let (y, r) = l2_norm::forward(&x);
    assert_close("y", &y, &plain(&[x.copy()]), AUTOGRAD);
    let d_x = l2_norm::backward(&d_y, &y, &r);
    assert_close("d_x", &d_x, &autograd(plain, &[&x], &d_y)[0], 100.0 * AUTOGRAD);
}

fn plain_conv(x: &Tensor, weight: &Tensor, documents: &Documents) -> Tensor {
    let width = weight.size()[1];
    let of_token = |token: i64, start: i64| {
        let terms = (0..width).filter(|lag| token - lag >= start);
        terms.map(|lag| x.get(token - lag) * weight.select(1, width - 1 - lag)).sum::<Tensor>()
    };
    let of_document = |range: &Range<i64>| {
        range.clone().map(|token| of_token(token, range.start)).collect::<Vec<_>>()
    };
    let z = Tensor::stack(&documents.ranges().iter().flat_map(of_document).collect::<Vec<_>>(), 0);
    &z * z.sigmoid()
}

#[test]
fn convolution_of_documents() {
    let documents = documents(&[1, 2, 3, 4, 9]);
    // So many channels that a tile has six rows.
    let (wide, narrow) = ((1 << 18) / 6, 3);
    let (weight, d_y) = (random(&[narrow, 4], 2), random(&[19, narrow], 3));
    let x = random(&[19, narrow], 1);
    let y = causal_conv::forward(&x, &weight, &documents);
    assert_close("y", &y, &plain_conv(&x, &weight, &documents), AUTOGRAD);
    let mut d_weight = Tensor::zeros([narrow, 4], F64);
    let d_x = causal_conv::backward(&d_y, &x, &weight, &documents, Some(&mut d_weight));
    let plain = |x: &[Tensor]| plain_conv(&x[0], &x[1], &documents);
    let expected = autograd(plain, &[&x, &weight], &d_y);
    assert_close("d_x", &d_x, &expected[0], AUTOGRAD);
    assert_close("d_weight", &d_weight, &expected[1], AUTOGRAD);

    // The same channels many times over; what does not fill a vector of the processor is rounded in another way.
    let many = |x: &Tensor, dim: i64| x.repeat_interleave_self_int(wide / narrow, dim, None);
    let (x, weight, d_y) = (many(&x, 1), many(&weight, 0), many(&d_y, 1));
    assert_close("tiles", &causal_conv::forward(&x, &weight, &documents), &many(&y, 1), AUTOGRAD);
    let mut of_tiles = weight.zeros_like();
    let d_x_of_tiles = causal_conv::backward(&d_y, &x, &weight, &documents, Some(&mut of_tiles));
    assert_close("tiles, d_x", &d_x_of_tiles, &many(&d_x, 1), AUTOGRAD);
    assert_close("tiles, d_weight", &of_tiles, &many(&d_weight, 0), AUTOGRAD);
}

fn narrow(x: &Tensor, range: &Range<i64>) -> Tensor {
    x.narrow(0, range.start, range.end - range.start)
}
