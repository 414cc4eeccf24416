// Exact attention on a CUDA device by libtorch's own kernels: FlashAttention 2 over packed documents, and cuDNN.
#pragma once

#include "error.h"
#include "tensor.h"

namespace sterna {

struct PackedLengths;
struct AttentionOutput;
struct AttentionGradients;

AttentionOutput flash_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const PackedLengths& lengths,
                              double scale);

AttentionGradients flash_backward(const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const at::Tensor& o, const at::Tensor& lse, const PackedLengths& lengths, double scale);

AttentionOutput cudnn_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool is_causal, double scale);

AttentionGradients cudnn_backward(const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const at::Tensor& o, const at::Tensor& lse, bool is_causal, double scale);

}  // namespace sterna
