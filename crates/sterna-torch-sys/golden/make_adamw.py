"""Prints what torch.optim.AdamW does in fp64 (single-tensor path, not the fused one): tests/it/optimizer.rs has it.

Needs torch 2.11 on a CPU; no randomness.
"""

import torch

param = torch.tensor([1.0, -2.0, 0.5, 1e-3, 3.0], dtype=torch.float64, requires_grad=True)
optimizer = torch.optim.AdamW([param], lr=1e-2, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1, foreach=False, fused=False)
for step in range(1, 4):
    grad = torch.tensor([0.1, -0.2, 1e-7, 3.0, 0.0], dtype=torch.float64) * step - 0.05 * (step == 2)
    param.grad = grad
    optimizer.step()
    state = optimizer.state[param]
    print("grad      ", [f"{x:.9e}" for x in grad.tolist()])
    print("param     ", [f"{x:.9e}" for x in param.tolist()])
    print("exp_avg   ", [f"{x:.9e}" for x in state["exp_avg"].tolist()])
    print("exp_avg_sq", [f"{x:.9e}" for x in state["exp_avg_sq"].tolist()])
