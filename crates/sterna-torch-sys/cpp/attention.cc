// Attention as products of blocks, computed by the matrix kernels that oneDNN generates for this processor.
//
// Everything is transposed: a block of scores has a row for each key and a column for each query. Then the sums and maxima of a
// softmax run down columns, 16 queries to a register and none across one; the probabilities are the right operand of the product
// with the values in the layout that the kernels want (pairs of rows side by side) as they are computed; and of the ten operands
// of a block's backward only three need a transposition, once for each block of keys or queries.
//
// Letters: a block has KEYS keys and QUERIES queries; h is the head size. Sums are single precision throughout.

#include "attention.h"

#include "sterna-torch-sys/src/bridge.rs.h"

#if defined(__x86_64__)

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <initializer_list>
#include <limits>
#include <utility>
#include <vector>

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined registers of its own headers for mistakes of ours (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define VECTORISED __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

namespace sterna {
namespace {

using bf16 = at::BFloat16;

constexpr int64_t KEYS = 128;
constexpr int64_t QUERIES = 128;
// Columns of a right operand: the widest that oneDNN's kernels take.
constexpr int64_t PANEL = 64;
// Queries or keys in one register.
constexpr int64_t LANES = 16;
constexpr int64_t NUM_LANE_GROUPS = QUERIES / LANES;
// Block lengths are rounded up to this, so that few kernels are generated.
constexpr int64_t STEP = 32;
// Blocks of keys that a backward visits for all queries before the next: their gradients stay in a core's cache, 0.5 MB with h 64.
constexpr int64_t SPAN = 8;
// Below every score, and finite, so that differences of maxima are never infinite minus infinite.
constexpr float LOWEST = -1e30F;
constexpr float LOG2_E = 1.4426950408889634F;
// A window that is longer than any sequence, and leaves room to add to.
constexpr int64_t NO_WINDOW = int64_t{1} << 60;
constexpr float LN_2 = 0.6931471805599453F;

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// One head of a strided tensor.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
  T* operator[](int64_t row) const { return data + row * stride; }
};

// `[kv, group, rows, h]`, or `[kv, rows, h]`, whose last stride is 1.
template <typename T>
Rows<T> head_of(const at::Tensor& x, int64_t kv, int64_t member) {
  const bool is_query = x.dim() == 4;
  T* data = x.data_ptr<T>() + kv * x.stride(0) + (is_query ? member * x.stride(1) : 0);
  return {data, x.stride(is_query ? 2 : 1)};
}

void multiply(int64_t m, int64_t n, int64_t k, const bf16* a, int64_t stride_a, const bf16* b, int64_t stride_b, float* c,
              int64_t stride_c, bool add) {
  at::native::cpublas::brgemm(m, n, k, stride_a, stride_b, stride_c, add, a, b, c);
}

// Turns 16 registers of 16 words so that word j of register i becomes word i of register j.
VECTORISED inline void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// 2^x for x <= 0 or so, to 2e-7 relative.
VECTORISED inline __m512 exp2_of(__m512 x) {
  // Far below, the result is zero all the same, and no infinity is subtracted from itself.
  // The order matters: of a NaN and a number the second operand is the result.
  x = _mm512_max_ps(_mm512_set1_ps(-200.0F), x);
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, whole);
  // Taylor's series of 2^f with |f| <= 1/2; the first term left out is 1.2e-7.
  __m512 y = _mm512_set1_ps(1.5403530e-4F);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.3333558e-3F));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.6181291e-3F));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.5504109e-2F));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4022651e-1F));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9314718e-1F));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0F));
  return _mm512_scalef_ps(y, whole);
}

VECTORISED inline __m256i to_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

VECTORISED inline __m512 from_bf16(const bf16* x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
}

// Two rows of bf16 as one row of pairs.
VECTORISED inline __m512i pairs(__m256i even, __m256i odd) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

