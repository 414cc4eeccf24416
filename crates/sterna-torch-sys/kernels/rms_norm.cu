// Root-mean-square normalisation of rows [.., d]; see crates/sterna-ops/src/rms_norm.rs.
#include "common.cuh"

// 1 / sqrt(mean(x^2) + eps), known to every thread of the block.
template <typename T>
__device__ inline float inverse_rms(const T* x, Int64 dim, float eps) {
  float squares = 0.0F;
  for (Int64 i = threadIdx.x; i < dim; i += blockDim.x) {
    const float value = widen(x[i]);
    squares += value * value;
  }
  return rsqrtf(reduce_block<Sum>(squares) / static_cast<float>(dim) + eps);
}

// One block per row.
template <typename T>
__device__ void rms_norm_forward(const T* x, const T* weight, T* y, Int64 num_rows, Int64 dim, float eps) {
  for (Int64 row = blockIdx.x; row < num_rows; row += gridDim.x) {
    const T* from = x + row * dim;
    T* to = y + row * dim;
    const float r = inverse_rms(from, dim, eps);
    for (Int64 i = threadIdx.x; i < dim; i += blockDim.x) {
      to[i] = narrow<T>(rounded<T>(widen(from[i]) * r) * widen(weight[i]));
    }
  }
}

// One block per row. Each block sums the gradient of the weight over its rows into its own row of `d_weight`
// [gridDim.x, d], which is zero at first; a column has one thread, so no atomics, and the same sum each time.
template <typename T, bool kWeight>
__device__ void rms_norm_backward(const T* d_y, const T* x, const T* weight, T* d_x, float* d_weight, Int64 num_rows,
                                  Int64 dim, float eps) {
  for (Int64 row = blockIdx.x; row < num_rows; row += gridDim.x) {
    const T* x_row = x + row * dim;
    const T* d_y_row = d_y + row * dim;
    const float r = inverse_rms(x_row, dim, eps);
    float g_z = 0.0F;
    for (Int64 i = threadIdx.x; i < dim; i += blockDim.x) {
      const float d_y_z = widen(x_row[i]) * r * widen(d_y_row[i]);
      g_z += d_y_z * widen(weight[i]);
      if constexpr (kWeight) {
        d_weight[blockIdx.x * dim + i] += d_y_z;
      }
    }
    const float mean = reduce_block<Sum>(g_z) / static_cast<float>(dim);
    for (Int64 i = threadIdx.x; i < dim; i += blockDim.x) {
      const float z = widen(x_row[i]) * r;
      d_x[row * dim + i] = narrow<T>((widen(weight[i]) * widen(d_y_row[i]) - z * mean) * r);
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
