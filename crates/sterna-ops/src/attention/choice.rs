//! Which kernel computes the attention of a document.
//!
//! On a CPU the processor decides; on a CUDA device the dtype, the head size, the window and the length of the document do.

use std::sync::atomic::{AtomicU8, Ordering};

use sterna_torch_sys::attention;
use tch::{Device, Kind, Tensor};

use super::calls::{Block, Call};
use super::{AttentionSpec, Documents};
use crate::is_widened;

/// A document of at least this many tokens is worth a plan of cuDNN's own.
///
/// cuDNN compiles a plan for each new length, which a short document never pays back and packs of many lengths would ask for all
/// the time; packed kernels take any lengths. At 16,384 tokens the attention of one layer is most of the layer's time, and the
/// plan serves every layer of a step. Judged from what a plan costs, not measured.
const LEAST_CUDNN_LEN: i64 = 16_384;

/// How many queries and keys a call of cuDNN has at least, for each token of the shortest document that is cuDNN's: 128 for 16,384,
/// the length of a tile of its kernels.
///
/// Queries that are streamed against chunks of keys leave blocks of any size, each with a plan of its own. cuDNN 9.19 takes no single
/// key at all (`check_cudnn_tensor_shapes` in libtorch's `transformers/cuda/sdp_utils.cpp`), and is wrong for a single query on
/// compute capability 10 (`cudnn/MHA.cpp` of later versions refuses it).
const LEAST_CUDNN_SIDE: i64 = 128;

/// Elements from where cuDNN's offsets would need more than 32 bits.
pub(super) const MOST_CUDNN_ELEMENTS: i64 = 1 << 31;

/// [`Problem::most_query_elements`], but in tests.
///
/// The backward of a call holds its queries in single precision and the gradients of its keys and values for each query head:
/// 4 and twice 2 bytes for each of these, so 4 GiB. A kernel reaches all of a processor with far fewer, but a cut copies what it cuts:
/// 2^29 are the 32 heads of 128 of an 8B model over 131,072 tokens. Below 2^31, from where offsets need more than 32 bits.
const MOST_QUERY_ELEMENTS: i64 = 1 << 29;

/// Which kernels may compute an attention on a CUDA device. All are exact. A CPU has one for each dtype, and no choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Implementation {
    /// The fastest for each document: cuDNN for a long one without a window, FlashAttention 2 for packs and windows, and products
    /// of tiles for what these two do not take.
    #[default]
    Automatic,
    /// FlashAttention 2 for everything.
    Flash,
}

/// A dtype, head size or softcap that a kernel which was asked for by name does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "libtorch's FlashAttention 2 takes bf16 and fp16 with head sizes that are multiples of 8 up to 256, and no softcap of scores; \
     this attention has {kind:?} with {head_dim}{}",
    if *has_softcap { " and a softcap" } else { "" }
)]
pub struct NotFlash {
    /// The dtype of queries, keys and values.
    pub kind: Kind,
    /// The head size.
    pub head_dim: i64,
    /// Whether scores are softcapped.
    pub has_softcap: bool,
}

impl Implementation {
    /// Whether attention with this dtype, this head size and softcapped scores or not can be computed so on a CUDA device.
    ///
    /// # Errors
    ///
    /// [`NotFlash`] if [`Implementation::Flash`] is asked for and does not take them.
    pub fn check(self, kind: Kind, head_dim: i64, has_softcap: bool) -> Result<(), NotFlash> {
        let is_possible =
            self == Implementation::Automatic || flash_takes(kind, head_dim) && !has_softcap;
        if is_possible { Ok(()) } else { Err(NotFlash { kind, head_dim, has_softcap }) }
    }
}