// 16 rows of 16 words from `row`, zeros from row `num_rows` on.
VECTORISED inline void load_words(__m512i r[16], Rows<const bf16> x, int64_t row, int64_t num_rows, int64_t column) {
  for (int64_t i = 0; i < LANES; ++i) {
    r[i] = row + i < num_rows ? _mm512_loadu_si512(x[row + i] + column) : _mm512_setzero_si512();
  }
}

// A block of rows as they are, zeros after the last.
void copy_rows(bf16* to, Rows<const bf16> x, int64_t num_rows, int64_t padded, int64_t h) {
  for (int64_t row = 0; row < num_rows; ++row) std::copy_n(x[row], h, to + row * h);
  std::fill(to + num_rows * h, to + padded * h, bf16(0));
}

// A left operand `[h, KEYS]` from rows `[keys, h]`.
VECTORISED void transpose_rows(bf16* to, Rows<const bf16> x, int64_t num_rows, int64_t padded, int64_t h) {
  __m512i r[16];
  for (int64_t row = 0; row < padded; row += LANES) {
    for (int64_t column = 0; column < h; column += 2 * LANES) {
      load_words(r, x, row, num_rows, column);
      transpose(r);
      for (int64_t i = 0; i < LANES; ++i) {
        bf16* even = to + (column + 2 * i) * KEYS + row;
        _mm256_storeu_si256((__m256i*)even, _mm512_cvtepi32_epi16(r[i]));
        _mm256_storeu_si256((__m256i*)(even + KEYS), _mm512_cvtepi32_epi16(_mm512_srli_epi32(r[i], 16)));
      }
    }
  }
}

// A right operand `[h, queries]` from rows `[queries, h]`: panels of pairs of dimensions.
VECTORISED void pack_transposed(uint32_t* to, Rows<const bf16> x, int64_t num_rows, int64_t padded, int64_t h) {
  __m512i r[16];
  for (int64_t row = 0; row < padded; row += LANES) {
    uint32_t* panel = to + row / PANEL * (h / 2 * PANEL) + row % PANEL;
    for (int64_t column = 0; column < h; column += 2 * LANES) {
      load_words(r, x, row, num_rows, column);
      transpose(r);
      for (int64_t i = 0; i < LANES; ++i) _mm512_storeu_si512(panel + (column / 2 + i) * PANEL, r[i]);
    }
  }
}

// A right operand `[queries, h]`: panels of pairs of queries.
VECTORISED void pack_rows(uint32_t* to, Rows<const bf16> x, int64_t num_rows, int64_t padded, int64_t h, int64_t width) {
  for (int64_t row = 0; row < padded; row += 2) {
    for (int64_t column = 0; column < h; column += LANES) {
      const auto load = [&](int64_t row) VECTORISED {
        return row < num_rows ? _mm256_loadu_si256((const __m256i*)(x[row] + column)) : _mm256_setzero_si256();
      };
      uint32_t* panel = to + column / width * (QUERIES / 2 * width);
      _mm512_storeu_si512(panel + row / 2 * width + column % width, pairs(load(row), load(row + 1)));
    }
  }
}

// Which keys of a block the queries of a block see: each a run of them.
struct Visibility {
  // First and last row of scores of each query, relative to the block of keys; -1 as last where there is none.
  alignas(64) int32_t first[QUERIES];
  alignas(64) int32_t last[QUERIES];
  bool is_all;

  // `num_queries` from `query`, `num_keys` from `key`, in a block of `padded_keys` rows.
  Visibility(const VisibleKeys& visible, int64_t query, int64_t num_queries, int64_t key, int64_t num_keys,
             int64_t padded_keys) {
    is_all = num_keys == padded_keys;
    for (int64_t i = 0; i < QUERIES; ++i) {
      const int64_t newest = std::min(query + i + visible.keys_before - key, num_keys - 1);
      const int64_t oldest = query + i + visible.keys_before - visible.window + 1 - key;
      first[i] = static_cast<int32_t>(std::clamp<int64_t>(oldest, 0, KEYS));
      last[i] = i < num_queries ? static_cast<int32_t>(std::max<int64_t>(newest, -1)) : -1;
      is_all &= i >= num_queries || (first[i] == 0 && last[i] == num_keys - 1);
    }
  }

