// Fused optimizer steps.
#pragma once

#include "error.h"
#include "tensor.h"

namespace sterna {

struct AdamW;

void fused_adamw_(const at::Tensor& param, const at::Tensor& grad, const at::Tensor& exp_avg,
                  const at::Tensor& exp_avg_sq, int64_t step, const AdamW& adamw);

}  // namespace sterna