/// What computes a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// CPU: [`sterna_torch_sys::attention`]: a query sees any run of keys.
    Blocked,
    /// CPU: `aten::_scaled_dot_product_flash_attention_for_cpu`: a query sees all keys, or those of a triangle, or what a mask says.
    /// Where [`Problem::is_widened`], it is given single precision.
    Libtorch,
    /// CUDA: [`sterna_torch_sys::cuda_attention::flash_forward`]: many documents, a query sees a window of its own.
    Flash,
    /// CUDA: [`sterna_torch_sys::cuda_attention::cudnn_forward`]: one document, a query sees all keys or those of a triangle.
    Cudnn,
    /// [`super::tiled`]: a query sees any run of keys. On a CUDA device what the two above do not take; on both, softcapped scores.
    Tiled,
}

/// What a choice depends on beside the length of a document.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent property")]
pub(super) struct Problem {
    pub(super) is_cuda: bool,
    /// Whether this processor's own kernel takes the queries.
    pub(super) is_blocked: bool,
    /// Whether the operands of a call are widened to single precision.
    pub(super) is_widened: bool,
    pub(super) kind: Kind,
    pub(super) head_dim: i64,
    /// The most query heads on one kv head.
    pub(super) group_size: i64,
    pub(super) sliding_window: Option<i64>,
    pub(super) has_softcap: bool,
    pub(super) implementation: Implementation,
    /// Tokens from where a document is cuDNN's.
    pub(super) least_cudnn_len: i64,
    /// Elements of the queries of one call on a CUDA device, if they are of more than one kv head.
    pub(super) most_query_elements: i64,
}

impl Problem {
    pub(super) fn new(spec: &AttentionSpec, q: &Tensor) -> Problem {
        let groups = spec.kv_of_q.chunk_by(|a, b| a == b);
        let is_widened = is_widened(q);
        Problem {
            is_cuda: matches!(q.device(), Device::Cuda(_)),
            is_blocked: !is_widened && attention::is_supported(q),
            is_widened,
            kind: q.kind(),
            head_dim: q.size()[2],
            group_size: groups.map(<[usize]>::len).max().unwrap_or(1) as i64,
            sliding_window: spec.sliding_window,
            has_softcap: spec.softcap.is_some(),
            implementation: spec.implementation,
            least_cudnn_len: LEAST_CUDNN_LEN,
            most_query_elements: MOST_QUERY_ELEMENTS,
        }
    }

    /// The kernel for a document of `len` tokens, however much of it a call has.
    ///
    /// # Panics
    ///
    /// If [`Implementation::check`] refuses.
    pub(super) fn kernel(&self, len: i64) -> Kernel {
        if !self.is_cuda && self.has_softcap {
            return Kernel::Tiled;
        }
        if !self.is_cuda {
            return if self.is_blocked { Kernel::Blocked } else { Kernel::Libtorch };
        }
        if let Err(error) = self.implementation.check(self.kind, self.head_dim, self.has_softcap) {
            panic!("attention: {error}");
        }
        let has_window = self.sliding_window.is_some_and(|window| window < len);
        let is_long = len >= self.least_cudnn_len
            && len.saturating_mul(self.group_size * self.head_dim) < MOST_CUDNN_ELEMENTS;
        if self.has_softcap || !flash_takes(self.kind, self.head_dim) {
            Kernel::Tiled
        } else if self.implementation == Implementation::Flash
            || has_window
            || !is_long
            || self.head_dim > 128
        {
            Kernel::Flash
        } else {
            Kernel::Cudnn
        }
    }

    /// Whether cuDNN computes a block of a document that is its own; FlashAttention 2 does otherwise.
    pub(super) fn is_cudnn_block(&self, (queries, keys): &Block) -> bool {
        let side = (queries.end - queries.start).min(keys.end - keys.start);
        side >= (self.least_cudnn_len / (LEAST_CUDNN_LEN / LEAST_CUDNN_SIDE)).max(2)
    }
}

