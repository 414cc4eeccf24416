//! The kernels of a CUDA device against the definition in double precision, on a fake device that computes what the real operators
//! do and refuses what they refuse or get wrong.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::calls::calls;
use super::choice::{Kernel, Problem};
use super::streamed::{KeysValues, Streamed};
use super::{AttentionSpec, Documents, Implementation, backward_of, forward_of};

const GPU: Device = Device::Cuda(0);

/// One attention: inputs of `kind`, which the definition reads in double precision.
struct Case {
    spec: AttentionSpec,
    documents: Documents,
    kind: Kind,
    /// `[s, n, h]`, `[s, k, h]`, `[s, k, h]`, and the gradient of the output, all parts of wider tensors.
    inputs: [Tensor; 4],
    least_cudnn_len: i64,
    most_query_elements: i64,
}

/// What the definition gives: `o`, `lse`, `d_q`, `d_k`, `d_v`.
type Results = [Tensor; 5];

impl Case {
    fn new(kind: Kind, kv_of_q: &[usize], head_dim: i64, lengths: &[i64]) -> Case {
        let mut end = 0;
        let documents = lengths.iter().map(|len| {
            end += len;
            end - len..end
        });
        let documents = Documents::new(documents.collect());
        let (n, k) = (kv_of_q.len() as i64, kv_of_q[kv_of_q.len() - 1] as i64 + 1);
        tch::manual_seed(7 * end + head_dim);
        let random = |heads| {
            let x = Tensor::randn([end, heads, head_dim], (Kind::Float, Device::Cpu));
            x.to_kind(kind).to_device(GPU)
        };
        // As sliced from one product of queries, keys and values.
        let qkv = random(n + 2 * k);
        let inputs = [
            qkv.narrow(1, 0, n),
            qkv.narrow(1, n, k),
            qkv.narrow(1, n + k, k),
            random(n + 1).narrow(1, 1, n),
        ];
        let spec = AttentionSpec {
            kv_of_q: kv_of_q.to_vec(),
            // Sharp enough that one key more or less shows.
            scale: 2.0 / (head_dim as f64).sqrt(),
            softcap: None,
            sliding_window: None,
            implementation: Implementation::Automatic,
        };
        let (least_cudnn_len, most_query_elements) = (1 << 40, 1 << 40);
        Case { spec, documents, kind, inputs, least_cudnn_len, most_query_elements }
    }

    fn problem(&self) -> Problem {
        Problem {
            least_cudnn_len: self.least_cudnn_len,
            most_query_elements: self.most_query_elements,
            ..Problem::new(&self.spec, &self.inputs[0])
        }
    }

    fn num_tokens(&self) -> i64 {
        self.documents.num_tokens()
    }

    /// The kernels that compute a run of queries against a run of keys.
    fn kernels(&self, queries: &Range<i64>, keys: &Range<i64>) -> BTreeSet<String> {
        let calls = calls(&self.problem(), &self.spec, &self.documents, queries, keys);
        calls.iter().map(|call| format!("{:?}", call.kernel)).collect()
    }

    /// `[s, s]`: minus infinity where a query does not see a key.
    fn mask(&self) -> Tensor {
        let s = self.num_tokens();
        let window = self.spec.sliding_window.unwrap_or(s);
        let mut mask = vec![f64::NEG_INFINITY; (s * s) as usize];
        for document in self.documents.ranges() {
            for i in document.clone() {
                for j in document.start.max(i - window + 1)..=i {
                    mask[(i * s + j) as usize] = 0.0;
                }
            }
        }
        Tensor::from_slice(&mask).view([s, s])
    }

    fn expected(&self) -> Results {
        let leaf = |x: &Tensor| x.to_device(Device::Cpu).to_kind(Kind::Double);
        let [q, k, v, d_o] = self.inputs.each_ref().map(leaf);
        let [q, k, v] = [q, k, v].map(|x| x.set_requires_grad(true));
        let map: Vec<i64> = self.spec.kv_of_q.iter().map(|kv| *kv as i64).collect();
        let map = Tensor::from_slice(&map);
        let heads = |x: &Tensor| x.index_select(1, &map).transpose(0, 1);
        let scores = q.transpose(0, 1).matmul(&heads(&k).transpose(1, 2)) * self.spec.scale;
        let scores = scores + self.mask();
        let o = scores.softmax(-1, Kind::Double).matmul(&heads(&v)).transpose(0, 1);
        (&o * d_o).sum(Kind::Double).backward();
        let lse = scores.logsumexp(-1_i64, false);
        [o.detach(), lse.detach(), q.grad(), k.grad(), v.grad()]
    }

    /// All at once.
    fn whole(&self) -> Results {
        let [q, k, v, d_o] = self.inputs.each_ref();
        let problem = self.problem();
        let (o, lse) = forward_of(&problem, [q, k, v], &self.spec, &self.documents);
        let inputs = [d_o, q, k, v, &o, &lse];
        let (d_q, d_k, d_v) = backward_of(&problem, inputs, &self.spec, &self.documents);
        [o, lse, d_q, d_k, d_v]
    }

