// Stochastic rounding of fp32 to bf16, bit for bit that of cpp/rounding.cc, which says what it does.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(kMaxThreads)
    round_stochastically(const Uint32* source, Bf16* target, Int64 len, Uint64 key, Uint64 position) {
  for (Int64 i = first_thread(); i < len; i += num_threads()) {
    const Uint64 at = position + static_cast<Uint64>(i);
    Uint32 hash = static_cast<Uint32>(at) + static_cast<Uint32>(key);
    hash = (hash ^ (hash >> 16)) * 0x7feb352dU;
    hash ^= static_cast<Uint32>(key >> 32) ^ (static_cast<Uint32>(at >> 32) * 0x9e3779b9U);
    hash = (hash ^ (hash >> 15)) * 0x846ca68bU;
    const Uint32 bits = source[i];
    const Uint32 not_finite = bits | ((bits & 0x007fffffU) != 0 ? 0x00400000U : 0U);
    const Uint32 rounded_bits = (bits & 0x7f800000U) == 0x7f800000U ? not_finite : bits + (hash >> 16);
    target[i] = Bf16{static_cast<unsigned short>(rounded_bits >> 16)};
  }
}
