#!/usr/bin/env python3
"""Write the learning rates that transformers' get_scheduler gives, step by step, for every schedule we offer.

Run with transformers 4.57 and torch 2.11: python golden/make_train_schedules.py
Writes crates/sterna-train/tests/fixtures/schedules.json.
"""
import json
import pathlib
import warnings

import torch
import transformers
from transformers import get_scheduler

warnings.filterwarnings("ignore")
LR, STEPS = 3e-4, 20
CASES = [
    ("constant", 5, {}),
    ("constant_with_warmup", 5, {}),
    ("linear", 0, {}),
    ("linear", 3, {}),
    ("cosine", 4, {}),
    ("cosine", 4, {"num_cycles": 1.5}),
    ("cosine_with_restarts", 2, {"num_cycles": 3}),
    ("polynomial", 2, {}),
    ("polynomial", 0, {"lr_end": 1e-5, "power": 2.0}),
    ("inverse_sqrt", 4, {}),
    ("inverse_sqrt", 0, {}),
    ("cosine_with_min_lr", 3, {"min_lr": 3e-5}),
    ("cosine_with_min_lr", 3, {"min_lr_rate": 0.2, "num_cycles": 0.75}),
    ("cosine_warmup_with_min_lr", 4, {"min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", 4, {"min_lr": 3e-5, "warmup_lr_rate": 0.05}),
    ("warmup_stable_decay", 3, {"num_decay_steps": 6}),
    ("warmup_stable_decay", 3, {"num_decay_steps": 6, "decay_type": "1-sqrt", "warmup_type": "cosine", "min_lr_ratio": 0.1}),
    ("warmup_stable_decay", 4, {"num_decay_steps": 5, "num_stable_steps": 2, "decay_type": "linear", "warmup_type": "1-sqrt"}),
]


def rates(name: str, warmup: int, kwargs: dict) -> list:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    schedule = get_scheduler(name, optimizer, warmup, STEPS, dict(kwargs))
    out = []
    for _ in range(STEPS):
        out.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return out


def main() -> None:
    rows = [{"name": n, "num_warmup_steps": w, "kwargs": k, "lr": rates(n, w, k)} for n, w, k in CASES]
    out = pathlib.Path(__file__).parent.parent / "crates/sterna-train/tests/fixtures/schedules.json"
    text = json.dumps({"transformers": transformers.__version__, "base_lr": LR, "num_training_steps": STEPS, "cases": rows}, indent=1)
    out.write_text(text + "\n")


if __name__ == "__main__":
    main()
