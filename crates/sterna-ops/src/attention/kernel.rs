//! Runs a call on the kernel for its dtype and processor.
//!
//! bf16 on a processor with bf16 dot products of 512 bits has a kernel of ours, made of large matrix products and summing in
//! single precision; everything else is libtorch's CPU kernel, which is given bf16 in single precision where products are widened. Ours against libtorch's in ms, 2 cores of a Zen 5, 9 heads of 64 on
//! 3, forward and backward: 35 documents of 117 tokens 3.6 against 11.5 and 9.2 against 53; 8 of 512 tokens 5.5 against 32 and 14
//! against 65; one of 4,096 32 against 141 and 75 against 222. Its gradients of keys and values are twice as close to those in
//! double precision, because libtorch sums them in bf16.

use sterna_torch_sys::attention::{self, VisibleKeys};
use sterna_torch_sys::{Error, cuda_attention};
use tch::{Kind, Tensor};

use super::calls::{Call, Seen, query_tile_len};
use super::choice::{Kernel, MOST_CUDNN_ELEMENTS, Problem};
use super::{AttentionSpec, Documents, tiled};

/// What all calls of an attention share.
pub(super) struct Runner {
    scale: f64,
    softcap: Option<f64>,
    is_widened: bool,
    band: Option<BandMask>,
}

impl Runner {
    pub(super) fn new(
        problem: &Problem,
        spec: &AttentionSpec,
        documents: &Documents,
        q: &Tensor,
    ) -> Runner {
        let is_masked = !problem.is_cuda && !problem.is_blocked && !problem.has_softcap;
        let band = if is_masked { BandMask::new(problem, spec, documents, q) } else { None };
        Runner { scale: spec.scale, softcap: spec.softcap, is_widened: problem.is_widened, band }
    }

    /// Writes `o` `[kv, group, queries, h]` and `lse` `[kv, group, queries]` of a call's queries, as if it had all their keys.
    pub(super) fn forward(
        &self,
        call: &Call,
        [q, k, v]: [&Tensor; 3],
        mut o: Tensor,
        mut lse: Tensor,
    ) {
        let inputs = [q, k, v];
        let (q, k, v) = (call.queries(q), call.keys(k), call.keys(v));
        match call.kernel {
            Kernel::Blocked => {
                attention::forward([&q, &k, &v], &o, &lse, call.visible(), self.scale)
                    .unwrap_or_else(refused);
            }
            Kernel::Tiled => {
                tiled::forward([&q, &k, &v], [&o, &lse], call.visible(), self.scale, self.softcap);
            }
            Kernel::Flash | Kernel::Cudnn => {
                let heads = [o.size()[0], o.size()[1]];
                let (o_call, lse_call) = self.fused_forward(call, inputs);
                o.copy_(&o_call.unflatten(1, heads).permute([1, 2, 0, 3]));
                lse.copy_(&lse_call.unflatten(0, heads));
            }
            Kernel::Libtorch => {
                let [q, k, v] = [q, k, v].map(|x| self.operand(x));
                let (o_call, lse_call) =
                    Tensor::internal_scaled_dot_product_flash_attention_for_cpu(
                        &q,
                        &for_each_member(&k, &q),
                        &for_each_member(&v, &q),
                        0.0,
                        is_triangle(call),
                        self.mask(call),
                        self.scale,
                    );
                o.copy_(&o_call);
                lse.copy_(&lse_call);
            }
        }
    }