  VECTORISED __mmask16 of(int64_t row, int64_t column) const {
    if (is_all) return 0xffff;
    const __m512i row_vector = _mm512_set1_epi32(static_cast<int32_t>(row));
    return _mm512_cmple_epi32_mask(_mm512_load_si512(first + column), row_vector) &
           _mm512_cmpge_epi32_mask(_mm512_load_si512(last + column), row_vector);
  }
};

// The blocks of keys that some query of a block sees.
std::pair<int64_t, int64_t> key_blocks(const VisibleKeys& visible, int64_t query, int64_t num_queries, int64_t num_keys) {
  const int64_t oldest = std::max<int64_t>(query + visible.keys_before - visible.window + 1, 0);
  const int64_t end = std::min(query + num_queries + visible.keys_before, num_keys);
  return {oldest / KEYS, (end + KEYS - 1) / KEYS};
}

// Operands made of keys and values, for each kv head and block of keys.
struct KeyBlocks {
  int64_t h;
  int64_t num_blocks;
  int64_t num_parts;
  at::Tensor storage;

  KeyBlocks(const at::Tensor& k, int64_t num_parts) : h(k.size(2)), num_parts(num_parts) {
    num_blocks = (k.size(1) + KEYS - 1) / KEYS;
    storage = at::empty({k.size(0), num_blocks, num_parts, KEYS * h}, k.options());
  }

  bf16* part(int64_t kv, int64_t block, int64_t part) const {
    return storage.data_ptr<bf16>() + ((kv * num_blocks + block) * num_parts + part) * KEYS * h;
  }

  template <typename F>
  void fill(int64_t num_kv, int64_t num_keys, const F& f) const {
    at::parallel_for(0, num_kv * num_blocks, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t kv = i / num_blocks, block = i % num_blocks;
        const int64_t len = std::min(KEYS, num_keys - block * KEYS);
        f(kv, block, len, round_up(len, STEP));
      }
    });
  }
};

Rows<const bf16> rows_of(const at::Tensor& x, int64_t kv, int64_t member, int64_t first_row) {
  const Rows<bf16> rows = head_of<bf16>(x, kv, member);
  return {rows[first_row], rows.stride};
}

// Scores `[keys, queries]` of a block; both operands are prepared.
void multiply_panels(int64_t num_keys, int64_t num_queries, int64_t h, const bf16* keys, const uint32_t* queries, float* scores) {
  for (int64_t column = 0; column < num_queries; column += PANEL) {
    multiply(num_keys, PANEL, h, keys, h, reinterpret_cast<const bf16*>(queries + column / PANEL * (h / 2 * PANEL)), PANEL,
             scores + column, QUERIES, false);
  }
}

// `[h, queries] (+)= [h, keys] x [keys, queries]`; the right operand is in panels of pairs of keys.
void multiply_to_queries(int64_t num_keys, int64_t num_queries, int64_t h, const bf16* keys, const uint32_t* pairs, float* sums,
                         bool add) {
  for (int64_t column = 0; column < num_queries; column += PANEL) {
    multiply(h, PANEL, num_keys, keys, KEYS, reinterpret_cast<const bf16*>(pairs + column / PANEL * (KEYS / 2 * PANEL)), PANEL,
             sums + column, QUERIES, add);
  }
}

// What one thread needs for a block of the forward.
struct ForwardScratch {
  std::vector<uint32_t> q;        // [panels, h/2, PANEL] pairs
  std::vector<uint32_t> p;        // [panels, KEYS/2, PANEL] pairs
  std::vector<float> scores;      // [KEYS, QUERIES]
  std::vector<float> o;           // [h, QUERIES]
  alignas(64) float max[QUERIES]; // of the scaled scores, to base 2
  alignas(64) float sum[QUERIES];

  explicit ForwardScratch(int64_t h)
      : q(QUERIES * h / 2), p(KEYS * QUERIES / 2), scores(KEYS * QUERIES), o(h * QUERIES) {}
};

