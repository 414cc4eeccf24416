// Causal attention on processors with bf16 dot products: what libtorch's CPU kernel computes, from larger products.
#pragma once

#include <memory>

#include "error.h"
#include "tensor.h"

namespace sterna {

struct VisibleKeys;
struct KeyGradients;

bool has_attention_kernel();

void attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& o,
                       const at::Tensor& lse, const VisibleKeys& visible, double scale);

KeyGradients attention_backward(const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                const at::Tensor& o, const at::Tensor& lse, const at::Tensor& d_q,
                                const VisibleKeys& visible, double scale);

}  // namespace sterna
