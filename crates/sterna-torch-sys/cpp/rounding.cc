#include "rounding.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace sterna {
namespace {

// Adds 16 random bits below the significand that is kept, then cuts: the chance of rounding up is the fraction cut off.
// The bits are a hash of the position, mixed with the key at its start and its middle (constants: Wellons' lowbias32).
STERNA_WIDEST_VECTORS
void round_run(const uint32_t* source, uint16_t* target, int64_t len, uint32_t start, uint32_t key_high) {
  for (int64_t i = 0; i < len; ++i) {
    uint32_t hash = start + static_cast<uint32_t>(i);
    hash = (hash ^ (hash >> 16)) * 0x7feb352dU;
    hash ^= key_high;
    hash = (hash ^ (hash >> 15)) * 0x846ca68bU;
    const uint32_t bits = source[i];
    const uint32_t exponent = bits & 0x7f800000U;
    // Infinity stays, and a NaN stays one.
    const uint32_t not_finite = bits | ((bits & 0x007fffffU) != 0 ? 0x00400000U : 0U);
    const uint32_t rounded = exponent == 0x7f800000U ? not_finite : bits + (hash >> 16);
    target[i] = static_cast<uint16_t>(rounded >> 16);
  }
}

}  // namespace

void round_stochastically(const at::Tensor& source, const at::Tensor& target, uint64_t key, uint64_t position) {
  const auto* from = static_cast<const uint32_t*>(source.const_data_ptr());
  auto* to = static_cast<uint16_t*>(target.mutable_data_ptr());
  constexpr int64_t kGrain = 1 << 14;
  at::parallel_for(0, source.numel(), kGrain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      // The hash takes 32 bits of the position; those above go into the key, so a run ends where they change.
      const uint64_t at = position + static_cast<uint64_t>(begin);
      const uint64_t left = (uint64_t{1} << 32) - (at & 0xffffffffU);
      const auto len = static_cast<int64_t>(std::min(static_cast<uint64_t>(end - begin), left));
      const auto key_high = static_cast<uint32_t>(key >> 32) ^ (static_cast<uint32_t>(at >> 32) * 0x9e3779b9U);
      round_run(from + begin, to + begin, len, static_cast<uint32_t>(at) + static_cast<uint32_t>(key), key_high);
      begin += len;
    }
  });
}

}  // namespace sterna
