#!/usr/bin/env python3
"""Write crates/sterna-train/tests/fixtures/dpo_losses.json: losses of pairs and their slopes, by TRL's own function and autograd.

Usage: make_dpo_losses.py TRL_FOLDER
TRL_FOLDER is trl 0.19.1, unpacked. `dpo_loss` is taken out of its file by name, because importing the package needs accelerate.
"""
import ast
import json
import os
import random
import sys
import types

import torch
import torch.nn.functional as F

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "crates", "sterna-train", "tests", "fixtures", "dpo_losses.json")


def dpo_loss(folder):
    with open(os.path.join(folder, "trl", "trainer", "dpo_trainer.py"), encoding="utf-8") as f:
        tree = ast.parse(f.read())
    names = {"torch": torch, "F": F, "FDivergenceType": types.SimpleNamespace(
        ALPHA_DIVERGENCE=types.SimpleNamespace(value="alpha"), JS_DIVERGENCE=types.SimpleNamespace(value="js"))}
    [node] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "dpo_loss"]
    exec(compile(ast.Module([node], []), "dpo_trainer.py", "exec"), names)
    return names["dpo_loss"]


def main():
    loss_of = dpo_loss(sys.argv[1])
    rng = random.Random(20261130)
    cases = []
    for loss_type, smoothings in [
        ("sigmoid", [0.0, 0.1]), ("hinge", [0.0]), ("ipo", [0.0]), ("robust", [0.1, 0.3]), ("exo_pair", [0.0, 0.2]),
        ("nca_pair", [0.0]), ("sppo_hard", [0.0]), ("apo_zero", [0.0]), ("apo_down", [0.0]),
    ]:
        for smoothing in smoothings:
            for beta in [0.1, 0.5]:
                for scale in [0.0, 1.0, 20.0, 2000.0]:
                    reference = [-rng.uniform(0, 100), -rng.uniform(0, 100)]
                    policy = [value + rng.uniform(-scale, scale) for value in reference]
                    chosen, rejected = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in policy)
                    self = types.SimpleNamespace(
                        accelerator=types.SimpleNamespace(device="cpu"), reference_free=False, f_divergence_type="reverse_kl",
                        loss_type=loss_type, beta=beta, label_smoothing=smoothing)
                    losses, _, _ = loss_of(self, chosen, rejected, *(torch.tensor([r], dtype=torch.float64) for r in reference))
                    losses.sum().backward()
                    slopes = [0.0 if x.grad is None else x.grad.item() for x in (chosen, rejected)]
                    cases.append({
                        "loss_type": loss_type, "beta": beta, "label_smoothing": smoothing, "policy": policy,
                        "reference": reference, "loss": losses.item(), "slopes": slopes,
                    })
    with open(OUT, "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
