// How the program and the library of cuda/nccl.cc meet: one function, found by its name.
#pragma once

#include <cstdint>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

// The caller owns the reference that is returned.
extern "C" c10d::Backend* sterna_new_nccl_process_group(const c10::intrusive_ptr<c10d::Store>& store, int32_t rank,
                                                        int32_t size, int64_t timeout_ms);