// Turns a block of scores into probabilities relative to the maxima so far, and rescales what was summed under older maxima.
VECTORISED void softmax_block(ForwardScratch& scratch, const Visibility& visible, int64_t num_keys, int64_t num_queries,
                              int64_t h, float factor) {
  const __m512 factor_vector = _mm512_set1_ps(factor);
  for (int64_t column = 0; column < num_queries; column += LANES) {
    float* scores = scratch.scores.data() + column;
    const __m512 old_max = _mm512_load_ps(scratch.max + column);
    __m512 max = old_max;
    for (int64_t row = 0; row < num_keys; ++row) {
      const __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + row * QUERIES), factor_vector);
      max = _mm512_mask_max_ps(max, visible.of(row, column), max, score);
    }
    const __m512 decay = exp2_of(_mm512_sub_ps(old_max, max));
    __m512 sum = _mm512_mul_ps(_mm512_load_ps(scratch.sum + column), decay);
    uint32_t* p = scratch.p.data() + column / PANEL * (KEYS / 2 * PANEL) + column % PANEL;
    const auto probability = [&](int64_t row) VECTORISED {
      const __m512 exponent = _mm512_fmsub_ps(_mm512_loadu_ps(scores + row * QUERIES), factor_vector, max);
      return _mm512_maskz_mov_ps(visible.of(row, column), exp2_of(exponent));
    };
    for (int64_t row = 0; row < num_keys; row += 2) {
      const __m512 even = probability(row), odd = probability(row + 1);
      sum = _mm512_add_ps(sum, _mm512_add_ps(even, odd));
      _mm512_storeu_si512(p + row / 2 * PANEL, pairs(to_bf16(even), to_bf16(odd)));
    }
    _mm512_store_ps(scratch.max + column, max);
    _mm512_store_ps(scratch.sum + column, sum);
    if (_mm512_cmpneq_ps_mask(old_max, max) != 0) {
      for (int64_t row = 0; row < h; ++row) {
        float* o = scratch.o.data() + row * QUERIES + column;
        _mm512_storeu_ps(o, _mm512_mul_ps(_mm512_loadu_ps(o), decay));
      }
    }
  }
}

// Divides by the sums and writes `o` and `lse`.
VECTORISED void finish_forward(const ForwardScratch& scratch, int64_t num_queries, int64_t h, Rows<bf16> o, float* lse,
                               int64_t lse_stride) {
  __m512i r[16];
  for (int64_t column = 0; column < num_queries; column += LANES) {
    const __m512 sum = _mm512_load_ps(scratch.sum + column);
    // A query that sees nothing has no output.
    const __m512 inverse = _mm512_maskz_div_ps(_mm512_cmpneq_ps_mask(sum, _mm512_setzero_ps()), _mm512_set1_ps(1.0F), sum);
    for (int64_t row = 0; row < h; row += LANES) {
      for (int64_t i = 0; i < LANES; ++i) {
        const float* from = scratch.o.data() + (row + i) * QUERIES + column;
        r[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_loadu_ps(from), inverse));
      }
      transpose(r);
      for (int64_t i = 0; i < std::min(LANES, num_queries - column); ++i) {
        _mm256_storeu_si256((__m256i*)(o[column + i] + row), to_bf16(_mm512_castsi512_ps(r[i])));
      }
    }
  }
  for (int64_t i = 0; i < num_queries; ++i) {
    lse[i * lse_stride] = scratch.sum[i] != 0 ? scratch.max[i] * LN_2 + std::log(scratch.sum[i])
                                             : -std::numeric_limits<float>::infinity();
  }
}

// What one thread needs for a block of the backward.
struct BackwardScratch {
  std::vector<uint32_t> q, d_o;            // [panels, h/2, PANEL] pairs of dimensions
  std::vector<uint32_t> q_rows, d_o_rows;  // [panels, QUERIES/2, width] pairs of queries
  std::vector<uint32_t> d_s_pairs;         // [panels, KEYS/2, PANEL] pairs of keys
  std::vector<bf16> p, d_s;                // [KEYS, QUERIES]
  std::vector<float> scores, d_p;          // [KEYS, QUERIES]
  alignas(64) float lse[QUERIES];          // to base 2
  alignas(64) float delta[QUERIES];        // scale * d_o . o