/// Tells of the first use of each kernel in this process, on a device where there is a choice.
pub(super) fn log_first_use(problem: &Problem, calls: &[Call], documents: &Documents) {
    static TOLD: AtomicU8 = AtomicU8::new(0);
    for kernel in first_uses(&TOLD, calls) {
        let lengths = documents.ranges().iter().map(|document| document.end - document.start);
        tracing::info!(
            kernel,
            dtype = ?problem.kind,
            head_dim = problem.head_dim,
            sliding_window = problem.sliding_window,
            num_documents = documents.ranges().len(),
            longest_document = lengths.max().unwrap_or(0),
            "attention on the GPU, first use of a kernel",
        );
    }
}

/// The names of those kernels of the calls that were not told of before.
fn first_uses(told: &AtomicU8, calls: &[Call]) -> Vec<&'static str> {
    let kernels = [
        (Kernel::Flash, "FlashAttention 2", 1),
        (Kernel::Cudnn, "cuDNN", 2),
        (Kernel::Tiled, "products of tiles", 4),
    ];
    let is_first = |(kernel, _, bit): &(Kernel, &str, u8)| {
        calls.iter().any(|call| call.kernel == *kernel)
            && told.fetch_or(*bit, Ordering::Relaxed) & bit == 0
    };
    kernels.into_iter().filter(is_first).map(|(_, name, _)| name).collect()
}