    /// Adds a call's shares to `d_q` `[s, n, h]`, and to `d_k` and `d_v` `[s, k, h]`. `o` and `lse` are those of all keys.
    ///
    /// A `d_q` in half precision has one call for each query.
    pub(super) fn backward(
        &self,
        call: &Call,
        [d_o, q, k, v, o, lse]: [&Tensor; 6],
        [d_q, d_k, d_v]: [&Tensor; 3],
    ) {
        let (inputs, gradients) = ([d_o, q, k, v, o, lse], [d_q, d_k, d_v]);
        let [d_o, q, o, mut d_q] = [d_o, q, o, d_q].map(|x| call.queries(x));
        let (k, v, lse) = (call.keys(k), call.keys(v), call.log_sums(lse));
        let (d_k_call, d_v_call) = match call.kernel {
            Kernel::Blocked => {
                let inputs = [&d_o, &q, &k, &v, &o, &lse];
                attention::backward(inputs, &d_q, call.visible(), self.scale)
                    .unwrap_or_else(refused)
            }
            Kernel::Tiled => {
                let inputs = [&d_o, &q, &k, &v, &o, &lse];
                tiled::backward(inputs, &d_q, call.visible(), self.scale, self.softcap)
            }
            Kernel::Flash | Kernel::Cudnn => {
                let [d_q_call, d_k_call, d_v_call] = self.fused_backward(call, inputs);
                let [d_q, d_k, d_v] = gradients;
                let _ = call.flat_queries(d_q).g_add_(&d_q_call);
                let _ = call.flat_keys(d_k).g_add_(&d_k_call);
                let _ = call.flat_keys(d_v).g_add_(&d_v_call);
                return;
            }
            Kernel::Libtorch => {
                let [d_o, q, k, v, o] = [d_o, q, k, v, o].map(|x| self.operand(x));
                let (d_q_call, d_k_call, d_v_call) =
                    Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
                        &d_o,
                        &q,
                        &for_each_member(&k, &q),
                        &for_each_member(&v, &q),
                        &o,
                        &lse,
                        0.0,
                        is_triangle(call),
                        self.mask(call),
                        self.scale,
                    );
                let _ = d_q.g_add_(&d_q_call);
                (d_k_call, d_v_call)
            }
        };
        call.add_to_keys(d_k, &d_k_call);
        drop(d_k_call);
        call.add_to_keys(d_v, &d_v_call);
    }

    /// The result of the only call there is, as the kernel returns it, if that call is a fused kernel's and is all of the attention.
    pub(super) fn whole_forward(
        &self,
        calls: &[Call],
        inputs: [&Tensor; 3],
    ) -> Option<(Tensor, Tensor)> {
        is_whole(calls, inputs).then(|| self.fused_forward(&calls[0], inputs))
    }

    /// As [`Runner::whole_forward`], of the backward.
    pub(super) fn whole_backward(
        &self,
        calls: &[Call],
        inputs: [&Tensor; 6],
    ) -> Option<[Tensor; 3]> {
        let [_, q, k, v, ..] = inputs;
        is_whole(calls, [q, k, v]).then(|| self.fused_backward(&calls[0], inputs))
    }

    /// `o` `[queries, kv * group, h]` and `lse` `[kv * group, queries]` of a call of a CUDA device's own kernels.
    fn fused_forward(&self, call: &Call, [q, k, v]: [&Tensor; 3]) -> (Tensor, Tensor) {
        let inputs = [call.flat_queries(q), call.flat_keys(k), call.flat_keys(v)];
        match &call.seen {
            Seen::Pack(pack) => {
                let lengths = pack.lengths(q.device());
                cuda_attention::flash_forward(inputs.each_ref(), lengths, self.scale)
            }
            Seen::Document(_) => {
                let inputs = inputs.map(|x| with_short_offsets(&x));
                cuda_attention::cudnn_forward(inputs.each_ref(), is_triangle(call), self.scale)
            }
        }
        .unwrap_or_else(refused)
    }

    /// The gradients of a call of a CUDA device's own kernels, as [`Call::flat_queries`] and [`Call::flat_keys`].
    fn fused_backward(&self, call: &Call, [d_o, q, k, v, o, lse]: [&Tensor; 6]) -> [Tensor; 3] {
        let [d_o, q, o] = [d_o, q, o].map(|x| call.flat_queries(x));
        let [k, v] = [k, v].map(|x| call.flat_keys(x));
        let lse = call.log_sums(lse).flatten(0, 1);
        match &call.seen {
            Seen::Pack(pack) => {
                let inputs = [&d_o, &q, &k, &v, &o, &lse];
                cuda_attention::flash_backward(inputs, pack.lengths(q.device()), self.scale)
            }
            Seen::Document(_) => {
                let [q, k, v] = [q, k, v].map(|x| with_short_offsets(&x));
                let inputs = [&d_o, &q, &k, &v, &o, &lse];
                cuda_attention::cudnn_backward(inputs, is_triangle(call), self.scale)
            }
        }
        .unwrap_or_else(refused)
    }

    /// What libtorch's kernel reads of a call.
    fn operand(&self, x: Tensor) -> Tensor {
        if self.is_widened { x.to_kind(Kind::Float) } else { x }
    }

    fn mask(&self, call: &Call) -> Option<Tensor> {
        let VisibleKeys { keys_before, window } = call.visible();
        (window < VisibleKeys::NO_WINDOW).then(|| {
            let band =
                self.band.as_ref().expect("a call has a window only if a document is longer");
            band.of(call.num_queries(), call.num_keys(), keys_before)
        })
    }
}

