// Random numbers that do not depend on who draws them.
#pragma once

#include "error.h"
#include "tensor.h"

namespace sterna {

void fill_normal(const at::Tensor& target, uint64_t stream, uint64_t first, double std);

}  // namespace sterna
