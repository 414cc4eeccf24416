// The attention operators that only CUDA has, from explicit scores in single precision: their contracts, not their speed.
//
// What the real ones refuse is refused, and what they silently get wrong is refused too. The contracts are those that
// `sterna-torch-sys/src/cuda_attention.rs` lists with their sources.

#include "device.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>

namespace sterna::fake {
namespace {

// A grid's second and third dimension have no more.
constexpr int64_t MOST_BLOCKS = 65535;

constexpr int64_t OPEN = std::numeric_limits<int64_t>::max() / 4;

// Query `i` sees key `j` if `first + i <= j <= last + i`.
struct Band {
  int64_t first;
  int64_t last;
};

// `[queries, keys]`: zeros and minus infinities.
at::Tensor mask_of(Band band, int64_t num_queries, int64_t num_keys) {
  const at::Tensor behind = at::arange(num_keys).unsqueeze(0) - at::arange(num_queries).unsqueeze(1);
  const at::Tensor hidden = behind.lt(band.first).logical_or(behind.gt(band.last));
  return at::zeros({num_queries, num_keys}).masked_fill(hidden, -std::numeric_limits<double>::infinity());
}

// `[tokens, heads, h]` as `[heads, tokens, h]` in single precision, each head as often as `group` query heads read it.
at::Tensor heads_first(const at::Tensor& x, int64_t group) {
  return x.to(at::kFloat).transpose(0, 1).repeat_interleave(group, 0);
}

at::Tensor scores_of(const at::Tensor& q, const at::Tensor& k, int64_t group, double scale, Band band) {
  return at::matmul(heads_first(q, 1), heads_first(k, group).transpose(1, 2)) * scale + mask_of(band, q.size(0), k.size(0));
}

// Writes `o` `[queries, n, h]` and `lse` `[n, queries]` of one document, all on the host.
void forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& o, const at::Tensor& lse,
             double scale, Band band) {
  const int64_t group = q.size(1) / k.size(1);
  const at::Tensor scores = scores_of(q, k, group, scale, band);
  const at::Tensor sums = scores.logsumexp(-1);
  const at::Tensor sees_nothing = sums.isneginf();
  const at::Tensor p = (scores - sums.masked_fill(sees_nothing, 0.0).unsqueeze(-1)).exp();
  o.copy_(at::matmul(p, heads_first(v, group)).transpose(0, 1));
  lse.copy_(sums.masked_fill(sees_nothing, std::numeric_limits<double>::infinity()));
}

// Writes the gradients of one document, all on the host.
void backward(const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& o,
              const at::Tensor& lse, const at::Tensor& d_q, const at::Tensor& d_k, const at::Tensor& d_v, double scale,
              Band band) {
  const int64_t group = q.size(1) / k.size(1);
  const at::Tensor p = (scores_of(q, k, group, scale, band) - lse.unsqueeze(-1)).exp();
  const at::Tensor d_o_heads = heads_first(d_o, 1);
  const at::Tensor d_o_dot_o = (d_o_heads * heads_first(o, 1)).sum(-1, true);
  const at::Tensor d_scores = p * (at::matmul(d_o_heads, heads_first(v, group).transpose(1, 2)) - d_o_dot_o) * scale;
  const auto of_keys = [&](const at::Tensor& d_heads) {
    return d_heads.reshape({k.size(1), group, k.size(0), k.size(2)}).sum(1).transpose(0, 1);
  };
  d_q.copy_(at::matmul(d_scores, heads_first(k, group)).transpose(0, 1));
  d_k.copy_(of_keys(at::matmul(d_scores.transpose(1, 2), heads_first(q, 1))));
  d_v.copy_(of_keys(at::matmul(p.transpose(1, 2), d_o_heads)));
}

void check_operand(const char* name, const at::Tensor& x, const at::Tensor& q, int64_t dim) {
  TORCH_CHECK(x.is_cuda(), name, " must be on CUDA");
  TORCH_CHECK(x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16, name, " is ", x.scalar_type(),
              ": only fp16 and bf16 are supported");
  TORCH_CHECK(x.scalar_type() == q.scalar_type(), name, " and q must have the same dtype");
  TORCH_CHECK(x.dim() == dim && x.stride(-1) == 1, name, " must have ", dim, " dimensions of which the last is contiguous");
  TORCH_CHECK(x.numel() > 0, name, " is empty");
  // The real kernels load 16 bytes at a time and fail with a misaligned address.
  TORCH_CHECK(reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0, name, " begins at a misaligned address");
  for (int64_t i = 0; i + 1 < dim; ++i) {
    TORCH_CHECK(x.size(i) == 1 || x.stride(i) % 8 == 0, name, " has misaligned strides ", x.strides());
  }
}

void check_heads(int64_t num_q, int64_t num_kv, int64_t head_dim, int64_t most) {
  TORCH_CHECK(num_kv > 0 && num_q % num_kv == 0, "Number of heads in key/value must divide number of heads in query");
  TORCH_CHECK(num_q <= MOST_BLOCKS, num_q, " heads are more than a grid's third dimension has");
  TORCH_CHECK(head_dim > 0 && head_dim % 8 == 0 && head_dim <= most, "head size ", head_dim, " must be a multiple of 8 up to ", most);
}

// ---- flash

struct Packed {
  at::Tensor ends_q, ends_k;
  int64_t left, right;

