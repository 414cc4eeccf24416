// Root-mean-square normalisation of rows [.., d]; see crates/sterna-ops/src/rms_norm.rs.
//
// A block has a row at a time. Where rows are whole packs of 16 bytes, a thread reads its packs once and keeps them, and its columns'
// sum of the weight's gradient, in registers; other rows are read value by value, as often as they are needed.
#include "common.cuh"

// The most packs of a row that a thread keeps.
constexpr int kPacks = 4;

// 1 / sqrt(mean(x^2) + eps), known to every thread of the block, which has `squares` of its values.
__device__ inline float inverse_rms(float squares, Int64 dim, float eps) {
  return rsqrtf(reduce_block<Sum>(squares) / static_cast<float>(dim) + eps);
}

template <typename T>
__device__ inline float squares_of(const Pack<T>& pack) {
  float squares = 0.0F;
  for (int j = 0; j < Pack<T>::kLen; ++j) {
    squares += widen(pack.at[j]) * widen(pack.at[j]);
  }
  return squares;
}

// Of the thread's values of a row.
template <typename T>
__device__ inline float squares_of(const T* x, Int64 dim) {
  float squares = 0.0F;
  for (Int64 i = threadIdx.x; i < dim; i += blockDim.x) {
    const float value = widen(x[i]);
    squares += value * value;
  }
  return squares;
}

template <typename T>
__device__ inline bool is_packed(Int64 dim) {
  return dim % Pack<T>::kLen == 0 && dim / Pack<T>::kLen <= static_cast<Int64>(blockDim.x) * kPacks;
}

template <typename T>
__device__ inline T scaled(T x, float r, T weight) {
  return narrow<T>(rounded<T>(widen(x) * r) * widen(weight));
}

template <typename T>
__device__ void rms_norm_forward(const T* x, const T* weight, T* y, Int64 num_rows, Int64 dim, float eps) {
  if (!is_packed<T>(dim) || !is_aligned(x) || !is_aligned(weight) || !is_aligned(y)) {
    for (Int64 row = blockIdx.x; row < num_rows; row += gridDim.x) {
      const T* from = x + row * dim;
      const float r = inverse_rms(squares_of(from, dim), dim, eps);
      for (Int64 i = threadIdx.x; i < dim; i += blockDim.x) {
        y[row * dim + i] = scaled(from[i], r, weight[i]);
      }
    }
    return;
  }
  const Int64 num_packs = dim / Pack<T>::kLen;
  const auto* weights = reinterpret_cast<const Pack<T>*>(weight);
  for (Int64 row = blockIdx.x; row < num_rows; row += gridDim.x) {
    const auto* from = reinterpret_cast<const Pack<T>*>(x + row * dim);
    auto* to = reinterpret_cast<Pack<T>*>(y + row * dim);
    Pack<T> xs[kPacks];
    float squares = 0.0F;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const Int64 i = threadIdx.x + p * static_cast<Int64>(blockDim.x);
      if (i < num_packs) {
        xs[p] = from[i];
        squares += squares_of(xs[p]);
      }
    }
    const float r = inverse_rms(squares, dim, eps);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const Int64 i = threadIdx.x + p * static_cast<Int64>(blockDim.x);
      if (i < num_packs) {
        const Pack<T> ws = weights[i];
        Pack<T> ys;
        for (int j = 0; j < Pack<T>::kLen; ++j) {
          ys.at[j] = scaled(xs[p].at[j], r, ws.at[j]);
        }
        to[i] = ys;
      }
    }
  }
}

template <typename T>
__device__ inline T gradient(T d_y, T x, T weight, float r, float mean) {
  return narrow<T>((widen(weight) * widen(d_y) - widen(x) * r * mean) * r);
}

