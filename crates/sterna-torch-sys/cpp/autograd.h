// Vector-Jacobian products.
#pragma once

#include "error.h"
#include "tensor.h"

namespace sterna {

rust::Vec<OptionalTensor> vjp(rust::Slice<const TensorRef> outputs, rust::Slice<const TensorRef> d_outputs,
                              rust::Slice<const TensorRef> inputs, bool retain_graph);

}  // namespace sterna