  explicit BackwardScratch(int64_t h)
      : q(QUERIES * h / 2), d_o(q), q_rows(q), d_o_rows(q), d_s_pairs(KEYS * QUERIES / 2), p(KEYS * QUERIES), d_s(p),
        scores(KEYS * QUERIES), d_p(scores) {}
};

// `p = exp(scale * s - lse)` and `d_s = scale * p * (d_p - d_o . o)` of a block.
VECTORISED void gradient_block(BackwardScratch& scratch, const Visibility& visible, int64_t num_keys, int64_t num_queries,
                               float scale) {
  const __m512 factor = _mm512_set1_ps(scale * LOG2_E), scale_vector = _mm512_set1_ps(scale);
  for (int64_t row = 0; row < num_keys; row += 2) {
    for (int64_t column = 0; column < num_queries; column += LANES) {
      const __m512 lse = _mm512_load_ps(scratch.lse + column), delta = _mm512_load_ps(scratch.delta + column);
      __m256i d_s[2];
      for (int64_t i = 0; i < 2; ++i) {
        const int64_t at = (row + i) * QUERIES + column;
        const __m512 exponent = _mm512_fmsub_ps(_mm512_loadu_ps(scratch.scores.data() + at), factor, lse);
        const __m512 p = _mm512_maskz_mov_ps(visible.of(row + i, column), exp2_of(exponent));
        const __m512 d_p = _mm512_fmsub_ps(_mm512_loadu_ps(scratch.d_p.data() + at), scale_vector, delta);
        d_s[i] = to_bf16(_mm512_mul_ps(p, d_p));
        _mm256_storeu_si256((__m256i*)(scratch.p.data() + at), to_bf16(p));
        _mm256_storeu_si256((__m256i*)(scratch.d_s.data() + at), d_s[i]);
      }
      uint32_t* to = scratch.d_s_pairs.data() + column / PANEL * (KEYS / 2 * PANEL) + column % PANEL;
      _mm512_storeu_si512(to + row / 2 * PANEL, pairs(d_s[0], d_s[1]));
    }
  }
}

VECTORISED void prepare_queries(BackwardScratch& scratch, Rows<const bf16> q, Rows<const bf16> d_o, Rows<const bf16> o,
                                const float* lse, int64_t lse_stride, int64_t num_queries, int64_t padded, int64_t h,
                                int64_t width, float scale) {
  pack_transposed(scratch.q.data(), q, num_queries, round_up(padded, PANEL), h);
  pack_transposed(scratch.d_o.data(), d_o, num_queries, round_up(padded, PANEL), h);
  pack_rows(scratch.q_rows.data(), q, num_queries, padded, h, width);
  pack_rows(scratch.d_o_rows.data(), d_o, num_queries, padded, h, width);
  for (int64_t i = 0; i < padded; ++i) {
    if (i >= num_queries) {
      scratch.lse[i] = scratch.delta[i] = 0;
      continue;
    }
    __m512 sum = _mm512_setzero_ps();
    for (int64_t column = 0; column < h; column += LANES) {
      sum = _mm512_fmadd_ps(from_bf16(d_o[i] + column), from_bf16(o[i] + column), sum);
    }
    scratch.lse[i] = lse[i * lse_stride] * LOG2_E;
    scratch.delta[i] = _mm512_reduce_add_ps(sum) * scale;
  }
}