    /// In tiles of queries against chunks of keys.
    fn streamed(&self, tile_len: i64, key_chunk_len: i64) -> Results {
        let [q, k, v, d_o] = self.inputs.each_ref();
        let problem = self.problem();
        let streamed = Streamed { spec: &self.spec, documents: &self.documents, key_chunk_len };
        let accumulate = crate::accumulate_kind(self.kind);
        let totals = [q, k, v].map(|x| x.to_kind(accumulate).zeros_like());
        let [d_q, d_k, d_v] = &totals;
        let (mut o_parts, mut lse_parts) = (Vec::new(), Vec::new());
        for tile in crate::tile::tiles(self.num_tokens(), tile_len) {
            let of_tile = |x: &Tensor| x.narrow(0, tile.start, tile.end - tile.start);
            let Ok((o, lse)) = streamed.forward_of(&problem, &of_tile(q), &tile, &mut (k, v));
            let inputs = [&of_tile(d_o), &of_tile(q), &o, &lse];
            let add = |chunk: &Range<i64>, d_k_share: Tensor, d_v_share: Tensor| {
                for (total, share) in [(d_k, d_k_share), (d_v, d_v_share)] {
                    let _ = total.narrow(0, chunk.start, chunk.end - chunk.start).g_add_(&share);
                }
                Ok(())
            };
            let Ok(d_q_tile) = streamed.backward_of(&problem, inputs, &tile, &mut (k, v), add);
            of_tile(d_q).copy_(&d_q_tile);
            o_parts.push(o);
            lse_parts.push(lse);
        }
        let [d_q, d_k, d_v] = totals;
        [Tensor::cat(&o_parts, 0), Tensor::cat(&lse_parts, 1), d_q, d_k, d_v]
    }

    /// Compares with the definition: to half a digit of bf16 for each rounding, of which a streamed result has one for each chunk.
    #[track_caller]
    fn check(&self, actual: &Results, name: &str) {
        let name = format!(
            "{name}: {:?} of {:?} with heads {:?} of {}, window {:?}",
            self.kind,
            self.documents.ranges(),
            self.spec.kv_of_q,
            self.inputs[0].size()[2],
            self.spec.sliding_window
        );
        let tolerance = if self.kind == Kind::Float { 1e-5 } else { 1.0 / 128.0 };
        let expected = self.expected();
        for (what, actual, expected) in named(actual, &expected) {
            assert_eq!(actual.device(), GPU, "{name}: {what}");
            assert_eq!(actual.size(), expected.size(), "{name}: {what}");
            let actual = actual.to_device(Device::Cpu).to_kind(Kind::Double);
            let error = (actual - expected).abs().max().double_value(&[]);
            // The log-sum-exp is single precision throughout.
            let tolerance = if what == "lse" { 1e-5 } else { tolerance };
            let most = tolerance * expected.abs().max().double_value(&[]).max(1.0);
            assert!(error <= most, "{name}: {what} differs by {error:e}, more than {most:e}");
        }
    }
}

fn named<'a>(
    actual: &'a Results,
    expected: &'a Results,
) -> impl Iterator<Item = (&'static str, &'a Tensor, &'a Tensor)> {
    let names = ["o", "lse", "d_q", "d_k", "d_v"];
    names.into_iter().zip(actual.iter().zip(expected)).map(|(name, (a, b))| (name, a, b))
}

impl KeysValues for (&Tensor, &Tensor) {
    type Error = Infallible;

    fn fetch(&mut self, tokens: &Range<i64>) -> Result<(Tensor, Tensor), Infallible> {
        let of = |x: &Tensor| x.narrow(0, tokens.start, tokens.end - tokens.start);
        Ok((of(self.0), of(self.1)))
    }

    fn prefetch(&mut self, _tokens: &Range<i64>) -> Result<(), Infallible> {
        Ok(())
    }
}

/// An even map, as many kv heads as query heads, and what two ranks have of nine heads on three.
const HEAD_MAPS: [&[usize]; 4] = [&[0, 0, 1, 1], &[0, 1, 2], &[0, 0, 0, 1, 1], &[0, 1, 1, 1]];
const PACK: [i64; 6] = [1, 5, 33, 2, 1, 19];

#[test]
fn packs_are_computed_by_flash_attention() {
    sterna_fake_cuda::install();
    for head_map in HEAD_MAPS {
        for head_dim in [64, 96, 128, 256] {
            for lengths in [&PACK[..], &[1], &[40]] {
                for sliding_window in [None, Some(1), Some(7), Some(33)] {
                    let mut case = Case::new(Kind::BFloat16, head_map, head_dim, lengths);
                    case.spec.sliding_window = sliding_window;
                    let all = 0..case.num_tokens();
                    assert_eq!(case.kernels(&all, &all), BTreeSet::from(["Flash".to_owned()]));
                    case.check(&case.whole(), "whole");
                }
            }
        }
    }
}

