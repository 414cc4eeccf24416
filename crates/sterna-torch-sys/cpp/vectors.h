// One binary serves machines with and without wide vectors: the loader picks the clone.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define STERNA_WIDEST_VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define STERNA_WIDEST_VECTORS
#endif
