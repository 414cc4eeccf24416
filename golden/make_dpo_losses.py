#!/usr/bin/env python3
"""Write dpo_losses.json, dpo_batches.json and kto_batches.json of crates/sterna-train/tests/fixtures: losses of preferences and their slopes, by TRL's own
functions and autograd, in double precision.

Usage: make_dpo_losses.py TRL_0_19_1 TRL_1_16_0
Both are folders with TRL of that version, unpacked. Functions are taken out of their files by name, because importing the package needs
accelerate. dpo_losses.json has single losses of pairs, by `dpo_loss` of 0.19.1, which smooths `sigmoid` and has EXO in double precision.
dpo_batches.json has weighted losses of batches, by the trainers of 1.16.0, which have lists of losses; kto_batches.json those of replies
without pairs.
"""
import ast
import collections
import contextlib
import json
import math
import os
import random
import sys
import types

import torch
import torch.nn.functional as F

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "crates", "sterna-train", "tests", "fixtures")
Namespace = types.SimpleNamespace


def functions(path, wanted, names):
    """The functions of a file, methods or not, with `names` as what is global to them."""
    with open(path, encoding="utf-8") as f:
        # What is computed in single precision there is computed in double precision here.
        tree = ast.parse(f.read().replace(".float()", ".double()"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in wanted]
    for node in nodes:
        node.decorator_list = []
    # What annotations name is not there.
    future = ast.ImportFrom("__future__", [ast.alias("annotations")], 0)
    tree = ast.fix_missing_locations(ast.Module([future, *nodes], []))
    exec(compile(tree, path, "exec"), names)
    return [names[name] for name in wanted]


def write(name, cases):
    with open(os.path.join(OUT, name), "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


def losses_of_pairs(folder):
    names = {"torch": torch, "F": F, "FDivergenceType": Namespace(
        ALPHA_DIVERGENCE=Namespace(value="alpha"), JS_DIVERGENCE=Namespace(value="js"))}
    [loss_of] = functions(os.path.join(folder, "trl", "trainer", "dpo_trainer.py"), ["dpo_loss"], names)
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
                    self = Namespace(
                        accelerator=Namespace(device="cpu"), reference_free=False, f_divergence_type="reverse_kl",
                        loss_type=loss_type, beta=beta, label_smoothing=smoothing)
                    losses, _, _ = loss_of(self, chosen, rejected, *(torch.tensor([r], dtype=torch.float64) for r in reference))
                    losses.sum().backward()
                    slopes = [0.0 if x.grad is None else x.grad.item() for x in (chosen, rejected)]
                    cases.append({
                        "loss_type": loss_type, "beta": beta, "label_smoothing": smoothing, "policy": policy,
                        "reference": reference, "loss": losses.item(), "slopes": slopes,
                    })
    return cases


class Batch:
    """Replies of different lengths to prompts of different lengths, the chosen ones first, with log-probabilities of their tokens."""

    def __init__(self, rng, num_pairs, scale):
        self.num_labels = [rng.randint(1, 9) for _ in range(2 * num_pairs)]
        prompts = [rng.randint(1, 3) for _ in range(num_pairs)] * 2
        width = max(map(sum, zip(prompts, self.num_labels)))
        rows = [[0] * prompt + [1] * num + [0] * (width - prompt - num) for prompt, num in zip(prompts, self.num_labels)]
        self.mask = torch.tensor(rows)
        self.input_ids = torch.ones_like(self.mask)
        reference = [[-rng.uniform(0.01, 3) for _ in range(width - 1)] for _ in rows]
        policy = [[min(-0.01, x + rng.uniform(-scale, scale)) for x in row] for row in reference]
        self.policy, self.reference = (torch.tensor(x, dtype=torch.float64) * self.mask[:, 1:] for x in (policy, reference))
        self.policy.requires_grad_(True)

    def case(self, loss, metrics, options):
        loss.backward()
        num_pairs = len(self.num_labels) // 2
        # Sterna's order is a chosen reply and the rejected one in turn.
        turn = lambda values: [values[half * num_pairs + pair] for pair in range(num_pairs) for half in (0, 1)]
        # All tokens of a reply have the same slope.
        slopes = [row[mask.bool()].tolist() for row, mask in zip(self.policy.grad, self.mask[:, 1:])]
        assert all(max(row) - min(row) <= 1e-12 * max(1, abs(row[0])) for row in slopes)
        return {
            **options, "num_labels": turn(self.num_labels), "policy": turn(self.policy.sum(1).tolist()),
            "reference": turn(self.reference.sum(1).tolist()), "loss": loss.item(), "slopes": turn([row[0] for row in slopes]),
            "figures": {name: metrics[name] for name in [
                "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"]},
        }


ACCELERATOR = Namespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)


def model(log_probs):
    """What says this of every token."""
    nothing = torch.zeros_like(log_probs)
    call = lambda **_: Namespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    call.training = True
    return call


def by_dpo_trainer(folder):
    """Batches by DPOTrainer."""
    names = {
        "torch": torch, "F": F, "math": math, "is_peft_model": lambda _: False,
        "disable_gradient_checkpointing": lambda *_: contextlib.nullcontext()}
    [loss_of] = functions(os.path.join(folder, "trl", "trainer", "dpo_trainer.py"), ["_compute_loss"], names)

    def of(batch, options):
        self = Namespace(
            model=model(batch.policy), ref_model=model(batch.reference), args=Namespace(gradient_checkpointing_kwargs=None),
            accelerator=ACCELERATOR, aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=False, use_weighting=False,
            f_divergence_type="reverse_kl", beta=options["beta"], label_smoothing=options["label_smoothing"],
            loss_types=options["loss_type"], loss_weights=options["loss_weights"], _total_train_tokens=0, _tp_size=1,
            _metrics={"train": collections.defaultdict(list)})
        inputs = {"input_ids": batch.input_ids, "attention_mask": torch.ones_like(batch.mask), "completion_mask": batch.mask}
        loss = loss_of(self, self.model, inputs, False)
        return batch.case(loss, {name: value[-1] for name, value in self._metrics["train"].items() if value}, options)

    return of


def by_reference_free_trainer(folder, name, loss):
    """Batches by CPOTrainer, with its loss SimPO, or by ORPOTrainer."""
    names = {"torch": torch, "F": F, "is_torch_xla_available": lambda: False}
    path = os.path.join(folder, "trl", "experimental", name, f"{name}_trainer.py")
    wanted = [loss, "get_batch_loss_metrics"] + (["log1mexp"] if name == "orpo" else [])
    loss_of, metrics_of, *_ = functions(path, wanted, names)

    def of(batch, options):
        means = batch.policy.sum(1) / batch.mask.sum(1)
        chosen, rejected = means.chunk(2)
        # Of replies alone; ORPOTrainer takes prompts into this mean.
        nll = -batch.policy.chunk(2)[0].sum() / batch.mask.chunk(2)[0].sum()
        logits = torch.zeros(1)
        weights = dict(zip(options["loss_type"], options["loss_weights"]))
        self = Namespace(
            concatenated_forward=lambda *_: (chosen, rejected, logits, logits, nll), accelerator=ACCELERATOR, aux_loss_enabled=False,
            alpha=0.0, loss_type="simpo", cpo_alpha=weights.get("sft", 0.0), beta=options["beta"],
            label_smoothing=options["label_smoothing"], simpo_gamma=options.get("simpo_gamma"))
        setattr(self, loss, types.MethodType(loss_of, self))
        found, metrics = metrics_of(self, None, None)
        return batch.case(found, metrics, options)

    return of


def kto_batches(folder):
    """Batches by KTOTrainer. The samples are a good reply and a bad one in turn, of which one is missing."""
    names = {
        "torch": torch, "F": F, "is_peft_model": lambda _: False,
        "disable_gradient_checkpointing": lambda *_: contextlib.nullcontext()}
    [loss_of] = functions(os.path.join(folder, "trl", "trainer", "kto_trainer.py"), ["_compute_loss"], names)
    rng = random.Random(20261202)
    for loss_type, weights in [("kto", [1.0, 1.0]), ("kto", [1.5, 0.5]), ("apo_zero_unpaired", [1.0, 2.0])]:
        for beta in [0.1, 0.5]:
            for num_pairs, scale in [(1, 0.5), (2, 0.0), (4, 2.0)]:
                batch = Batch(rng, num_pairs, scale)
                labels = [rng.random() < 0.5 for _ in batch.num_labels]
                kls = torch.tensor([[rng.uniform(-3, 5) for _ in labels] for _ in range(2)], dtype=torch.float64)
                policy, reference = model(batch.policy), model(batch.reference)
                self = Namespace(
                    model=policy, ref_model=reference, args=Namespace(gradient_checkpointing_kwargs=None), accelerator=ACCELERATOR,
                    aux_loss_enabled=False, precompute_ref_logps=False, calculate_KL=loss_type == "kto", loss_type=loss_type, beta=beta,
                    _compute_kl_logps=lambda asked, _: kls[0 if asked is policy else 1],
                    desirable_weight=weights[0], undesirable_weight=weights[1], _total_train_tokens=0, _tp_size=1,
                    _metrics={"train": collections.defaultdict(list)})
                inputs = {
                    "input_ids": batch.input_ids, "attention_mask": torch.ones_like(batch.mask), "completion_mask": batch.mask,
                    "label": torch.tensor(labels)}
                loss = loss_of(self, policy, inputs, False)
                loss.backward()
                in_turn = lambda values: [x for value, label in zip(values, labels) for x in ([value, 0] if label else [0, value])]
                slopes = [row[mask.bool()][0].item() for row, mask in zip(batch.policy.grad, batch.mask[:, 1:])]
                metrics = {name: value[-1] for name, value in self._metrics["train"].items() if value}
                yield {
                    "loss_type": loss_type, "beta": beta, "desirable_weight": weights[0], "undesirable_weight": weights[1],
                    "num_labels": in_turn(batch.num_labels), "policy": in_turn(batch.policy.sum(1).tolist()),
                    "reference": in_turn(batch.reference.sum(1).tolist()), "loss": loss.item(), "slopes": in_turn(slopes),
                    "figures": {name: metrics[name] for name in [
                        "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "kl"] if name in metrics},
                }


def batches(folder):
    of_dpo = by_dpo_trainer(folder)
    of_simpo = by_reference_free_trainer(folder, "cpo", "cpo_loss")
    of_orpo = by_reference_free_trainer(folder, "orpo", "odds_ratio_loss")
    rng = random.Random(20261201)
    for loss_type, loss_weights, smoothing in [
        (["sigmoid", "sft"], [1.0, 0.1], 0.0), (["sigmoid_norm"], [1.0], 0.0), (["ipo"], [1.0], 0.0), (["ipo", "sft"], [0.3, 2.0], 0.0),
        (["hinge", "robust", "sft"], [0.8, 0.2, 1.0], 0.1), (["nca_pair", "sppo_hard"], [1.0, 1.0], 0.0),
        (["apo_zero", "apo_down", "sft", "sigmoid"], [0.5, 0.25, 0.0, 3.0], 0.0),
    ]:
        for beta in [0.1, 0.5]:
            for num_pairs, scale in [(1, 0.5), (3, 0.0), (4, 2.0)]:
                options = {"loss_type": loss_type, "loss_weights": loss_weights, "beta": beta, "label_smoothing": smoothing}
                yield of_dpo(Batch(rng, num_pairs, scale), options)
    for beta in [0.1, 2.5]:
        for num_pairs, scale in [(1, 0.5), (3, 0.0), (4, 2.0)]:
            for loss_type, loss_weights, smoothing, gamma in [
                (["simpo"], [1.0], 0.0, 0.5), (["simpo"], [1.0], 0.2, 1.5), (["simpo", "sft"], [1.0, 0.7], 0.0, 0.0),
            ]:
                options = {"loss_type": loss_type, "loss_weights": loss_weights, "beta": beta, "label_smoothing": smoothing}
                yield of_simpo(Batch(rng, num_pairs, scale), {**options, "simpo_gamma": gamma})
            options = {"loss_type": ["orpo"], "loss_weights": [1.0], "beta": beta, "label_smoothing": 0.0}
            yield of_orpo(Batch(rng, num_pairs, scale), options)


def main():
    write("dpo_losses.json", losses_of_pairs(sys.argv[1]))
    write("dpo_batches.json", list(batches(sys.argv[2])))
    write("kto_batches.json", list(kto_batches(sys.argv[2])))


if __name__ == "__main__":
    main()