#[test]
fn the_host_does_not_wait_for_attention() {
    sterna_fake_cuda::install();
    let mut case = Case::new(Kind::BFloat16, &[0, 0, 1], 64, &[20, 300, 7]);
    case.least_cudnn_len = 256;
    sterna_fake_cuda::reset_host_syncs();
    let _ = case.whole();
    let _ = case.streamed(100, 150);
    assert_eq!(sterna_fake_cuda::host_sync_causes(), []);
}

#[test]
fn packs_are_streamed_through_flash_attention() {
    sterna_fake_cuda::install();
    for head_map in HEAD_MAPS {
        for sliding_window in [None, Some(1), Some(7), Some(33)] {
            for (tile_len, key_chunk_len) in [(16, 16), (13, 20), (20, 13), (9, 61), (61, 9)] {
                let mut case = Case::new(Kind::BFloat16, head_map, 64, &PACK);
                case.spec.sliding_window = sliding_window;
                let results = case.streamed(tile_len, key_chunk_len);
                case.check(&results, &format!("tiles of {tile_len}, chunks of {key_chunk_len}"));
            }
        }
    }
}

#[test]
fn heads_are_computed_in_groups_where_all_at_once_are_too_many() {
    sterna_fake_cuda::install();
    for (head_map, num_calls) in [(&[0, 0, 1, 1, 2, 2][..], 3), (&[0, 0, 0, 1, 1], 2)] {
        for least_cudnn_len in [256, 1 << 40] {
            let mut case = Case::new(Kind::BFloat16, head_map, 64, &[300]);
            // Three heads of one document.
            case.most_query_elements = 3 * 64 * 300;
            case.least_cudnn_len = least_cudnn_len;
            let all = 0..case.num_tokens();
            let calls = calls(&case.problem(), &case.spec, &case.documents, &all, &all);
            assert_eq!(calls.len(), num_calls);
            case.check(&case.whole(), "in groups");
        }
    }
}

#[test]
fn long_documents_are_computed_by_cudnn() {
    sterna_fake_cuda::install();
    for head_map in HEAD_MAPS {
        for (head_dim, lengths) in [(64, &[300][..]), (96, &[256]), (128, &[20, 300, 5, 3, 280])] {
            for kind in [Kind::BFloat16, Kind::Half] {
                let mut case = Case::new(kind, head_map, head_dim, lengths);
                case.least_cudnn_len = 256;
                let all = 0..case.num_tokens();
                let expected =
                    if lengths.len() == 1 { &["Cudnn"][..] } else { &["Cudnn", "Flash"] };
                assert_eq!(Vec::from_iter(case.kernels(&all, &all)), expected);
                case.check(&case.whole(), "whole");
            }
        }
    }
}

#[test]
fn long_documents_are_streamed_through_cudnn() {
    sterna_fake_cuda::install();
    for head_map in HEAD_MAPS {
        // Cut so that a single query, a single key and both are left over.
        for (tile_len, key_chunk_len) in [(128, 128), (100, 150), (77, 76), (301, 64), (150, 299)] {
            let mut case = Case::new(Kind::BFloat16, head_map, 64, &[20, 300, 7]);
            case.least_cudnn_len = 256;
            let results = case.streamed(tile_len, key_chunk_len);
            case.check(&results, &format!("tiles of {tile_len}, chunks of {key_chunk_len}"));
        }
    }
}

#[test]
fn what_cudnn_does_not_take_of_its_own_documents_is_flash_attentions() {
    sterna_fake_cuda::install();
    let mut case = Case::new(Kind::BFloat16, &[0], 64, &[300]);
    case.least_cudnn_len = 256;
    let kernels = |queries, keys| Vec::from_iter(case.kernels(&queries, &keys));
    assert_eq!(kernels(100..200, 0..100), ["Cudnn"]);
    assert_eq!(kernels(100..200, 0..1), ["Flash"]);
    assert_eq!(kernels(100..101, 0..100), ["Flash"]);
    // A triangle, the rectangle before it, and a single query behind all keys.
    assert_eq!(kernels(50..150, 0..149), ["Cudnn", "Flash"]);
    assert_eq!(case.problem().kernel(300), Kernel::Cudnn);
}

#[test]
fn single_precision_and_odd_heads_are_computed_in_tiles() {
    sterna_fake_cuda::install();
    for (kind, head_dim) in [(Kind::Float, 64), (Kind::Float, 20), (Kind::BFloat16, 20)] {
        for head_map in HEAD_MAPS {
            for sliding_window in [None, Some(7)] {
                let mut case = Case::new(kind, head_map, head_dim, &PACK);
                case.spec.sliding_window = sliding_window;
                let all = 0..case.num_tokens();
                assert_eq!(Vec::from_iter(case.kernels(&all, &all)), ["Tiled"]);
                case.check(&case.whole(), "whole");
                case.check(&case.streamed(13, 20), "streamed");
            }
        }
    }
}