fn flash_takes(kind: Kind, head_dim: i64) -> bool {
    matches!(kind, Kind::BFloat16 | Kind::Half)
        && head_dim % 8 == 0
        && (8..=256).contains(&head_dim)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::calls::calls;
    use super::*;

    /// 8 query heads of 128 on each kv head in bf16.
    pub(in super::super) fn problem(is_cuda: bool) -> Problem {
        Problem {
            is_cuda,
            is_blocked: false,
            is_widened: false,
            kind: Kind::BFloat16,
            head_dim: 128,
            group_size: 8,
            sliding_window: None,
            has_softcap: false,
            implementation: Implementation::Automatic,
            least_cudnn_len: LEAST_CUDNN_LEN,
            most_query_elements: MOST_QUERY_ELEMENTS,
        }
    }

    #[test]
    fn a_block_of_cudnn_has_more_than_one_query_and_key() {
        let problem = problem(true);
        let takes = |queries, keys| problem.is_cudnn_block(&(7..7 + queries, 3..3 + keys));
        assert!(takes(128, 128) && takes(LEAST_CUDNN_LEN, 128));
        assert!(!takes(LEAST_CUDNN_LEN, 127) && !takes(127, LEAST_CUDNN_LEN));
        let least = Problem { least_cudnn_len: 1, ..problem };
        assert!(!least.is_cudnn_block(&(0..1, 0..9)) && !least.is_cudnn_block(&(0..9, 0..1)));
        assert!(least.is_cudnn_block(&(0..2, 0..2)));
    }

    #[test]
    fn a_cpu_has_one_kernel_for_each_dtype() {
        for len in [1, LEAST_CUDNN_LEN] {
            for implementation in [Implementation::Automatic, Implementation::Flash] {
                let on_cpu = Problem { implementation, ..problem(false) };
                assert_eq!(on_cpu.kernel(len), Kernel::Libtorch);
                assert_eq!(Problem { is_blocked: true, ..on_cpu }.kernel(len), Kernel::Blocked);
            }
        }
    }

    #[test]
    fn a_long_document_is_cudnns_and_everything_else_in_half_precision_flashs() {
        let long = LEAST_CUDNN_LEN;
        let auto = problem(true);
        let forced = Problem { implementation: Implementation::Flash, ..auto };
        let windowed = Problem { sliding_window: Some(long - 1), ..auto };
        let table = [
            (auto, long, Kernel::Cudnn),
            (auto, long - 1, Kernel::Flash),
            (auto, 1, Kernel::Flash),
            (Problem { kind: Kind::Half, ..auto }, long, Kernel::Cudnn),
            (forced, long, Kernel::Flash),
            (windowed, long, Kernel::Flash),
            (windowed, 1, Kernel::Flash),
            // A window as long as the document is none.
            (Problem { sliding_window: Some(long), ..auto }, long, Kernel::Cudnn),
            (Problem { head_dim: 136, ..auto }, long, Kernel::Flash),
            (Problem { head_dim: 256, ..auto }, long, Kernel::Flash),
            // 2^21 tokens of 8 heads of 128 are 2^31 elements.
            (auto, (1 << 21) - 1, Kernel::Cudnn),
            (auto, 1 << 21, Kernel::Flash),
            (Problem { group_size: 4, ..auto }, 1 << 21, Kernel::Cudnn),
        ];
        for (problem, len, expected) in table {
            assert_eq!(problem.kernel(len), expected, "{problem:?} of {len} tokens");
        }
    }

    #[test]
    fn what_no_flash_kernel_takes_is_tiled() {
        for (kind, head_dim) in [
            (Kind::Float, 128),
            (Kind::Double, 64),
            (Kind::BFloat16, 4),
            (Kind::BFloat16, 60),
            (Kind::Half, 264),
        ] {
            let auto = Problem { kind, head_dim, ..problem(true) };
            for len in [1, LEAST_CUDNN_LEN] {
                assert_eq!(auto.kernel(len), Kernel::Tiled);
            }
            let refused = Implementation::Flash.check(kind, head_dim, false);
            assert_eq!(refused, Err(NotFlash { kind, head_dim, has_softcap: false }));
        }
        assert_eq!(Implementation::Flash.check(Kind::Half, 256, false), Ok(()));
    }

    #[test]
    fn softcapped_scores_are_tiled_on_every_device() {
        for is_cuda in [false, true] {
            let capped = Problem { has_softcap: true, ..problem(is_cuda) };
            for len in [1, LEAST_CUDNN_LEN] {
                assert_eq!(capped.kernel(len), Kernel::Tiled);
                assert_eq!(Problem { is_blocked: true, ..capped }.kernel(len), Kernel::Tiled);
            }
        }
        let refused = NotFlash { kind: Kind::BFloat16, head_dim: 128, has_softcap: true };
        assert_eq!(Implementation::Flash.check(Kind::BFloat16, 128, true), Err(refused));
        assert_eq!(Implementation::Automatic.check(Kind::BFloat16, 128, true), Ok(()));
    }

    #[test]
    fn each_kernel_is_told_of_once() {
        let spec = AttentionSpec {
            kv_of_q: vec![0],
            scale: 1.0,
            softcap: None,
            sliding_window: None,
            implementation: Implementation::Automatic,
        };
        let told = AtomicU8::new(0);
        let first_uses = |problem: &Problem, len: i64| {
            let documents = Documents::new(vec![0..len, len..len + 5]);
            let all = 0..len + 5;
            super::first_uses(&told, &calls(problem, &spec, &documents, &all, &all))
        };
        // A CPU has no choice.
        assert!(first_uses(&problem(false), 9).is_empty());
        assert_eq!(first_uses(&problem(true), 9), ["FlashAttention 2"]);
        assert_eq!(first_uses(&problem(true), LEAST_CUDNN_LEN), ["cuDNN"]);
        assert!(first_uses(&problem(true), LEAST_CUDNN_LEN).is_empty());
        let single = Problem { kind: Kind::Float, ..problem(true) };
        assert_eq!(first_uses(&single, 9), ["products of tiles"]);
    }

    #[test]
    fn a_kernel_asked_for_by_name_is_never_replaced() {
        let forced = Problem { implementation: Implementation::Flash, ..problem(true) };
        let refused = Problem { kind: Kind::Float, ..forced };
        let panic = std::panic::catch_unwind(|| refused.kernel(1)).unwrap_err();
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(message.contains("FlashAttention 2 takes bf16 and fp16"), "{message}");
    }
}