// Writes a block of `d_q` in bf16, or adds it in single precision.
VECTORISED void finish_backward(const float* sums, int64_t num_queries, int64_t h, const at::Tensor& d_q, int64_t kv,
                                int64_t member, int64_t query) {
  const bool is_sum = d_q.scalar_type() == at::kFloat;
  __m512i r[16];
  for (int64_t column = 0; column < num_queries; column += LANES) {
    for (int64_t row = 0; row < h; row += LANES) {
      for (int64_t i = 0; i < LANES; ++i) r[i] = _mm512_loadu_si512(sums + (row + i) * QUERIES + column);
      transpose(r);
      for (int64_t i = 0; i < std::min(LANES, num_queries - column); ++i) {
        const __m512 value = _mm512_castsi512_ps(r[i]);
        if (is_sum) {
          float* to = head_of<float>(d_q, kv, member)[query + column + i] + row;
          _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), value));
        } else {
          _mm256_storeu_si256((__m256i*)(head_of<bf16>(d_q, kv, member)[query + column + i] + row), to_bf16(value));
        }
      }
    }
  }
}

// The kernel reads and writes by pointer: everything that it relies on.
void check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& lse, const VisibleKeys& visible,
           std::initializer_list<std::reference_wrapper<const at::Tensor>> like_q) {
  TORCH_CHECK(has_attention_kernel(), "attention: this processor has no bf16 dot products of 512 bits");
  TORCH_CHECK(q.dim() == 4 && q.size(3) % STEP == 0 && q.size(3) > 0 && k.dim() == 3 && k.sizes() == v.sizes() &&
                  k.size(0) == q.size(0) && k.size(2) == q.size(3) && lse.sizes() == q.sizes().slice(0, 3),
              "attention: q is ", q.sizes(), ", k ", k.sizes(), ", v ", v.sizes(), ", lse ", lse.sizes(),
              ", which must be [kv, group, queries, h], [kv, keys, h] twice and [kv, group, queries], with h a multiple of 32");
  TORCH_CHECK(visible.window > 0 && visible.window <= NO_WINDOW && visible.keys_before >= 0 && visible.keys_before <= NO_WINDOW,
              "attention: a window of ", visible.window, " ending ", visible.keys_before, " keys later");
  TORCH_CHECK(lse.device().is_cpu() && lse.scalar_type() == at::kFloat, "attention: lse must be single precision on the CPU");
  const auto check_rows = [](const at::Tensor& x) {
    TORCH_CHECK(x.device().is_cpu() && x.scalar_type() == at::kBFloat16 && x.stride(-1) == 1, "attention: ", x.sizes(), " of ",
                x.scalar_type(), " with strides ", x.strides(), " must be rows of bf16 on the CPU");
  };
  for (const at::Tensor& x : {std::cref(q), std::cref(k), std::cref(v)}) check_rows(x);
  for (const at::Tensor& x : like_q) {
    check_rows(x);
    TORCH_CHECK(x.sizes() == q.sizes(), "attention: ", x.sizes(), " must have the shape of q, ", q.sizes());
  }
}

// Whether libtorch computes the products: it may have been built without them, or been told by the environment
// (ONEDNN_MAX_CPU_ISA) to use fewer instructions than the processor has, and then throws.
bool has_products() {
  constexpr int64_t n = STEP;
  const std::vector<bf16> ones(n * n, bf16(1.0F));
  std::vector<float> product(n * n);
  try {
    multiply(n, n, n, ones.data(), n, ones.data(), n, product.data(), n, false);
    at::native::cpublas::brgemm_release();
  } catch (const c10::Error&) {
    return false;
  }
  return std::all_of(product.begin(), product.end(), [](float x) { return x == static_cast<float>(n); });
}

}  // namespace

bool has_attention_kernel() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bf16") && has_products();
  return has;
}

void attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& o,
                       const at::Tensor& lse, const VisibleKeys& visible, double scale) {
  check(q, k, v, lse, visible, {std::cref(o)});
  const int64_t num_kv = q.size(0), group = q.size(1), num_queries = q.size(2), h = q.size(3), num_keys = k.size(1);
  const KeyBlocks blocks(k, 2);
  blocks.fill(num_kv, num_keys, [&](int64_t kv, int64_t block, int64_t len, int64_t padded) {
    copy_rows(blocks.part(kv, block, 0), rows_of(k, kv, 0, block * KEYS), len, padded, h);
    transpose_rows(blocks.part(kv, block, 1), rows_of(v, kv, 0, block * KEYS), len, padded, h);
  });
  const int64_t num_query_blocks = (num_queries + QUERIES - 1) / QUERIES;
  at::parallel_for(0, num_kv * group * num_query_blocks, 1, [&](int64_t begin, int64_t end) {
    ForwardScratch scratch(h);
    for (int64_t i = begin; i < end; ++i) {
      // A later block sees more keys, and each thread gets a run of blocks: first and last take turns, so that runs cost the same.
      const int64_t head = i / num_query_blocks, turn = i % num_query_blocks;
      const int64_t query = (turn % 2 == 0 ? turn / 2 : num_query_blocks - 1 - turn / 2) * QUERIES;
      const int64_t kv = head / group, member = head % group;
      const int64_t len = std::min(QUERIES, num_queries - query), padded = round_up(len, STEP);
      pack_transposed(scratch.q.data(), rows_of(q, kv, member, query), len, round_up(len, PANEL), h);
      std::fill_n(scratch.max, QUERIES, LOWEST);
      std::fill_n(scratch.sum, QUERIES, 0.0F);
      const auto [first, last] = key_blocks(visible, query, len, num_keys);
      if (first >= last) std::fill(scratch.o.begin(), scratch.o.end(), 0.0F);
      for (int64_t block = first; block < last; ++block) {
        const int64_t key = block * KEYS, key_len = std::min(KEYS, num_keys - key), padded_keys = round_up(key_len, STEP);
        const Visibility seen(visible, query, len, key, key_len, padded_keys);
        multiply_panels(padded_keys, padded, h, blocks.part(kv, block, 0), scratch.q.data(), scratch.scores.data());
        softmax_block(scratch, seen, padded_keys, padded, h, static_cast<float>(scale) * LOG2_E);
        multiply_to_queries(padded_keys, padded, h, blocks.part(kv, block, 1), scratch.p.data(), scratch.o.data(),
                            block != first);
      }
      const Rows<bf16> o_rows = head_of<bf16>(o, kv, member);
      float* lse_head = lse.data_ptr<float>() + kv * lse.stride(0) + member * lse.stride(1) + query * lse.stride(2);
      finish_forward(scratch, len, h, {o_rows[query], o_rows.stride}, lse_head, lse.stride(2));
    }
    at::native::cpublas::brgemm_release();
  });
}

