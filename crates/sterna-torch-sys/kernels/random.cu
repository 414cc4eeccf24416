// Normal numbers, bit for bit those of cpp/random.cc.
#include "common.cuh"
#include "normal.cuh"

template <typename T>
__device__ void fill_normal(T* to, Int64 len, Uint64 stream, Uint64 first, double std) {
  for (Int64 i = first_thread(); i < len; i += num_threads()) {
    to[i] = narrow<T>(normal(stream, first + static_cast<Uint64>(i), std));
  }
}

#define STERNA_FILL_NORMAL(NAME, T)                                                                                    \
  extern "C" __global__ void __launch_bounds__(kMaxThreads)                                                            \
      fill_normal_##NAME(T* to, Int64 len, Uint64 stream, Uint64 first, double std) {                                  \
    fill_normal<T>(to, len, stream, first, std);                                                                       \
  }
STERNA_FILL_NORMAL(bf16, Bf16)
STERNA_FILL_NORMAL(f32, float)
