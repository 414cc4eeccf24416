"""A step of a hybrid of gated delta nets and attention, by transformers' own PyTorch code and by Sterna, on the same weights and tokens.

    python scripts/bench_hybrid.py STERNA [--tokens 4096,16384] [--layers 4] [--threads 2]

The model has the widths of a Qwen 3.5 of 1.5 billion parameters (three delta nets to one attention) and random weights, of fewer layers
so that 24 GB hold what transformers keeps. Both train in bf16 with AdamW on one document; what is counted is the second of two steps,
and the memory that the process ever had resident. transformers computes with gradient checkpointing and sdpa, as its users do; without
the packages for GPUs, its delta nets are its own functions of PyTorch. Needs transformers 5.24 and torch 2.11, a CPU, and nothing else.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

SHAPE = dict(
    hidden_size=2048,
    intermediate_size=6144,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=256,
    linear_num_key_heads=16,
    linear_num_value_heads=16,
    linear_key_head_dim=128,
    linear_value_head_dim=128,
    vocab_size=32768,
    tie_word_embeddings=True,
    max_position_embeddings=1 << 18,
)
LR = 1e-5


def write_model(folder, num_layers):
    """Weights and config, and a tokenizer that nobody asks: rows are tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.for_model("qwen3_5_text", num_hidden_layers=num_layers, **SHAPE)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    vocabulary = {f"t{id_}": id_ for id_ in range(SHAPE["vocab_size"])}
    model = dict(type="WordLevel", vocab=vocabulary, unk_token="t0")
    (folder / "tokenizer.json").write_text(json.dumps(dict(version="1.0", added_tokens=[], model=model)))
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    config = dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="t1", pad_token="t2", chat_template=template)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def document(num_tokens):
    draw = random.Random(num_tokens)
    return [draw.randrange(3, SHAPE["vocab_size"]) for _ in range(num_tokens)]


def steps_of_transformers(folder, num_tokens):
    """In a process of its own: seconds and losses of two steps, and what was resident at the most."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    ids = torch.tensor([document(num_tokens)])
    seconds, losses = [], []
    for _ in range(2):
        started = time.perf_counter()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(dict(seconds=seconds, losses=losses, peak=peak)))


def steps_of_sterna(sterna, folder, num_tokens, work):
    ids = document(num_tokens)
    # The first token has no label: nothing predicts it.
    rows = work / f"rows-{num_tokens}.jsonl"
    rows.write_text(json.dumps(dict(input_ids=ids, labels=[-100, *ids[1:]])) + "\n")
    metrics = work / f"metrics-{num_tokens}.jsonl"
    recipe = dict(
        type="sft",
        model=dict(name_or_path=str(folder), dtype="bf16"),
        data=dict(sources=[str(rows)], max_length=num_tokens, cache_dir=str(work / "cache")),
        optimizer=dict(type="cpu_adam", learning_rate=LR, weight_decay=0.0),
        scheduler=dict(name="constant", warmup_ratio=0),
        deepspeed=dict(gradient_clipping=0),
        train_iters=2,
        min_iterations=2,
        train_log_metrics_path=str(metrics),
    )
    path = work / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    process = subprocess.Popen([sterna, "train", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, said
    found = [json.loads(line) for line in metrics.read_text().splitlines()]
    return dict(
        seconds=[row["iter_time"] for row in found],
        losses=[row["loss"] for row in found],
        peak=max(row["peak_memory_bytes"] for row in found),
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("sterna")
    parser.add_argument("--tokens", default="4096,16384")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--transformers", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.transformers:
        steps_of_transformers(args.transformers[0], int(args.transformers[1]))
        return
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    lengths = [int(length) for length in args.tokens.split(",")]
    found = {}
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        folder = work / "model"
        folder.mkdir()
        write_model(folder, args.layers)
        for length in lengths:
            command = [sys.executable, __file__, args.sterna, "--transformers", str(folder), str(length)]
            theirs = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])
            ours = steps_of_sterna(args.sterna, folder, length, work)
            found[length] = theirs, ours
            difference = abs(ours["losses"][0] / theirs["losses"][0] - 1)
            print(
                f"{length} tokens: transformers {theirs['seconds'][1]:.1f} s, {theirs['peak'] / 1e9:.2f} GB;",
                f"Sterna {ours['seconds'][1]:.1f} s, {ours['peak'] / 1e9:.2f} GB;",
                f"{theirs['seconds'][1] / ours['seconds'][1]:.1f} times as fast; first losses {difference:.1e} apart",
                flush=True,
            )
    short, long = lengths[0], lengths[-1]
    if long > short:
        growth = [(found[long][i]["peak"] - found[short][i]["peak"]) / (long - short) for i in range(2)]
        print(f"each further token: transformers {growth[0] / 1e3:.1f} KB, Sterna {growth[1] / 1e3:.1f} KB, {growth[1] / growth[0]:.2f} of it")


if __name__ == "__main__":
    main()
