// libtorch's CPU allocator, with every block handed to src/memory.rs.
#pragma once

#include "error.h"
#include "tensor.h"

namespace sterna {

// From now on tensors on the CPU get their memory from Rust.
void install_cpu_allocator();

// Where the tensor's storage lies if Rust has allocated it, else null.
const uint8_t* rust_block(const at::Tensor& tensor);

}  // namespace sterna
