"""One training of what a user would pick instead of Sterna, on the same card: transformers with gradient checkpointing.

Run by `sterna-suite`. A shape of a Hugging Face config, random weights, random tokens, one document of the exact length, every
token a label, causal attention. Prints nothing that is read: the result is the JSON file of `--result`, written also when memory is
out, which is a result.

Systems, each on top of the one before it unless said otherwise:
  hf                  transformers, sdpa, gradient checkpointing of every layer
  liger               liger-kernel: rotary, RMSNorm, SwiGLU, and the loss fused with the head, which makes no logits
  deepspeed           DeepSpeed's tiled MLP (TiledMLP) and tiled logits and loss (TiledFusedLogitsLoss); no liger
  deepspeed-offload   as deepspeed, the inputs of layers kept on the host (torch.autograd.graph.save_on_cpu, pinned)
"""

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import resource
import sys
import time
import traceback

STARTED = time.monotonic()

OPTIMIZER = (
    "torch.optim.AdamW(fused=True) on bf16 weights: 2 bytes a parameter of weights, 2 of gradients, 4 of bf16 moments, no fp32 master"
)


class Missing(Exception):
    """A package or a device that a system needs is not there."""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", required=True, choices=["hf", "liger", "deepspeed", "deepspeed-offload"])
    parser.add_argument("--config", required=True, help="config.json of the shape")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--device", required=True, choices=["cpu", "cuda"])
    parser.add_argument("--result", required=True, help="the JSON file to write")
    parser.add_argument("--lengths", type=int, nargs="+", required=True,
                        help="tokens; with several, one step each until memory is out, then between the two")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seconds", type=float, required=True, help="no step of a search is begun after so many")
    return parser.parse_args()