KeyGradients attention_backward(const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                const at::Tensor& o, const at::Tensor& lse, const at::Tensor& d_q,
                                const VisibleKeys& visible, double scale) {
  check(q, k, v, lse, visible, {std::cref(d_o), std::cref(o)});
  const int64_t num_kv = q.size(0), group = q.size(1), num_queries = q.size(2), h = q.size(3), num_keys = k.size(1);
  TORCH_CHECK(d_q.device().is_cpu() && d_q.sizes() == q.sizes() && d_q.stride(3) == 1 &&
                  (d_q.scalar_type() == at::kBFloat16 || d_q.scalar_type() == at::kFloat),
              "attention: d_q is ", d_q.sizes(), " of ", d_q.scalar_type(), ", which must be bf16 or single precision, as q");
  const int64_t width = h % PANEL == 0 ? PANEL : STEP;
  const KeyBlocks blocks(k, 3);
  blocks.fill(num_kv, num_keys, [&](int64_t kv, int64_t block, int64_t len, int64_t padded) {
    copy_rows(blocks.part(kv, block, 0), rows_of(k, kv, 0, block * KEYS), len, padded, h);
    copy_rows(blocks.part(kv, block, 1), rows_of(v, kv, 0, block * KEYS), len, padded, h);
    transpose_rows(blocks.part(kv, block, 2), rows_of(k, kv, 0, block * KEYS), len, padded, h);
  });
  const auto options = k.options().dtype(at::kFloat);
  const int64_t padded_keys = round_up(num_keys, STEP);
  const at::Tensor d_k = at::empty({num_kv, group, padded_keys, h}, options), d_v = at::empty_like(d_k);
  // [query blocks, h, QUERIES] for each thread
  const int64_t num_sums = round_up(num_queries, QUERIES) * h;
  const at::Tensor all_d_q_sums = at::empty({at::get_num_threads(), num_sums}, options);
  at::parallel_for(0, num_kv * group, 1, [&](int64_t begin, int64_t end) {
    BackwardScratch scratch(h);
    float* const d_q_sums = all_d_q_sums.data_ptr<float>() + at::get_thread_num() * num_sums;
    for (int64_t head = begin; head < end; ++head) {
      const int64_t kv = head / group, member = head % group;
      float* d_k_head = d_k.data_ptr<float>() + head * padded_keys * h;
      float* d_v_head = d_v.data_ptr<float>() + head * padded_keys * h;
      std::fill_n(d_k_head, padded_keys * h, 0.0F);
      std::fill_n(d_v_head, padded_keys * h, 0.0F);
      const float* lse_head = lse.data_ptr<float>() + kv * lse.stride(0) + member * lse.stride(1);
      std::fill_n(d_q_sums, num_sums, 0.0F);
      for (int64_t span = 0; span < blocks.num_blocks; span += SPAN) {
        for (int64_t query = 0; query < num_queries; query += QUERIES) {
          const int64_t len = std::min(QUERIES, num_queries - query), padded = round_up(len, STEP);
          const auto [first_seen, end_seen] = key_blocks(visible, query, len, num_keys);
          const int64_t first = std::max(first_seen, span), last = std::min(end_seen, span + SPAN);
          if (first >= last) continue;
          prepare_queries(scratch, rows_of(q, kv, member, query), rows_of(d_o, kv, member, query),
                          rows_of(o, kv, member, query), lse_head + query * lse.stride(2), lse.stride(2), len, padded, h, width,
                          static_cast<float>(scale));
          float* d_q_sum = d_q_sums + query * h;
          for (int64_t block = first; block < last; ++block) {
            const int64_t key = block * KEYS, key_len = std::min(KEYS, num_keys - key), rows = round_up(key_len, STEP);
            const Visibility seen(visible, query, len, key, key_len, rows);
            multiply_panels(rows, padded, h, blocks.part(kv, block, 0), scratch.q.data(), scratch.scores.data());
            multiply_panels(rows, padded, h, blocks.part(kv, block, 1), scratch.d_o.data(), scratch.d_p.data());
            gradient_block(scratch, seen, rows, padded, static_cast<float>(scale));
            for (int64_t column = 0; column < h; column += width) {
              const int64_t panel = column / width * (QUERIES / 2 * width);
              multiply(rows, width, padded, scratch.p.data(), QUERIES,
                       reinterpret_cast<const bf16*>(scratch.d_o_rows.data() + panel), width, d_v_head + key * h + column, h, true);
              multiply(rows, width, padded, scratch.d_s.data(), QUERIES,
                       reinterpret_cast<const bf16*>(scratch.q_rows.data() + panel), width, d_k_head + key * h + column, h, true);
            }
            multiply_to_queries(rows, padded, h, blocks.part(kv, block, 2), scratch.d_s_pairs.data(), d_q_sum, true);
          }
        }
      }
      for (int64_t query = 0; query < num_queries; query += QUERIES) {
        finish_backward(d_q_sums + query * h, std::min(QUERIES, num_queries - query), h, d_q, kv, member, query);
      }
    }
    at::native::cpublas::brgemm_release();
  });
  return {std::make_unique<at::Tensor>(d_k.narrow(2, 0, num_keys)), std::make_unique<at::Tensor>(d_v.narrow(2, 0, num_keys))};
}

}  // namespace sterna

#else

namespace sterna {

bool has_attention_kernel() { return false; }

void attention_forward(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                       const VisibleKeys&, double) {
  TORCH_CHECK(false, "attention: there is no kernel for this processor");
}

KeyGradients attention_backward(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                const at::Tensor&, const at::Tensor&, const VisibleKeys&, double) {
  TORCH_CHECK(false, "attention: there is no kernel for this processor");
}

}  // namespace sterna

#endif
