// libtorch's device allocator, with every block told to src/memory/device.rs.
#pragma once

#include "error.h"
#include "tensor.h"

namespace sterna {

// From now on what this thread allocates and frees on a GPU is told to Rust. Once is enough.
void keep_device_books();

// Where the tensor's storage begins; 0 if it has none.
size_t storage_address(const at::Tensor& tensor);

}  // namespace sterna
