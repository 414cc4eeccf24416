"""One training of what a user would pick instead of Sterna, on the same card: transformers with gradient checkpointing.

Run by `sterna-suite`. A shape of a Hugging Face config, random weights, random tokens, one document of the exact length, every
token a label, causal attention. Prints nothing that is read: the result is the JSON file of `--result`, written also when memory is
out, which is a result. With several lengths it searches the longest that fits, by packs of documents of 4,096 tokens; started again
with the file of a search that was ended from outside, it goes on from there.

Systems, each on top of the one before it unless said otherwise:
  hf                  transformers, sdpa, gradient checkpointing of every layer
  liger               liger-kernel: rotary, RMSNorm, SwiGLU, and the loss fused with the head, which makes no logits
  liger-offload       as liger, the inputs of layers kept on the host by transformers itself (gradient_checkpointing_enable(offload=True))
  deepspeed           DeepSpeed's tiled MLP (TiledMLP) and tiled logits and loss (TiledFusedLogitsLoss); no liger
  deepspeed-offload   as deepspeed, the inputs of layers kept on the host (torch.autograd.graph.save_on_cpu, pinned)
"""

import argparse
import contextlib
import importlib.metadata
import inspect
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


SYSTEMS = ["hf", "liger", "liger-offload", "deepspeed", "deepspeed-offload"]

# Tokens of a document of a pack, in a search.
DOCUMENT = 4096


class Missing(Exception):
    """A package or a device that a system needs is not there."""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", required=True, choices=SYSTEMS)
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
    """Tiles of 256 MB of fp32 logits; the mean over all labels.

    `TiledFusedLogitsLoss` runs backward inside its forward, and what is done to its result reaches the gradient of `hidden` alone. So
    the mean is taken within a tile, where it reaches the head's too.
    """
    import torch
    from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledFusedLogitsLoss

    tokens = hidden.shape[1]

    def of_tile(self, x, y):
        logits = self.lm_head(x).float()
        total = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1), reduction="sum")
        # The last token predicts nothing.
        return total / (tokens - 1)

    tiles = max(1, math.ceil(tokens * model.config.vocab_size * 4 / 2**28))
    weights = [model.lm_head.weight]
    return TiledFusedLogitsLoss.apply(of_tile, model, hidden, labels, None, tiles, weights, "sum")


def cut_attention_into_documents():
    """Cuts a causal sequence into documents of `DOCUMENT` tokens, each of which attends to itself, as in a pack.

    Views all the way, so that memory is that of the whole sequence, while the time no longer grows with its square. A length that is no
    number of whole documents is left as it is.
    """
    import torch

    whole = torch.nn.functional.scaled_dot_product_attention

    def cut(x):
        # [1, heads, tokens, size] into [documents, heads, tokens of one, size]; keys have fewer heads than queries.
        return x[0].unflatten(1, (-1, DOCUMENT)).transpose(0, 1)

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **others):
        if attn_mask is not None or not is_causal or query.shape[0] != 1 or query.shape[2] % DOCUMENT:
            return whole(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, **others)
        output = whole(cut(query), cut(key), cut(value), dropout_p=dropout_p, is_causal=True, **others)
        return output.transpose(0, 1).flatten(1, 2).unsqueeze(0)

    torch.nn.functional.scaled_dot_product_attention = attend