  int64_t num_documents() const { return ends_q.size(0) - 1; }

  at::Tensor queries(const at::Tensor& x, int64_t document, int64_t dim = 0) const { return part(x, ends_q, document, dim); }

  at::Tensor keys(const at::Tensor& x, int64_t document) const { return part(x, ends_k, document, 0); }

  Band band(int64_t document) const {
    const int64_t shift = length(ends_k, document) - length(ends_q, document);
    return {shift - left, shift + right};
  }

  static int64_t length(const at::Tensor& ends, int64_t document) {
    return ends.const_data_ptr<int32_t>()[document + 1] - ends.const_data_ptr<int32_t>()[document];
  }

  static at::Tensor part(const at::Tensor& x, const at::Tensor& ends, int64_t document, int64_t dim) {
    return x.narrow(dim, ends.const_data_ptr<int32_t>()[document], length(ends, document));
  }
};

at::Tensor check_ends(const char* name, const at::Tensor& ends, int64_t num_tokens, int64_t most) {
  TORCH_CHECK(ends.is_cuda() && ends.scalar_type() == at::kInt && ends.is_contiguous() && ends.dim() == 1 && ends.size(0) > 1,
              name, " must be contiguous int32 [documents + 1] on CUDA");
  const at::Tensor host = on_host(ends);
  const int32_t* values = host.const_data_ptr<int32_t>();
  for (int64_t document = 0; document < ends.size(0) - 1; ++document) {
    const int64_t len = values[document + 1] - values[document];
    TORCH_CHECK(0 < len && len <= most, name, ": a document of ", len, " tokens, with a maximum of ", most);
  }
  TORCH_CHECK(values[0] == 0 && values[ends.size(0) - 1] == num_tokens, name, " must cover ", num_tokens, " tokens");
  return host;
}

Packed check_flash(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& ends_q,
                   const at::Tensor& ends_k, int64_t max_q, int64_t max_k, double dropout_p, bool is_causal,
                   std::optional<c10::SymInt> window_left, std::optional<c10::SymInt> window_right) {
  check_operand("q", q, q, 3);
  check_operand("k", k, q, 3);
  check_operand("v", v, q, 3);
  check_heads(q.size(1), k.size(1), q.size(2), 256);
  TORCH_CHECK(k.sizes() == v.sizes() && q.size(2) == k.size(2), "q, k and v do not fit each other");
  TORCH_CHECK(dropout_p == 0.0, "the fake has no dropout");
  TORCH_CHECK(max_q > 1, "with max_q of 1 the real kernel regroups the heads, which the fake does not");
  Packed packed{check_ends("cum_seq_q", ends_q, q.size(0), max_q), check_ends("cum_seq_k", ends_k, k.size(0), max_k), -1, -1};
  TORCH_CHECK(ends_q.size(0) == ends_k.size(0), "cum_seq_q and cum_seq_k must have as many documents");
  TORCH_CHECK(packed.num_documents() <= MOST_BLOCKS, packed.num_documents(), " documents are more than a grid's second dimension has");
  packed.left = window_left ? window_left->expect_int() : -1;
  packed.right = is_causal ? 0 : (window_right ? window_right->expect_int() : -1);
  packed.left = packed.left >= max_k ? -1 : packed.left;
  packed.right = packed.right >= max_k ? -1 : packed.right;
  // With one side open, the real kernel takes `max_k` for it, which is too little for a document of more queries than keys.
  const bool is_local = packed.left >= 0 || packed.right >= 0;
  packed.left = packed.left >= 0 ? packed.left : (is_local ? max_k : OPEN);
  packed.right = packed.right >= 0 ? packed.right : (is_local ? max_k : OPEN);
  return packed;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> flash_forward(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const std::optional<at::Tensor>& ends_q,
    const std::optional<at::Tensor>& ends_k, c10::SymInt max_q, c10::SymInt max_k, double dropout_p, bool is_causal,
    bool return_debug_mask, std::optional<double> scale, std::optional<c10::SymInt> window_left,
    std::optional<c10::SymInt> window_right, const std::optional<at::Tensor>& seqused_k,
    const std::optional<at::Tensor>& alibi_slopes) {
  TORCH_CHECK(ends_q && ends_k && scale && !return_debug_mask && !seqused_k && !alibi_slopes,
              "the fake computes packs with a scale, and nothing else");
  const Packed packed = check_flash(q, k, v, *ends_q, *ends_k, max_q.expect_int(), max_k.expect_int(), dropout_p, is_causal,
                                    window_left, window_right);
  at::Tensor o = at::empty_like(q);
  at::Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(at::kFloat));
  const auto [q_host, k_host, v_host] = std::make_tuple(on_host(q), on_host(k), on_host(v));
  for (int64_t document = 0; document < packed.num_documents(); ++document) {
    forward(packed.queries(q_host, document), packed.keys(k_host, document), packed.keys(v_host, document),
            packed.queries(on_host(o), document), packed.queries(on_host(lse), document, 1), *scale, packed.band(document));
  }
  const at::Tensor rng_state = at::empty({2}, q.options().dtype(at::kUInt64));
  return {o, lse, rng_state, at::empty({}, rng_state.options()), at::empty({0}, q.options())};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> flash_backward(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& o,
    const at::Tensor& lse, const at::Tensor& ends_q, const at::Tensor& ends_k, c10::SymInt max_q, c10::SymInt max_k,
    double dropout_p, bool is_causal, const at::Tensor& /*rng_state*/, const at::Tensor& /*unused*/,
    std::optional<double> scale, std::optional<c10::SymInt> window_left, std::optional<c10::SymInt> window_right) {
  const Packed packed = check_flash(q, k, v, ends_q, ends_k, max_q.expect_int(), max_k.expect_int(), dropout_p, is_causal,
                                    window_left, window_right);
  check_operand("d_o", d_o.contiguous(), q, 3);
  check_operand("o", o.contiguous(), q, 3);
  TORCH_CHECK(scale && d_o.sizes() == q.sizes() && o.sizes() == q.sizes(), "d_o and o must be like q, and there must be a scale");
  TORCH_CHECK(lse.is_cuda() && lse.scalar_type() == at::kFloat && lse.is_contiguous() &&
                  lse.sizes() == at::IntArrayRef({q.size(1), q.size(0)}),
              "the log-sum-exp must be contiguous fp32 [n, tokens] on CUDA: it is read without its strides");
  at::Tensor d_q = at::empty_like(q), d_k = at::empty_like(k), d_v = at::empty_like(v);
  for (int64_t document = 0; document < packed.num_documents(); ++document) {
    const auto queries = [&](const at::Tensor& x) { return packed.queries(on_host(x), document); };
    const auto keys = [&](const at::Tensor& x) { return packed.keys(on_host(x), document); };
    backward(queries(d_o), queries(q), keys(k), keys(v), queries(o), packed.queries(on_host(lse), document, 1), queries(d_q),
             keys(d_k), keys(d_v), *scale, packed.band(document));
  }
  return {d_q, d_k, d_v};
}

// ---- cuDNN

// `[1, heads, tokens, h]` as `[tokens, heads, h]` on the host.
at::Tensor document_of(const at::Tensor& x) { return on_host(x).squeeze(0).transpose(0, 1); }

Band cudnn_band(bool is_causal) { return is_causal ? Band{-OPEN, 0} : Band{-OPEN, OPEN}; }

void check_cudnn(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double dropout_p) {
  check_operand("q", q, q, 4);
  check_operand("k", k, q, 4);
  check_operand("v", v, q, 4);
  check_heads(q.size(1), k.size(1), q.size(3), 128);
  TORCH_CHECK(k.sizes() == v.sizes() && q.size(3) == k.size(3), "q, k and v do not fit each other");
  TORCH_CHECK(q.size(0) == 1 && k.size(0) == 1, "the fake computes one document");
  // libtorch asks for this where it chooses a kernel (check_cudnn_tensor_shapes), not in the operator.
  TORCH_CHECK(k.size(2) > 1, "cudnn SDPA does not support key/value sequence length 1.");
  TORCH_CHECK(q.size(2) > 1, "cuDNN 9.19 is wrong for a single query on compute capability 10");
  for (const at::Tensor& x : {q, k, v}) {
    TORCH_CHECK(x.stride(0) >= x.size(2) * x.stride(2), "strides ", x.strides(), " of ", x.sizes(),
                " are not those of a batch: cuDNN tells layouts apart by their order");
    TORCH_CHECK(x.size(2) * x.stride(2) < int64_t{1} << 31, "offsets of 32 bits do not reach all of ", x.sizes(), " with strides ", x.strides());
  }
  TORCH_CHECK(dropout_p == 0.0, "the fake has no dropout");
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, c10::SymInt, c10::SymInt, at::Tensor, at::Tensor, at::Tensor>
cudnn_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const std::optional<at::Tensor>& attn_bias,
              bool compute_log_sumexp, double dropout_p, bool is_causal, bool return_debug_mask, std::optional<double> scale) {
  check_cudnn(q, k, v, dropout_p);
  TORCH_CHECK(!attn_bias && compute_log_sumexp && !return_debug_mask && scale,
              "the fake computes a log-sum-exp with a scale, and has no bias");
  at::Tensor o = at::empty_like(q);
  at::Tensor lse = at::empty({1, q.size(1), q.size(2), 1}, q.options().dtype(at::kFloat));
  forward(document_of(q), document_of(k), document_of(v), document_of(o), on_host(lse).squeeze(-1).squeeze(0), *scale,
          cudnn_band(is_causal));
  const at::Tensor philox = at::empty({}, q.options().dtype(at::kLong));
  return {o, lse, at::Tensor(), at::Tensor(), q.sym_size(2), k.sym_size(2), philox, philox, at::Tensor()};
}

// A plan is compiled for the strides of all operands, and found again by those of q, k and v: other strides of the others would
// be read as if they were those of the first call.
void check_plan(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool is_causal, const at::Tensor& o,
                const at::Tensor& d_o, const at::Tensor& lse) {
  static std::mutex mutex;
  static std::map<std::string, std::string> plans;
  std::ostringstream key;
  std::ostringstream others;
  for (const at::Tensor& x : {q, k, v}) {
    key << x.sizes() << x.strides();
  }
  key << is_causal << q.scalar_type();
  others << o.strides() << d_o.strides() << lse.strides();
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [plan, is_new] = plans.try_emplace(key.str(), others.str());
  TORCH_CHECK(plan->second == others.str(), "a plan for the strides ", plan->second, " of o, d_o and the log-sum-exp got ",
              others.str());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> cudnn_backward(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& o,
    const at::Tensor& lse, const at::Tensor& philox_seed, const at::Tensor& philox_offset, const at::Tensor& attn_bias,
    const at::Tensor& ends_q, const at::Tensor& ends_k, c10::SymInt max_q, c10::SymInt max_k, double dropout_p, bool is_causal,
    std::optional<double> scale) {
  check_cudnn(q, k, v, dropout_p);
  check_operand("d_o", d_o, q, 4);
  check_operand("o", o, q, 4);
  TORCH_CHECK(scale && d_o.sizes() == q.sizes() && o.sizes() == q.sizes(), "d_o and o must be like q, and there must be a scale");
  TORCH_CHECK(!attn_bias.defined() && !ends_q.defined() && !ends_k.defined(), "the fake computes one document without bias");
  TORCH_CHECK(philox_seed.defined() && philox_offset.defined(), "the seeds are converted, with dropout or without");
  TORCH_CHECK(max_q == q.sym_size(2) && max_k == k.sym_size(2), "max_q and max_k are the lengths that the kernel runs on");
  TORCH_CHECK(lse.is_cuda() && lse.scalar_type() == at::kFloat && lse.sizes() == at::IntArrayRef({1, q.size(1), q.size(2), 1}),
              "the log-sum-exp must be fp32 [1, n, tokens, 1] on CUDA, as the forward returns it");
  check_plan(q, k, v, is_causal, o, d_o, lse);
  at::Tensor d_q = at::empty_like(q), d_k = at::empty_like(k), d_v = at::empty_like(v);
  backward(document_of(d_o), document_of(q), document_of(k), document_of(v), document_of(o),
           on_host(lse).squeeze(-1).squeeze(0), document_of(d_q), document_of(d_k), document_of(d_v), *scale,
           cudnn_band(is_causal));
  return {d_q, d_k, d_v};
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("_flash_attention_forward", flash_forward);
  library.impl("_flash_attention_backward", flash_backward);
  library.impl("_scaled_dot_product_cudnn_attention", cudnn_forward);
  library.impl("_scaled_dot_product_cudnn_attention_backward", cudnn_backward);
}

}  // namespace sterna::fake
