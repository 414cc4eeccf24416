// Token cross-entropy of a tile of logits [s, v] and its gradient in place; see crates/sterna-ops/src/cross_entropy.rs.
#include "common.cuh"

// The softmax of what a thread has seen of a row: the sum is relative to the largest value, so that nothing overflows.
struct Online {
  float max = -infinity();
  float sum = 0.0F;

  __device__ void add(float x) {
    if (x > max) {
      sum = sum * expf(max - x) + 1.0F;
      max = x;
    } else if (x != -infinity()) {
      // A NaN comes here and stays in the sum.
      sum += expf(x - max);
    }
  }
};

// One block per row, two passes: the first reads, the second reads and writes. Rows are `stride` elements apart.
template <typename T, typename Logits, bool kBackward>
__device__ void cross_entropy(Logits* logits, Int64 stride, const Int64* labels, float* losses, Int64 num_rows,
                              Int64 vocab_size, const float* weights) {
  constexpr Int64 kIgnoreIndex = -100;
  constexpr int kLen = Pack<T>::kLen;
  for (Int64 row = blockIdx.x; row < num_rows; row += gridDim.x) {
    Logits* x = logits + row * stride;
    const Int64 packed = is_aligned(x) ? vocab_size / kLen * kLen : 0;
    const Int64 label = labels[row];
    if (label == kIgnoreIndex) {
      if constexpr (kBackward) {
        for (Int64 i = threadIdx.x; i < vocab_size; i += blockDim.x) {
          x[i] = narrow<T>(0.0F);
        }
      }
      if (threadIdx.x == 0) {
        losses[row] = 0.0F;
      }
      continue;
    }
    if (label < 0 || label >= vocab_size) {
      // As libtorch's own kernels end where an index is outside of a tensor.
      __trap();
    }
    // Read before the barriers below, after which the gradient overwrites it.
    const float x_label = widen(x[label]);
    Online seen;
    for (Int64 i = static_cast<Int64>(threadIdx.x) * kLen; i < packed; i += static_cast<Int64>(blockDim.x) * kLen) {
      const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(x + i);
      for (int j = 0; j < kLen; ++j) {
        seen.add(widen(pack.at[j]));
      }
    }
    for (Int64 i = packed + threadIdx.x; i < vocab_size; i += blockDim.x) {
      seen.add(widen(x[i]));
    }
    const float max = reduce_block<Max>(seen.max);
    // A thread that has seen nothing has a largest value of minus infinity.
    const float sum = reduce_block<Sum>(seen.sum == 0.0F ? 0.0F : seen.sum * expf(seen.max - max));
    const float log_sum = logf(sum);
    if (threadIdx.x == 0) {
      losses[row] = log_sum - (x_label - max);
    }
    if constexpr (kBackward) {
      const float weight = weights[row];
      const auto gradient = [&](Int64 i, T logit) {
        const float p = expf(widen(logit) - max - log_sum);
        return narrow<T>((i == label ? p - 1.0F : p) * weight);
      };
      for (Int64 i = static_cast<Int64>(threadIdx.x) * kLen; i < packed; i += static_cast<Int64>(blockDim.x) * kLen) {
        auto* at = reinterpret_cast<Pack<T>*>(x + i);
        Pack<T> pack = *at;
        for (int j = 0; j < kLen; ++j) {
          pack.at[j] = gradient(i + j, pack.at[j]);
        }
        *at = pack;
      }
      for (Int64 i = packed + threadIdx.x; i < vocab_size; i += blockDim.x) {
        x[i] = gradient(i, x[i]);
      }
    }
  }
}

#define STERNA_CROSS_ENTROPY(NAME, T)                                                                                  \
  extern "C" __global__ void __launch_bounds__(kMaxThreads)                                                            \
      cross_entropy_forward_##NAME(const T* logits, Int64 stride, const Int64* labels, float* losses, Int64 num_rows,  \
                                   Int64 vocab_size) {                                                                 \
    cross_entropy<T, const T, false>(logits, stride, labels, losses, num_rows, vocab_size, nullptr);                   \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(kMaxThreads)                                                            \
      cross_entropy_forward_backward_##NAME(T* logits, Int64 stride, const Int64* labels, float* losses,               \
                                            Int64 num_rows, Int64 vocab_size, const float* weights) {                  \
    cross_entropy<T, T, true>(logits, stride, labels, losses, num_rows, vocab_size, weights);                          \
  }
STERNA_CROSS_ENTROPY(bf16, Bf16)
STERNA_CROSS_ENTROPY(f32, float)
