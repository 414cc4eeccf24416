#include "autograd.h"

#include <torch/csrc/autograd/autograd.h>

#include "sterna-torch-sys/src/bridge.rs.h"

namespace sterna {

std::vector<at::Tensor> to_vector(rust::Slice<const TensorRef> tensors) {
  std::vector<at::Tensor> result;
  result.reserve(tensors.size());
  for (const TensorRef& tensor : tensors) {
    result.push_back(tensor.tensor);
  }
  return result;
}

rust::Vec<OptionalTensor> vjp(rust::Slice<const TensorRef> outputs, rust::Slice<const TensorRef> d_outputs,
                              rust::Slice<const TensorRef> inputs, bool retain_graph) {
  const std::vector<at::Tensor> grads =
      torch::autograd::grad(to_vector(outputs), to_vector(inputs), to_vector(d_outputs), retain_graph,
                            /*create_graph=*/false, /*allow_unused=*/true);
  rust::Vec<OptionalTensor> result;
  result.reserve(grads.size());
  for (const at::Tensor& grad : grads) {
    result.push_back(OptionalTensor{grad.defined() ? std::make_unique<at::Tensor>(grad) : nullptr});
  }
  return result;
}

}  // namespace sterna
