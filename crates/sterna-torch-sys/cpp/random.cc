#include "random.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace sterna {
namespace {

// The kernels' own file: what makes both give the same bits is that there is one.
#define __device__
#include "../kernels/normal.cuh"
#undef __device__

STERNA_WIDEST_VECTORS
void fill_run(float* target, int64_t len, uint64_t stream, uint64_t first, double std) {
  for (int64_t i = 0; i < len; ++i) {
    target[i] = normal(stream, first + static_cast<uint64_t>(i), std);
  }
}

// To the nearest, ties to even. None is a NaN.
STERNA_WIDEST_VECTORS
void round_run_to_nearest(const float* source, uint16_t* target, int64_t len) {
  for (int64_t i = 0; i < len; ++i) {
    uint32_t bits;
    std::memcpy(&bits, source + i, sizeof bits);
    target[i] = static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
  }
}

}  // namespace

void fill_normal(const at::Tensor& target, uint64_t stream, uint64_t first, double std) {
  constexpr int64_t kGrain = 1 << 14;
  constexpr int64_t kRun = 1 << 10;
  void* to = target.mutable_data_ptr();
  const bool is_fp32 = target.scalar_type() == at::kFloat;
  at::parallel_for(0, target.numel(), kGrain, [&](int64_t begin, int64_t end) {
    float run[kRun];
    for (int64_t start = begin; start < end; start += kRun) {
      const int64_t len = std::min(kRun, end - start);
      const uint64_t at = first + static_cast<uint64_t>(start);
      if (is_fp32) {
        fill_run(static_cast<float*>(to) + start, len, stream, at, std);
      } else {
        fill_run(run, len, stream, at, std);
        round_run_to_nearest(run, static_cast<uint16_t*>(to) + start, len);
      }
    }
  });
}

}  // namespace sterna
