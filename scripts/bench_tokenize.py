"""Rows a second on one core: chats to tokens and labels, by the reference and by Sterna, on the same chats in turn.

    python scripts/bench_tokenize.py chats.jsonl MODEL_FOLDER STERNA [ROUNDS]

The reference is `SFTDataFactory.tokenize_messages` of the installed arctic_training, without its worker processes; transformers and
tokenizers have to be there too. Sterna is `sterna data` with one thread and an empty cache: reading the files, tokenizing, writing the
cache. What it takes for one row (start, model folder) is measured by itself and subtracted, as the reference's imports are.
"""

import ast
import importlib.util
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
import typing

from transformers import AutoTokenizer


def reference():
    """The two functions of the reference, without importing what trains."""
    [folder] = importlib.util.find_spec("arctic_training").submodule_search_locations
    tree = ast.parse((pathlib.Path(folder) / "data" / "sft_factory.py").read_text())
    wanted = {"tokenize_messages", "get_assistant_start_end_indices", "get_masked_labels"}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in wanted]
    names = {**vars(typing), "re": re, "IGNORE_INDEX": -100, "BatchEncoding": dict, "PreTrainedTokenizerBase": object}
    body = ast.Module([ast.ClassDef("Factory", [], [], found, [])], [])
    exec(compile(ast.fix_missing_locations(body), "sft_factory.py", "exec"), names)
    return names["Factory"].tokenize_messages


def rows_per_second(tokenize, tokenizer, chats):
    start = time.perf_counter()
    for chat in chats:
        tokenize(chat, tokenizer)
    return len(chats) / (time.perf_counter() - start)


def sterna(program, chats, model, folder):
    recipe = {
        "type": "sft",
        "model": {"name_or_path": model, "dtype": "fp32"},
        "data": {
            "sources": [{"type": "huggingface_instruct", "name_or_path": chats}],
            "max_length": 1 << 20,
            "cache_dir": tempfile.mkdtemp(dir=folder),
        },
    }
    path = os.path.join(folder, "recipe.yaml")
    json.dump(recipe, open(path, "w"))
    command = [program, "data", path, "--steps", "1", "--out", os.path.join(folder, "out")]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "RAYON_NUM_THREADS": "1"})
    return time.perf_counter() - start


def main():
    chats_path, model, program = sys.argv[1:4]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    lines = open(chats_path).read().splitlines()
    chats = [json.loads(line)["messages"] for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenize = reference()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        one = os.path.join(folder, "one.jsonl")
        open(one, "w").write(lines[0] + "\n")
        ratios = []
        for _ in range(rounds):
            theirs = rows_per_second(tokenize, tokenizer, chats)
            idle = sterna(program, one, model, folder)
            ours = len(chats) / (sterna(program, os.path.abspath(chats_path), model, folder) - idle)
            ratios.append(ours / theirs)
            print(f"reference {theirs:.0f} rows/s, sterna {ours:.0f} rows/s, {ours / theirs:.1f} times", flush=True)
    print(f"median of {rounds}: {statistics.median(ratios):.1f} times")


if __name__ == "__main__":
    main()