// Each block sums the gradient of the weight over its rows into its own row of `d_weight` [gridDim.x, d]; a column has one
// thread, so no atomics, and the same sum each time.
template <typename T, bool kWeight>
__device__ void rms_norm_backward(const T* d_y, const T* x, const T* weight, T* d_x, float* d_weight, Int64 num_rows,
                                  Int64 dim, float eps) {
  const bool aligned = is_aligned(d_y) && is_aligned(x) && is_aligned(weight) && is_aligned(d_x);
  if (!is_packed<T>(dim) || !aligned) {
    for (Int64 row = blockIdx.x; row < num_rows; row += gridDim.x) {
      const T* x_row = x + row * dim;
      const T* d_y_row = d_y + row * dim;
      const float r = inverse_rms(squares_of(x_row, dim), dim, eps);
      float g_z = 0.0F;
      for (Int64 i = threadIdx.x; i < dim; i += blockDim.x) {
        const float d_y_z = widen(x_row[i]) * r * widen(d_y_row[i]);
        g_z += d_y_z * widen(weight[i]);
        if constexpr (kWeight) {
          float& sum = d_weight[blockIdx.x * dim + i];
          sum = (row == blockIdx.x ? 0.0F : sum) + d_y_z;
        }
      }
      const float mean = reduce_block<Sum>(g_z) / static_cast<float>(dim);
      for (Int64 i = threadIdx.x; i < dim; i += blockDim.x) {
        d_x[row * dim + i] = gradient(d_y_row[i], x_row[i], weight[i], r, mean);
      }
    }
    return;
  }
  const Int64 num_packs = dim / Pack<T>::kLen;
  const auto* weights = reinterpret_cast<const Pack<T>*>(weight);
  float sums[kPacks][Pack<T>::kLen] = {};
  for (Int64 row = blockIdx.x; row < num_rows; row += gridDim.x) {
    const auto* x_row = reinterpret_cast<const Pack<T>*>(x + row * dim);
    const auto* d_y_row = reinterpret_cast<const Pack<T>*>(d_y + row * dim);
    auto* d_x_row = reinterpret_cast<Pack<T>*>(d_x + row * dim);
    Pack<T> xs[kPacks];
    Pack<T> d_ys[kPacks];
    float squares = 0.0F;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const Int64 i = threadIdx.x + p * static_cast<Int64>(blockDim.x);
      if (i < num_packs) {
        xs[p] = x_row[i];
        d_ys[p] = d_y_row[i];
        squares += squares_of(xs[p]);
      }
    }
    const float r = inverse_rms(squares, dim, eps);
    float g_z = 0.0F;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const Int64 i = threadIdx.x + p * static_cast<Int64>(blockDim.x);
      if (i < num_packs) {
        const Pack<T> ws = weights[i];
#pragma unroll
        for (int j = 0; j < Pack<T>::kLen; ++j) {
          const float d_y_z = widen(xs[p].at[j]) * r * widen(d_ys[p].at[j]);
          g_z += d_y_z * widen(ws.at[j]);
          if constexpr (kWeight) {
            sums[p][j] += d_y_z;
          }
        }
      }
    }
    const float mean = reduce_block<Sum>(g_z) / static_cast<float>(dim);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const Int64 i = threadIdx.x + p * static_cast<Int64>(blockDim.x);
      if (i < num_packs) {
        const Pack<T> ws = weights[i];
        Pack<T> d_xs;
        for (int j = 0; j < Pack<T>::kLen; ++j) {
          d_xs.at[j] = gradient(d_ys[p].at[j], xs[p].at[j], ws.at[j], r, mean);
        }
        d_x_row[i] = d_xs;
      }
    }
  }
  if constexpr (kWeight) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const Int64 i = threadIdx.x + p * static_cast<Int64>(blockDim.x);
      if (i < num_packs) {
#pragma unroll
        for (int j = 0; j < Pack<T>::kLen; ++j) {
          d_weight[blockIdx.x * dim + i * Pack<T>::kLen + j] = sums[p][j];
        }
      }
    }
  }
}

#define STERNA_RMS_NORM(NAME, T)                                                                                       \
  extern "C" __global__ void __launch_bounds__(kMaxThreads)                                                            \
      rms_norm_forward_##NAME(const T* x, const T* weight, T* y, Int64 num_rows, Int64 dim, float eps) {               \
    rms_norm_forward<T>(x, weight, y, num_rows, dim, eps);                                                             \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(kMaxThreads)                                                            \
      rms_norm_backward_##NAME(const T* d_y, const T* x, const T* weight, T* d_x, Int64 num_rows, Int64 dim,           \
                               float eps) {                                                                            \
    rms_norm_backward<T, false>(d_y, x, weight, d_x, nullptr, num_rows, dim, eps);                                     \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(kMaxThreads)                                                            \
      rms_norm_backward_weight_##NAME(const T* d_y, const T* x, const T* weight, T* d_x, float* d_weight,              \
                                      Int64 num_rows, Int64 dim, float eps) {                                          \
    rms_norm_backward<T, true>(d_y, x, weight, d_x, d_weight, num_rows, dim, eps);                                     \
  }
STERNA_RMS_NORM(bf16, Bf16)
STERNA_RMS_NORM(f32, float)
