#include "optimizer.h"

#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/scalar_tensor.h>

#include "sterna-torch-sys/src/bridge.rs.h"

namespace sterna {

void fused_adamw_(const at::Tensor& param, const at::Tensor& grad, const at::Tensor& exp_avg,
                  const at::Tensor& exp_avg_sq, int64_t step, const AdamW& adamw) {
  const at::Tensor state_step = at::scalar_tensor(step, param.options().dtype(at::kFloat));
  at::_fused_adamw_({param}, {grad}, {exp_avg}, {exp_avg_sq}, /*max_exp_avg_sqs=*/{}, {state_step}, adamw.lr,
                    adamw.beta1, adamw.beta2, adamw.weight_decay, adamw.eps, /*amsgrad=*/false, /*maximize=*/false);
}

}  // namespace sterna