/// Whether one call of a fused kernel reads and writes all of the tensors.
fn is_whole(calls: &[Call], [q, k, _]: [&Tensor; 3]) -> bool {
    let [call] = calls else { return false };
    matches!(call.kernel, Kernel::Flash | Kernel::Cudnn)
        && call.flat_queries(q).size() == q.size()
        && call.flat_keys(k).size() == k.size()
}

/// `[tokens, heads, h]` whose elements lie within 2^31 of the first: a copy, if they are some heads of a tensor that is longer.
fn with_short_offsets(x: &Tensor) -> Tensor {
    if x.size()[0] * x.stride()[0] < MOST_CUDNN_ELEMENTS {
        x.shallow_clone()
    } else {
        x.contiguous()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what `unwrap_or_else` hands over")]
fn refused<T>(error: Error) -> T {
    panic!("attention: {error}")
}

/// Keys `[kv, keys, h]` as `[kv, group, keys, h]`, without a copy for each member of the group.
fn for_each_member(keys: &Tensor, q: &Tensor) -> Tensor {
    keys.unsqueeze(1).expand([-1, q.size()[1], -1, -1], false)
}

/// Whether libtorch's causal mask says what is visible; if not, and there is no window, everything is.
fn is_triangle(call: &Call) -> bool {
    call.visible() == VisibleKeys { keys_before: 0, window: VisibleKeys::NO_WINDOW }
}

/// Which keys of a band a tile of queries sees: zeros and minus infinities, to add to the scores.
struct BandMask {
    /// `[tile, tile + window - 1]`: row `i` sees columns `i .. i + window`.
    mask: Tensor,
}

impl BandMask {
    /// The one mask that all tiles of all documents are cut from, if any document is longer than the window.
    fn new(
        problem: &Problem,
        spec: &AttentionSpec,
        documents: &Documents,
        q: &Tensor,
    ) -> Option<BandMask> {
        let window = spec.sliding_window?;
        let longest = documents.ranges().iter().map(|range| range.end - range.start).max()?;
        if longest <= window {
            return None;
        }
        let tile_len = query_tile_len(window).min(longest);
        let num_columns = tile_len + window - 1;
        let kind = if problem.is_widened { Kind::Float } else { q.kind() };
        let options = (kind, q.device());
        let mask = Tensor::full([tile_len, num_columns], f64::NEG_INFINITY, options);
        // A row further and a column further: the band is a rectangle of these strides.
        let _ = mask.as_strided([tile_len, window], [num_columns + 1, 1], None).zero_();
        Some(BandMask { mask })
    }

    /// The first tiles of a document have fewer keys before them than the band is wide, the last has fewer queries.
    fn of(&self, num_queries: i64, num_keys: i64, keys_before: i64) -> Tensor {
        let window = self.mask.size()[1] - self.mask.size()[0] + 1;
        self.mask.narrow(0, 0, num_queries).narrow(1, window - 1 - keys_before, num_keys)
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::super::choice::tests::problem;
    use super::*;
    use crate::attention::Implementation;

    #[test]
    fn the_mask_of_a_long_window_has_few_rows() {
        let spec = AttentionSpec {
            kv_of_q: vec![0],
            scale: 1.0,
            softcap: None,
            sliding_window: Some(32_768),
            implementation: Implementation::Automatic,
        };
        let documents = Documents::new(iter::once(0..65_536).collect());
        let q = Tensor::zeros([0], (tch::Kind::BFloat16, tch::Device::Cpu));
        let mask = BandMask::new(&problem(false), &spec, &documents, &q)
            .expect("a window needs a mask")
            .mask;
        assert_eq!(mask.size(), [512, 512 + 32_768 - 1]);
    }
}