def versions():
    found = {}
    for name in ["torch", "transformers", "liger-kernel", "deepspeed", "triton"]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def host_peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tiled_mlp(hidden_size):
    """As the docstring of `TiledMLP` shows it, with its number of tiles: the sequence over the hidden size."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledMLP
    from transformers.models.llama import modeling_llama

    def tile(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    def forward(self, x):
        tiles = max(1, math.ceil(x.shape[1] / hidden_size))
        weights = [self.down_proj.weight, self.gate_proj.weight, self.up_proj.weight]
        return TiledMLP.apply(tile, self, x, tiles, weights)

    modeling_llama.LlamaMLP.forward = forward


def tiled_loss(model, hidden, labels):
    """Tiles of 256 MB of fp32 logits; the mean over all labels is taken at the end."""
    import torch
    from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledFusedLogitsLoss

    def of_tile(self, x, y):
        logits = self.lm_head(x).float()
        return torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1), reduction="sum")

    tokens = hidden.shape[1]
    tiles = max(1, math.ceil(tokens * model.config.vocab_size * 4 / 2**28))
    weights = [model.lm_head.weight]
    total = TiledFusedLogitsLoss.apply(of_tile, model, hidden, labels, None, tiles, weights, "sum")
    # The last token predicts nothing.
    return total / (tokens - 1)


class Peer:
    def __init__(self, args):
        import torch

        self.torch, self.args = torch, args
        if args.device == "cuda" and not torch.cuda.is_available():
            raise Missing("torch sees no GPU")
        self.is_deepspeed = args.system.startswith("deepspeed")
        try:
            from transformers import AutoConfig, AutoModelForCausalLM
        except ImportError as error:
            raise Missing(f"transformers cannot be imported: {error}") from error
        config = AutoConfig.from_pretrained(os.path.dirname(os.path.abspath(args.config)))
        config.num_hidden_layers = args.layers
        config.use_cache = False
        longest = max(args.lengths)
        config.max_position_embeddings = max(config.max_position_embeddings, longest)
        if args.system == "liger":
            if args.device == "cpu":
                raise Missing("liger-kernel's kernels are Triton's and need a GPU")
            try:
                from liger_kernel.transformers import apply_liger_kernel_to_llama
            except ImportError as error:
                raise Missing(f"liger-kernel cannot be imported: {error}") from error
            apply_liger_kernel_to_llama(
                rope=True, swiglu=True, rms_norm=True, cross_entropy=False, fused_linear_cross_entropy=True)
        if self.is_deepspeed:
            try:
                tiled_mlp(config.hidden_size)
            except ImportError as error:
                raise Missing(f"deepspeed cannot be imported: {error}") from error
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(args.device):
            self.model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        self.model.to(torch.bfloat16)
        self.model.train()
        # Re-entrant checkpoints keep a layer's input as a saved tensor, which `save_on_cpu` can move.
        reentrant = args.system == "deepspeed-offload"
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        if reentrant:
            self.model.enable_input_require_grads()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def step(self, length):
        """Loss and seconds of forward, backward, clipping and optimizer."""
        torch, args = self.torch, self.args
        ids = torch.randint(0, self.model.config.vocab_size, (1, length), device=args.device)
        self.wait()
        started = time.perf_counter()
        if self.is_deepspeed:
            offload = (
                torch.autograd.graph.save_on_cpu(pin_memory=args.device == "cuda")
                if args.system == "deepspeed-offload" else contextlib.nullcontext()
            )
            with offload:
                hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
            labels = torch.roll(ids, -1, 1)
            labels[:, -1] = -100
            loss = tiled_loss(self.model, hidden, labels)
        else:
            loss = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.wait()
        return loss.item(), time.perf_counter() - started

    def wait(self):
        if self.args.device == "cuda":
            self.torch.cuda.synchronize()

    def peaks(self):
        found = {"host_peak_bytes": host_peak()}
        if self.args.device == "cuda":
            found["device_peak_bytes"] = self.torch.cuda.max_memory_reserved()
            found["device_allocated_peak_bytes"] = self.torch.cuda.max_memory_allocated()
        return found

    def free(self):
        self.optimizer.zero_grad(set_to_none=True)
        if self.args.device == "cuda":
            self.torch.cuda.empty_cache()


def is_out_of_memory(error):
    text = str(error)
    return type(error).__name__ == "OutOfMemoryError" or "out of memory" in text or "can't allocate memory" in text


def measure(peer, args, result):
    """Warm-up and measured steps at one length."""
    length = args.lengths[0]
    losses, seconds = [], []
    for i in range(args.warmup + args.steps):
        loss, elapsed = peer.step(length)
        losses.append(loss)
        seconds.append(elapsed)
        result.update(peer.peaks(), losses=losses, step_seconds=seconds[args.warmup:], warmup_seconds=seconds[:args.warmup])
        write(args.result, result)
    result["status"] = "done"


def search(peer, args, result):
    """The longest length that fits: up the ladder, then between the last that did and the first that did not."""
    tried = result["tried"] = []

    def fits(length):
        try:
            loss, elapsed = peer.step(length)
            tried.append({"length": length, "fits": True, "loss": loss, "seconds": elapsed, **peer.peaks()})
            fitted = True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            tried.append({"length": length, "fits": False})
            fitted = False
        peer.free()
        write(args.result, result)
        return fitted

    # The optimizer's moments exist from its first step on.
    peer.step(min(args.lengths[0], 4096))
    # The unit of the search, the least that is told apart.
    unit = args.lengths[0]
    best, worst = 0, None
    for length in args.lengths:
        if time.monotonic() - STARTED > args.seconds:
            break
        if fits(length):
            best = length
        else:
            worst = length
            break
    while worst is not None and worst - best > unit and time.monotonic() - STARTED < args.seconds:
        middle = (best + worst) // (2 * unit) * unit
        if fits(middle):
            best = middle
        else:
            worst = middle
    result.update(longest=best, shortest_that_does_not_fit=worst, status="done")


def write(path, result):
    new = path + ".new"
    with open(new, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    os.replace(new, path)


def main():
    args = arguments()
    result = {"status": "running", "optimizer": OPTIMIZER, "versions": versions()}
    write(args.result, result)
    try:
        peer = Peer(args)
        (measure if len(args.lengths) == 1 else search)(peer, args, result)
    except Missing as error:
        result["status"] = f"not run: {error}"
    except Exception as error:
        if is_out_of_memory(error):
            result["status"] = "out of memory"
            result["error"] = str(error).splitlines()[0]
        else:
            traceback.print_exc()
            last = str(error).strip().splitlines()
            result["status"] = f"failed: {type(error).__name__}: {last[0] if last else ''}"
    write(args.result, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