class Baseline:
    def __init__(self, args):
        import torch

        self.torch, self.args = torch, args
        if args.device == "cuda" and not torch.cuda.is_available():
            raise Missing("torch sees no GPU")
        self.is_deepspeed = args.system.startswith("deepspeed")
        try:
            from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
        except ImportError as error:
            raise Missing(f"transformers cannot be imported: {error}") from error
        config = AutoConfig.from_pretrained(os.path.dirname(os.path.abspath(args.config)))
        config.num_hidden_layers = args.layers
        config.use_cache = False
        longest = max(args.lengths)
        config.max_position_embeddings = max(config.max_position_embeddings, longest)
        if args.system.startswith("liger"):
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
        checkpointing = {}
        if args.system == "liger-offload":
            if "offload" not in inspect.signature(PreTrainedModel.gradient_checkpointing_enable).parameters:
                raise Missing(f"gradient_checkpointing_enable of transformers {versions()['transformers']} has no `offload`")
            checkpointing["offload"] = True
        torch.manual_seed(0)
        # Of the parameters only: the frequencies of rotary stay fp32.
        with torch.device(args.device):
            self.model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        self.model.train()
        # Re-entrant checkpoints keep a layer's input as a saved tensor, which `save_on_cpu` can move.
        reentrant = args.system == "deepspeed-offload"
        self.model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": reentrant}, **checkpointing)
        if reentrant:
            self.model.enable_input_require_grads()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def attention_kernel(self, length):
        """Which of its kernels libtorch's sdpa takes for this shape: what a ratio to ours is a ratio of depends on it."""
        torch, config = self.torch, self.model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        query = torch.empty(1, config.num_attention_heads, min(length, 131_072), head_dim, dtype=torch.bfloat16, device=self.args.device)
        choice = torch._fused_sdp_choice(query, query, query, is_causal=True)
        return "sdpa: " + torch.nn.attention.SDPBackend(choice).name.lower()

    def step(self, length):
        """Loss and seconds of forward, backward, clipping and optimizer."""
        torch, args = self.torch, self.args
        ids = torch.randint(0, self.model.config.vocab_size, (1, length), device=args.device)
        # As collators give it. Without it, some versions of transformers make a mask of tokens by tokens, for which sdpa has no flash.
        mask = torch.ones_like(ids)
        self.wait()
        started = time.perf_counter()
        if self.is_deepspeed:
            offload = (
                torch.autograd.graph.save_on_cpu(pin_memory=args.device == "cuda")
                if args.system == "deepspeed-offload" else contextlib.nullcontext()
            )
            with offload:
                hidden = self.model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            labels = torch.roll(ids, -1, 1)
            labels[:, -1] = -100
            loss = tiled_loss(self.model, hidden, labels)
        else:
            loss = self.model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
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
            # Pinned blocks of one length do not fit another.
            self.torch._C._host_emptyCache()


def is_out_of_memory(error):
    text = str(error)
    return type(error).__name__ == "OutOfMemoryError" or "out of memory" in text or "can't allocate memory" in text


def measure(baseline, args, result):
    """Warm-up and measured steps at one length."""
    length = args.lengths[0]
    result["attention_kernel"] = baseline.attention_kernel(length)
    losses, seconds = [], []
    for i in range(args.warmup + args.steps):
        loss, elapsed = baseline.step(length)
        losses.append(loss)
        seconds.append(elapsed)
        result.update(baseline.peaks(), losses=losses, step_seconds=seconds[args.warmup:], warmup_seconds=seconds[:args.warmup])
        write(args.result, result)
    result["status"] = "done"


def search(baseline, args, result):
    """The longest length that fits: up the ladder, then between the last that did and the first that did not."""
    cut_attention_into_documents()
    tried = result["tried"]
    known = {row["length"]: row["fits"] for row in tried}

    def fits(length):
        if length in known:
            return known[length]
        # Whoever ends this process for lack of the host's memory is to know at which length.
        result["trying"] = length
        write(args.result, result)
        try:
            loss, elapsed = baseline.step(length)
            tried.append({"length": length, "fits": True, "loss": loss, "seconds": elapsed, **baseline.peaks()})
            fitted = True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            tried.append({"length": length, "fits": False})
            fitted = False
        del result["trying"]
        baseline.free()
        write(args.result, result)
        return fitted

    # The optimizer's moments exist from its first step on.
    baseline.step(min(args.lengths[0], 4096))
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
    is_decided = best == args.lengths[-1] or (worst is not None and worst - best <= unit)
    status = "done" if is_decided else "as far as the time went"
    result.update(longest=best, shortest_that_does_not_fit=worst, status=status)


def tried_before(path):
    """What an earlier process of the same search tried before it was ended from outside."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)["tried"]
    except FileNotFoundError:
        return []


def write(path, result):
    new = path + ".new"
    with open(new, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    os.replace(new, path)


def main():
    args = arguments()
    result = {"status": "running", "optimizer": OPTIMIZER, "versions": versions()}
    is_search = len(args.lengths) > 1
    if is_search:
        result["tried"] = tried_before(args.result)
    write(args.result, result)
    try:
        baseline = Baseline(args)
        (search if is_search else measure)(baseline, args, result)
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
