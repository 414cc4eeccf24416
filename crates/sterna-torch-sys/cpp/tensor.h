// How a tensor crosses the boundary.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "rust/cxx.h"

namespace sterna {

using Tensor = at::Tensor;

struct TensorRef;
struct OptionalTensor;

// Copies handles, never storage.
std::vector<at::Tensor> to_vector(rust::Slice<const TensorRef> tensors);

}  // namespace sterna
