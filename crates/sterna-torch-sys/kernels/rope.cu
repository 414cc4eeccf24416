// Rotary embedding of x [s, n, h], whose tokens and heads may lie anywhere; see crates/sterna-ops/src/rope.rs.
#include "common.cuh"

// One warp per token and head. Each product is rounded before the sum, as the operations of the definition do.
template <typename T>
__device__ void rope(const T* x, Int64 token_stride, Int64 head_stride, const T* cos, const T* sin, T* y,
                     Int64 num_tokens, Int64 num_heads, Int64 head_size, float direction) {
  const Int64 half = head_size / 2;
  const Int64 lane = threadIdx.x % kWarp;
  for (Int64 row = first_thread() / kWarp; row < num_tokens * num_heads; row += num_threads() / kWarp) {
    const Int64 token = row / num_heads;
    const T* from = x + token * token_stride + (row - token * num_heads) * head_stride;
    const T* c = cos + token * head_size;
    const T* s = sin + token * head_size;
    T* to = y + row * head_size;
    for (Int64 i = lane; i < half; i += kWarp) {
      const float a = widen(from[i]);
      const float b = widen(from[i + half]);
      to[i] = narrow<T>(rounded<T>(a * widen(c[i])) + rounded<T>(-direction * b * widen(s[i])));
      to[i + half] = narrow<T>(rounded<T>(b * widen(c[i + half])) + rounded<T>(direction * a * widen(s[i + half])));
    }
  }
}

// `direction` is 1 for the forward and -1 for the backward.
#define STERNA_ROPE(NAME, T)                                                                                           \
  extern "C" __global__ void __launch_bounds__(kMaxThreads)                                                            \
      rope_##NAME(const T* x, Int64 token_stride, Int64 head_stride, const T* cos, const T* sin, T* y,                 \
                  Int64 num_tokens, Int64 num_heads, Int64 head_size, float direction) {                               \
    rope<T>(x, token_stride, head_stride, cos, sin, y, num_tokens, num_heads, head_size, direction);                   \
  }
STERNA_ROPE(bf16, Bf16)
STERNA_ROPE(f32, float)
