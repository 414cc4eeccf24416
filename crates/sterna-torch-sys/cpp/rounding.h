// Rounding that libtorch lacks.
#pragma once

#include "error.h"
#include "tensor.h"

namespace sterna {

void round_stochastically(const at::Tensor& source, const at::Tensor& target, uint64_t key, uint64_t position);

}  // namespace sterna
