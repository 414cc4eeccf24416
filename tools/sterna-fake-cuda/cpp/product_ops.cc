// The matrix products that only CUDA has: operands in half precision, sums and result in single precision.
//
// What they refuse is what `_addmm_dtype_out_cuda` of libtorch 2.11.0 refuses (aten/src/ATen/native/cuda/Blas.cpp).

#include "device.h"

#include <ATen/Functions.h>
#include <torch/library.h>

namespace sterna::fake {
namespace {

at::Tensor& addmm_dtype_out(const at::Tensor& self, const at::Tensor& mat1, const at::Tensor& mat2, at::ScalarType out_dtype,
                            const at::Scalar& beta, const at::Scalar& alpha, at::Tensor& out) {
  for (const at::Tensor& operand : {self, mat1, mat2, out}) {
    TORCH_CHECK(operand.device() == out.device() && operand.is_cuda(), "Expected all tensors to be on the same device, but found ",
                operand.device(), " and ", out.device());
  }
  TORCH_CHECK(mat1.dim() == 2 && mat2.dim() == 2, "mat1 and mat2 must be matrices, got ", mat1.dim(), "-D and ", mat2.dim(), "-D tensors");
  TORCH_CHECK(mat1.size(1) == mat2.size(0), "mat1 and mat2 shapes cannot be multiplied (", mat1.sizes(), " and ", mat2.sizes(), ")");
  TORCH_CHECK(mat1.scalar_type() == mat2.scalar_type(), "mat1 and mat2 must have the same dtype, but got ", mat1.scalar_type(), " and ",
              mat2.scalar_type());
  const bool is_half = mat1.scalar_type() == at::kHalf || mat1.scalar_type() == at::kBFloat16;
  TORCH_CHECK(out_dtype == mat1.scalar_type() || (out_dtype == at::kFloat && is_half),
              "out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs");
  TORCH_CHECK(out_dtype == out.scalar_type(), "out_dtype must be the same as the dtype of the provided out tensor");
  TORCH_CHECK(out_dtype == self.scalar_type() || self.scalar_type() == mat1.scalar_type(),
              "self dtype must match either out_dtype or mat1 dtype");
  // The real one copies `self` to `out` first, which costs a pass and a temporary where they differ: nobody here wants that.
  TORCH_CHECK(out.is_same(self), "the fake adds in place only");
  TORCH_CHECK(out.sizes() == at::IntArrayRef({mat1.size(0), mat2.size(1)}), "self is ", self.sizes(), ", which the product of ",
              mat1.sizes(), " and ", mat2.sizes(), " is not");
  at::Tensor sum = on_host(out);
  sum.addmm_(on_host(mat1).to(out_dtype), on_host(mat2).to(out_dtype), beta, alpha);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("addmm.dtype_out", TORCH_FN(addmm_dtype_out));
}

}  // namespace sterna::fake
