// What all kernels share: dtypes, rounding, and sums over a block.
//
// These files include nothing but each other, so NVRTC needs no headers. The same files compile with g++ for the tests
// (tools/sterna-fake-cuda/cpp/emulate.h). Products and sums are never contracted (--fmad=false): the values are rounded
// where the operations of crates/sterna-ops round, and no kernel here is limited by arithmetic.
#pragma once

using Int64 = long long;
using Uint32 = unsigned int;
using Uint64 = unsigned long long;

constexpr int kWarp = 32;
// The most threads a block of ours has (src/kernels.rs says how many each kernel gets).
constexpr int kMaxThreads = 512;
constexpr int kMaxWarps = kMaxThreads / kWarp;

struct Bf16 {
  unsigned short bits;
};

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(Bf16 value) { return __uint_as_float(static_cast<Uint32>(value.bits) << 16); }

template <typename T>
__device__ inline T narrow(float value);

template <>
__device__ inline float narrow<float>(float value) {
  return value;
}

// To the nearest, ties to even; a NaN becomes libtorch's NaN.
template <>
__device__ inline Bf16 narrow<Bf16>(float value) {
  const Uint32 bits = __float_as_uint(value);
  if (value != value) {
    return Bf16{0x7fc0};
  }
  return Bf16{static_cast<unsigned short>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16)};
}

// The value after a trip through the dtype T.
template <typename T>
__device__ inline float rounded(float value) {
  return widen(narrow<T>(value));
}

// 16 bytes, the widest load.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kLen = 16 / sizeof(T);
  T at[kLen];
};

__device__ inline bool is_aligned(const void* pointer) { return (reinterpret_cast<Uint64>(pointer) & 15U) == 0; }

__device__ inline Int64 first_thread() { return static_cast<Int64>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline Int64 num_threads() { return static_cast<Int64>(gridDim.x) * blockDim.x; }

__device__ inline float infinity() { return __uint_as_float(0x7f800000U); }

struct Sum {
  __device__ static float identity() { return 0.0F; }
  __device__ static float of(float a, float b) { return a + b; }
};

struct Max {
  __device__ static float identity() { return -infinity(); }
  __device__ static float of(float a, float b) { return a > b ? a : b; }
};

// Every thread of the warp gets the result.
template <typename Op>
__device__ inline float reduce_warp(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value = Op::of(value, __shfl_xor_sync(0xffffffffU, value, step));
  }
  return value;
}

// Every thread of the block gets the result. All threads take part; a block is a whole number of warps.
template <typename Op>
__device__ inline float reduce_block(float value) {
  __shared__ float of_warp[kMaxWarps];
  const int lane = threadIdx.x % kWarp;
  const int num_warps = blockDim.x / kWarp;
  value = reduce_warp<Op>(value);
  // The previous reduction may still be read.
  __syncthreads();
  if (lane == 0) {
    of_warp[threadIdx.x / kWarp] = value;
  }
  __syncthreads();
  return reduce_warp<Op>(lane < num_warps ? of_warp[lane] : Op::identity());
}
