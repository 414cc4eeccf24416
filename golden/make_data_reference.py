#!/usr/bin/env python3
"""Write crates/sterna-data/tests/fixtures/: what the reference and the libraries under it compute from small random data.

Usage: make_data_reference.py ARCTIC_TRAINING_CHECKOUT TOKENIZER_FOLDER
ARCTIC_TRAINING_CHECKOUT is snowflakedb/ArcticTraining at b28638e; TOKENIZER_FOLDER is SmolLM2-135M-Instruct.
Needs datasets 5.0, transformers 4.57, torch 2.11. Functions of the reference are taken out of its files by name, because
importing its package needs deepspeed.
"""
import ast
import itertools
import json
import os
import random
import re
import shutil
import sys
from typing import Any, Dict, List, Optional, Tuple, Union

import datasets
import numpy as np
import pyarrow.parquet
import torch
from datasets import Dataset, DatasetDict, ReadInstruction, concatenate_datasets
from torch.utils.data import DistributedSampler
from transformers import AutoTokenizer, BatchEncoding

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "crates", "sterna-data", "tests", "fixtures")
SEED = 20261121


def reference(checkout, file, names):
    """The named functions and methods of a file of the reference."""
    with open(os.path.join(checkout, "arctic_training", "data", file), encoding="utf-8") as f:
        tree = ast.parse(f.read())
    scope = {
        "random": random, "re": re, "np": np, "torch": torch, "concatenate_datasets": concatenate_datasets,
        "IGNORE_INDEX": -100, "BatchEncoding": BatchEncoding, "DatasetType": Dataset, "Any": Any, "Dict": Dict,
        "PreTrainedTokenizerBase": object, "TokenizerConfig": object,
        "List": List, "Optional": Optional, "Tuple": Tuple, "Union": Union,
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.decorator_list = []
            exec(compile(ast.Module([node], []), file, "exec"), scope)
    return [scope[name] for name in names]


def dump(name, value):
    with open(os.path.join(OUT, name), "w", encoding="utf-8") as f:
        json.dump(value, f, separators=(",", ":"), ensure_ascii=False)
        f.write("\n")


def packs(checkout):
    pack_sft_batch, pack_dataset, repeat_dataset = reference(
        checkout, "sft_factory.py", ["pack_sft_batch", "pack_dataset", "repeat_dataset"]
    )
    pack_dataset.__globals__.update(pack_sft_batch=pack_sft_batch, repeat_dataset=repeat_dataset)
    rng = random.Random(SEED)
    cases = []
    options = [
        # samples, longest, max_length, num_proc, always, drop_last, fuse, repeat
        (1, 5, 10, 16, False, False, 0.0, False),
        (7, 9, 10, 16, False, False, 0.0, False),
        (50, 30, 100, 1, False, False, 0.0, False),
        (50, 30, 100, 4, False, False, 0.0, False),
        (50, 30, 100, 4, True, False, 0.0, False),
        (50, 30, 100, 3, False, True, 0.0, False),
        (50, 30, 100, 3, True, True, 0.3, False),
        (200, 30, 100, 1, False, False, 0.5, False),
        (20, 30, 5000, 2, False, False, 0.0, True),
        (20, 30, 100, 2, False, False, 0.0, True),
        (2500, 8, 100, 1, False, False, 0.1, False),
        (20, 50, 30, 1, False, False, 0.0, False),
    ]
    for n, longest, max_length, num_proc, always, drop_last, fuse, repeat in options:
        lengths = [rng.randint(1, longest) for _ in range(n)]
        rows = {
            # The token is the sample's number, so that the packs can be read off the tokens.
            "input_ids": [[i] * length for i, length in enumerate(lengths)],
            "labels": [[i] * length for i, length in enumerate(lengths)],
            "attention_mask": [[1] * length for length in lengths],
        }
        keys = dict(max_length=max_length, num_proc=num_proc, always_max_length=always, drop_last=drop_last,
                    fuse_positions_prob=fuse, repeat_to_pack_max_length=repeat, seed=42)
        config = type("Config", (), dict(keys, pack_samples=True))
        factory = type("Factory", (), {"config": config})()
        packed = pack_dataset(factory, Dataset.from_dict(rows))
        out = []
        for ids, seqlens, positions in zip(packed["input_ids"], packed["packed_sample_seqlens"], packed["position_ids"]):
            members, at = [], 0
            for seqlen in seqlens:
                members.append(ids[at])
                at += seqlen
            unfused = [p for seqlen in seqlens for p in range(seqlen)]
            assert positions in (unfused, list(range(len(ids))))
            out.append({"members": members, "fused": positions == list(range(len(ids))) and len(members) > 1})
        cases.append({"lengths": lengths, "keys": keys, "packs": out})
    dump("packs.json", cases)


def causal(checkout):
    """The reference's functions that pack and tokenize texts."""
    pack_batch, pack, tokenize_text = reference(
        checkout, "causal_factory.py", ["slice_and_pack_causal_batch", "slice_and_pack_dataset", "tokenize_text"]
    )
    pack.__globals__.update(slice_and_pack_causal_batch=pack_batch, itertools=itertools)
    # Worker processes get the function's globals, and dill cannot pickle all of these.
    for name in ["np", "torch", "BatchEncoding"]:
        del pack.__globals__[name]
    return pack, tokenize_text


def slices(checkout):
    """Rows of texts, read off tokens that say of which text and where in it they are."""
    pack, _ = causal(checkout)
    rng = random.Random(SEED + 2)
    cases = []
    for texts, longest, max_length, num_proc in [
        (1, 40, 7, 1), (3, 40, 10, 16), (40, 9, 10, 1), (40, 25, 10, 1), (40, 25, 10, 4), (25, 60, 8, 3), (300, 5, 64, 1),
        (300, 5, 64, 2), (30, 3, 1, 1), (12, 30, 30, 1),
    ]:
        lengths = [rng.randint(0, longest) for _ in range(texts)]
        lengths[0] = longest
        rows = {"input_ids": [[i * 1000 + at for at in range(length)] for i, length in enumerate(lengths)]}
        # A column whose first list is empty has no type.
        features = datasets.Features({"input_ids": datasets.Sequence(datasets.Value("int64"))})
        keys = dict(max_length=max_length, num_proc=num_proc, seed=42)
        factory = type("Factory", (), {"config": type("Config", (), keys)})()
        packed = pack(factory, Dataset.from_dict(rows, features=features))
        out = []
        for ids, seqlens, positions in zip(packed["input_ids"], packed["packed_sample_seqlens"], packed["position_ids"]):
            assert positions == [p for seqlen in seqlens for p in range(seqlen)]
            row, at = [], 0
            for seqlen in seqlens:
                if seqlen > 0:
                    row.append([ids[at] // 1000, ids[at] % 1000, seqlen])
                at += seqlen
            out.append(row)
        cases.append({"lengths": lengths, "keys": keys, "rows": out})
    dump("slices.json", cases)


CONTENTS = [
    "yes", "no", "say yes", "Sure.", "", " leading", "trailing \n", "\n\nboth \n", "héllo wörld", "日本語のテキスト", "👍🏽 emoji 👩‍👩‍👧",
    "<|im_end|>", "text <|im_start|>assistant\nfake<|im_end|>\n tail", "user", "assistant", "\u00a0nbsp\u00a0", "a", "system",
    "<think>\n\n</think>\n\nAnswer", "<think>hm</think>Answer", "1234567890", "tab\tand\r\nnewline", "code:\n```\nx = 1\n```\n",
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face", "{{ content }}", "  ", "é", "e\u0301",
]


def texts(checkout, tokenizer):
    """From texts to rows, all the way that the reference's causal factory takes."""
    pack, tokenize_text = causal(checkout)
    rng = random.Random(SEED + 3)
    rows = [" ".join(rng.choice(CONTENTS) for _ in range(rng.randint(0, 6))) for _ in range(40)]
    config = type("Config", (), {"tokenize_kwargs": {}})()
    tokens = [tokenize_text(None, text, tokenizer, config) for text in rows]
    keys = dict(max_length=48, num_proc=2, seed=42)
    factory = type("Factory", (), {"config": type("Config", (), keys)})()
    packed = pack(factory, Dataset.from_list(tokens).shuffle(seed=keys["seed"]))
    columns = ["input_ids", "packed_sample_seqlens"]
    dump("texts.json", {"texts": rows, "keys": keys, "rows": [[row[column] for column in columns] for row in packed]})


def masks(checkout, tokenizer):
    indices, masked = reference(checkout, "sft_factory.py", ["get_assistant_start_end_indices", "get_masked_labels"])
    rng = random.Random(SEED)
    cases = []
    for i in range(120):
        messages = []
        if rng.random() < 0.3:
            messages.append({"role": "system", "content": rng.choice(CONTENTS)})
        for _ in range(rng.randint(1, 3)):
            messages.append({"role": "user", "content": rng.choice(CONTENTS)})
            messages.append({"role": "assistant", "content": rng.choice(CONTENTS)})
        ignore_empty_think = i % 2 == 1
        text = tokenizer.apply_chat_template(conversation=messages, tokenize=False)
        ids = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        labels = masked(ids, indices(messages, text, ignore_empty_think))
        cases.append({
            "messages": [[m["role"], m["content"]] for m in messages],
            "ignore_empty_think": ignore_empty_think,
            "ids": ids["input_ids"],
            "is_label": "".join("0" if label == -100 else "1" for label in labels),
        })
    dump("reference_masks.json", cases)


GENERATION_TEMPLATE = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' }}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '
' }}{% endfor %}"""


def generation_masks(tokenizer):
    """What transformers marks as the assistant's, given a template that says so itself."""
    rng = random.Random(SEED + 1)
    cases = []
    for _ in range(120):
        messages = []
        if rng.random() < 0.3:
            messages.append({"role": "system", "content": rng.choice(CONTENTS)})
        for _ in range(rng.randint(1, 3)):
            messages.append({"role": "user", "content": rng.choice(CONTENTS)})
            messages.append({"role": "assistant", "content": rng.choice(CONTENTS)})
        if rng.random() < 0.2:
            messages.append({"role": "user", "content": rng.choice(CONTENTS)})
        out = tokenizer.apply_chat_template(
            messages, chat_template=GENERATION_TEMPLATE, return_assistant_tokens_mask=True, return_dict=True
        )
        assert out["input_ids"] == tokenizer.apply_chat_template(messages)
        cases.append({
            "messages": [[m["role"], m["content"]] for m in messages],
            "ids": out["input_ids"],
            "is_label": "".join(str(bit) for bit in out["assistant_masks"]),
        })
    dump("generation_masks.json", cases)


def messages(checkout):
    names = ["_extract_messages_from_paths", "_extract_content_from_path", "_get_default_content"]
    functions = reference(checkout, "hf_instruct_source.py", names)
    rng = random.Random(SEED)
    cases = []
    chat = {"user": "messages.role.user", "assistant": "messages.role.assistant"}
    mappings = [
        (chat, None),
        ({"system": "messages.role.system", **chat}, None),
        ({"assistant": "messages.role.assistant", "user": "messages.role.user"}, None),
        (chat, "text"),
        ({"system": "intro", "user": "question", "assistant": "answer"}, None),
        ({"user": "question", "assistant": "messages.role.assistant"}, None),
    ]
    for i in range(60):
        mapping, content_key = mappings[i % len(mappings)]
        items = []
        for _ in range(rng.randint(0, 5)):
            item = {"role": rng.choice(["user", "assistant", "user", "assistant", "system", "tool"])}
            for key in rng.sample(["content", "text", "value"], rng.randint(1, 3)):
                item[key] = rng.choice(["a", "b c", "", None, 7, True, "long text"])
            items.append(item)
        row = {
            "messages": items,
            "intro": rng.choice([None, "", "Be kind."]),
            "question": rng.choice(["Why?", "", 42, None]),
            "answer": rng.choice(["Because.", "", 1.5]),
        }
        config = type("Config", (), {"role_mapping": mapping, "content_key": content_key})
        source = type("Source", (), {"config": config, **dict(zip(names, functions))})()
        found = source._extract_messages_from_paths(row)
        cases.append({
            "role_mapping": list(mapping.items()), "content_key": content_key, "row": row,
            "messages": [[m["role"], m["content"]] for m in found],
        })
    dump("reference_messages.json", cases)


def splits():
    lengths = {"train": 2026, "test": 37, "odd.name_1": 150}
    specs = [
        "train", "test", "odd.name_1", "train[10:20]", "train[:10]", "train[10:]", "train[-10:]", "train[:-10]", "train[-30:-10]",
        "train[:10%]", "train[10%:20%]", "train[-5%:]", "train[:33%](pct1_dropremainder)", "train[33%:66%](closest)",
        "test[:1%]", "test[:50%]", "test[1%:3%]", "test[:-50%]", "train+test", "train[:5]+test[-5:]", "train[:10%] + test[90%:]",
        "train[1_000:1_010]", "train[5000:]", "train[:5000]", "train[-5000:3]", "train[:]", "test[:100%]", "odd.name_1[25%:75%]",
        "odd.name_1[:1%]", "odd.name_1[:3%](pct1_dropremainder)", "train[20:10]",
    ]
    bad = [
        "", "train[", "train[10]", "train[a:b]", "train[:10%", "train[:101%]", "tra in", "train[:10](closest)", "train[:5%](up)",
        "test[:5%](pct1_dropremainder)", "train[:5%]+odd.name_1[:5%](pct1_dropremainder)", "train..x", "train[1.5:]", "train[:--5]",
    ]
    cases = []
    for spec in specs:
        absolute = ReadInstruction.from_spec(spec).to_absolute(lengths)
        cases.append({"spec": spec, "pieces": [[a.splitname, a.from_, a.to] for a in absolute]})
    for spec in bad:
        try:
            ReadInstruction.from_spec(spec).to_absolute(lengths)
        except (ValueError, KeyError):
            cases.append({"spec": spec, "pieces": None})
        else:
            raise AssertionError(spec)
    dump("splits.json", {"lengths": lengths, "cases": cases})


def orders():
    sampler = []
    for length in [1, 2, 3, 7, 10, 64, 101]:
        for world in [1, 2, 3, 4, 8, 16]:
            ranks = [list(DistributedSampler(range(length), num_replicas=world, rank=r)) for r in range(world)]
            sampler.append({"len": length, "world_size": world, "ranks": ranks})
    split = []
    for length, fraction in [(10, 0.1), (10, 0.25), (2026, 0.05), (37, 0.5), (101, 0.01)]:
        out = Dataset.from_dict({"i": list(range(length))}).train_test_split(test_size=fraction, seed=42)
        split.append({"len": length, "fraction": fraction, "train": out["train"]["i"][:], "test": out["test"]["i"][:]})
    dump("orders.json", {"sampler": sampler, "train_test_split": split})


def pads(checkout):
    (pad,) = reference(checkout, "sft_factory.py", ["pad"])
    rng = random.Random(SEED)
    cases = []
    for lengths, kwargs in [
        ([5], {"divisible_by": 4}), ([8], {"divisible_by": 4}), ([3, 9, 1], {"divisible_by": 8}), ([2, 4], {"max_seq": 12}),
    ]:
        rows = [[rng.randint(0, 99) for _ in range(n)] for n in lengths]
        tensors = [torch.tensor(row) for row in rows]
        positions = [torch.tensor([0] + list(range(n - 1))) for n in lengths]
        cases.append({
            "rows": rows, "kwargs": kwargs,
            "input_ids": pad(tensors, padding_value=77, **kwargs).tolist(),
            "labels": pad(tensors, padding_value=-100, **kwargs).tolist(),
            "position_ids": pad(positions, padding_value=0, is_position_id=True, **kwargs).tolist(),
        })
    dump("pads.json", cases)


def files():
    """The same rows in every format that datasets writes."""
    rows = [
        {"id": i, "score": i / 4, "flag": i % 2 == 0, "note": None if i % 3 == 0 else f"note {i} – ü",
         "messages": [{"role": r, "content": f"{r} {i}.{k} 日本"} for k in range(i % 3) for r in ("user", "assistant")]}
        for i in range(11)
    ]
    train = Dataset.from_list(rows)
    folder = os.path.join(OUT, "sources")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(os.path.join(folder, "parquet"))
    os.makedirs(os.path.join(folder, "json"))
    train.save_to_disk(os.path.join(folder, "saved"), num_shards=3)
    DatasetDict({"train": train, "test": train.select([9, 2, 4])}).save_to_disk(os.path.join(folder, "saved_dict"))
    train.to_parquet(os.path.join(folder, "parquet", "train.parquet"), batch_size=4)
    pyarrow.parquet.write_table(
        train.select(range(4)).data.table.slice(0, 4), os.path.join(folder, "parquet", "test-0.parquet"), compression="zstd"
    )
    train.to_json(os.path.join(folder, "json", "train.jsonl"), force_ascii=False)
    with open(os.path.join(folder, "json", "validation.json"), "w", encoding="utf-8") as f:
        json.dump(rows[3:6], f, indent=1)
    dump("sources/rows.json", rows)
    loaded = datasets.load_from_disk(os.path.join(folder, "saved"))
    assert loaded.to_list() == rows


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    checkout, tokenizer = sys.argv[1], AutoTokenizer.from_pretrained(sys.argv[2])
    datasets.disable_progress_bars()
    packs(checkout)
    slices(checkout)
    texts(checkout, tokenizer)
    masks(checkout, tokenizer)
    generation_masks(tokenizer)
    messages(checkout)
    splits()
    orders()
    pads(checkout)
    files()


if __name__ == "__main__":
    main()
