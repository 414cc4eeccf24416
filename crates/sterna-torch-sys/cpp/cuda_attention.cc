// The operators are dispatched: this file links libtorch_cpu only, and a CUDA kernel answers once libtorch_cuda is loaded.

#include "cuda_attention.h"

#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention_backward.h>
#include <ATen/ops/empty.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "sterna-torch-sys/src/bridge.rs.h"

namespace sterna {
namespace {

std::unique_ptr<at::Tensor> own(at::Tensor tensor) { return std::make_unique<at::Tensor>(std::move(tensor)); }

AttentionOutput output(at::Tensor o, at::Tensor lse) { return {own(std::move(o)), own(std::move(lse))}; }

AttentionGradients gradients(std::tuple<at::Tensor, at::Tensor, at::Tensor> all) {
  auto& [d_q, d_k, d_v] = all;
  return {own(std::move(d_q)), own(std::move(d_k)), own(std::move(d_v))};
}

// A side of a window that ends nowhere is none, and a right side of 0 is said by `is_causal`: the causal kernels are chosen by it.
std::optional<int64_t> left(const PackedLengths& lengths) {
  return lengths.left < 0 ? std::nullopt : std::optional<int64_t>(lengths.left);
}

std::optional<int64_t> right(const PackedLengths& lengths) {
  return lengths.right <= 0 ? std::nullopt : std::optional<int64_t>(lengths.right);
}

bool is_causal(const PackedLengths& lengths) { return lengths.right == 0; }

// The state of a random number generator that nobody asks without dropout. Defined, because cuDNN's operator converts it unasked
// on compute capability 10.0.
at::Tensor no_random(const at::Tensor& q) { return at::empty({2}, q.options().dtype(at::kLong)); }

// The kernels load 16 bytes at a time and do not look: what is not aligned ends the CUDA context.
void check_aligned(const at::Tensor& x, const char* name) {
  constexpr int64_t kBytes = 16;
  bool is_aligned = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % kBytes == 0;
  for (int64_t dim = 0; dim + 1 < x.dim(); ++dim) {
    is_aligned &= x.size(dim) <= 1 || x.stride(dim) * x.element_size() % kBytes == 0;
  }
  TORCH_CHECK(is_aligned, name, " ", x.sizes(), " with strides ", x.strides(), " must begin each head at a multiple of ", kBytes, " bytes");
}

void check_aligned(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  check_aligned(q, "q");
  check_aligned(k, "k");
  check_aligned(v, "v");
}

// `[tokens, heads, h]` as the `[1, heads, tokens, h]` of cuDNN's operators, without a copy. The batch has the stride that it would have
// if there were another: cuDNN tells layouts apart by the order of strides.
at::Tensor batched(const at::Tensor& x) { return x.unsqueeze(0).transpose(1, 2); }

at::Tensor unbatched(const at::Tensor& x) { return x.squeeze(0).transpose(0, 1); }

}  // namespace

AttentionOutput flash_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const PackedLengths& lengths,
                              double scale) {
  check_aligned(q, k, v);
  auto [o, lse, rng_state, unused, debug_mask] = at::_flash_attention_forward(
      q, k, v, lengths.cu_seqlens_q, lengths.cu_seqlens_k, lengths.max_q, lengths.max_k, /*dropout_p=*/0.0,
      is_causal(lengths), /*return_debug_mask=*/false, scale, left(lengths), right(lengths));
  return output(std::move(o), std::move(lse));
}

AttentionGradients flash_backward(const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const at::Tensor& o, const at::Tensor& lse, const PackedLengths& lengths, double scale) {
  check_aligned(q, k, v);
  const at::Tensor rng_state = no_random(q);
  return gradients(at::_flash_attention_backward(d_o, q, k, v, o, lse.contiguous(), lengths.cu_seqlens_q, lengths.cu_seqlens_k,
                                                 lengths.max_q, lengths.max_k, /*dropout_p=*/0.0, is_causal(lengths),
                                                 rng_state, /*unused=*/rng_state, scale, left(lengths), right(lengths)));
}

AttentionOutput cudnn_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool is_causal, double scale) {
  check_aligned(q, k, v);
  auto results = at::_scaled_dot_product_cudnn_attention(batched(q), batched(k), batched(v), /*attn_bias=*/std::nullopt,
                                                         /*compute_log_sumexp=*/true, /*dropout_p=*/0.0, is_causal,
                                                         /*return_debug_mask=*/false, scale);
  return output(unbatched(std::get<0>(results)), std::get<1>(results).squeeze(-1).squeeze(0));
}

AttentionGradients cudnn_backward(const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const at::Tensor& o, const at::Tensor& lse, bool is_causal, double scale) {
  check_aligned(q, k, v);
  const at::Tensor philox = no_random(q);
  // Plans are found again by the strides of q, k and v alone: those of the other operands must follow from them.
  const at::Tensor stats = lse.contiguous().unsqueeze(0).unsqueeze(-1);
  auto [d_q, d_k, d_v] = at::_scaled_dot_product_cudnn_attention_backward(
      batched(d_o.contiguous()), batched(q), batched(k), batched(v), batched(o.contiguous()), stats, philox, philox,
      /*attn_bias=*/{}, /*cum_seq_q=*/{}, /*cum_seq_k=*/{}, q.size(0), k.size(0), /*dropout_p=*/0.0, is_causal, scale);
  return gradients({unbatched(d_q), unbatched(d_k), unbatched(d_v)});
}

}  // namespace sterna
