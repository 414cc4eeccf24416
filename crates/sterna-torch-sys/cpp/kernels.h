// What src/kernels.rs asks of libtorch.
#pragma once

#include "error.h"
#include "rust/cxx.h"

namespace sterna {

// The CUstream on which libtorch runs what is called next in this thread, as a number.
uint64_t current_cuda_stream(int32_t device_index);

// The folder that libtorch_cpu.so was loaded from.
rust::String libtorch_folder();

}  // namespace sterna
