"""Rows a second on one core: chats to tokens, labels and packs on disk, by the reference and by Sterna, on the same chats in turn.

    python scripts/bench_tokenize.py chats.jsonl MODEL_FOLDER STERNA [ROUNDS]

Both run on one core, and what is counted is the processor time they take, so that other work on the machine matters little.

The reference is arctic_training's own code, taken out of the installed package as far as it needs neither deepspeed nor a GPU, in
the order in which its data factory calls it: `load_dataset` of the file, messages by `role_mapping`, tokens and labels,
`save_to_disk`, shuffle, filter by length, shuffle, pack, `save_to_disk`. Its maps run in the process itself, which takes less than
its workers would. arctic_training, transformers, tokenizers, torch and datasets have to be installed. `tokenize only` is its
`tokenize_messages` on chats in memory.

Sterna is `sterna data` with an empty cache: the same from the file to packs, tokens and labels in the cache, and one batch written.
What both take for one row, start and model folder with it, is measured by itself and subtracted; imports are not counted.
"""

import ast
import importlib.util
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
import typing

MAX_LENGTH = 1 << 15
ROLE_MAPPING = {role: f"messages.role.{role}" for role in ("user", "assistant")}


def taken_from(file, names, known):
    """Functions of the reference, methods or not, without importing what trains."""
    [folder] = importlib.util.find_spec("arctic_training").submodule_search_locations
    tree = ast.parse((pathlib.Path(folder) / "data" / file).read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in names]
    assert {node.name for node in found} == set(names), file
    scope = {**vars(typing), "IGNORE_INDEX": -100, "DatasetType": object, **known}
    body = ast.Module([ast.ClassDef("Taken", [], [], found, [])], [])
    # Functions of a module call each other by name.
    exec(compile(ast.fix_missing_locations(body), file, "exec"), scope)
    scope.update({name: vars(scope["Taken"])[name] for name in names})
    return scope["Taken"]


def tokenize_messages():
    names = {"tokenize_messages", "get_assistant_start_end_indices", "get_masked_labels"}
    known = {"re": re, "BatchEncoding": dict, "PreTrainedTokenizerBase": object}
    return taken_from("sft_factory.py", names, known).tokenize_messages


def in_this_process(owner, name):
    """Makes a method start no worker."""
    method = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: method(*args, **{**kwargs, "num_proc": None}))


def whole_pipeline(chats_path, tokenizer, folder):
    """What `DataSource.__call__`, `DataFactory.load` and its callbacks do with one source."""
    import random

    import datasets

    names = {
        "process",
        "tokenize_messages",
        "get_assistant_start_end_indices",
        "get_masked_labels",
        "pack_sft_batch",
        "filter_dataset_length",
        "pack_dataset",
    }
    known = {"re": re, "random": random, "BatchEncoding": dict, "PreTrainedTokenizerBase": object}
    factory = taken_from("sft_factory.py", names, known)
    names = {"post_load_callback", "_extract_messages_from_paths", "_extract_content_from_path", "_get_default_content"}
    source = taken_from("hf_instruct_source.py", names, {})()
    recipe = types.SimpleNamespace(
        max_length=MAX_LENGTH,
        mask_inputs=True,
        ignore_empty_think=False,
        filter_samples=True,
        pack_samples=True,
        repeat_to_pack_max_length=False,
        always_max_length=False,
        drop_last=False,
        fuse_positions_prob=0.0,
        seed=42,
        num_proc=1,
    )
    source.config = types.SimpleNamespace(name_or_path=chats_path, role_mapping=ROLE_MAPPING, content_key=None)
    source.data_factory = types.SimpleNamespace(config=recipe)
    factory.config, factory.tokenizer = recipe, tokenizer

    rows = datasets.load_dataset("json", data_files=chats_path, split="train", cache_dir=f"{folder}/hf")
    rows = factory.process(factory(), source.post_load_callback(rows))
    rows.save_to_disk(f"{folder}/source")
    rows = datasets.concatenate_datasets([datasets.load_from_disk(f"{folder}/source")]).shuffle(seed=recipe.seed)
    rows = factory.filter_dataset_length(factory(), rows)
    rows = factory.pack_dataset(factory(), rows)
    rows.save_to_disk(f"{folder}/packs")


def reference(one, chats_path, model):
    """Seconds for the file beyond those for one row, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--reference", one, chats_path, model, folder]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=one_core()).stdout)


def sterna(program, chats_path, model):
    with tempfile.TemporaryDirectory() as folder:
        recipe = {
            "type": "sft",
            "model": {"name_or_path": model, "dtype": "fp32"},
            "data": {
                "sources": [
                    {"type": "huggingface_instruct", "name_or_path": chats_path, "role_mapping": ROLE_MAPPING}
                ],
                "max_length": MAX_LENGTH,
                "pack_samples": True,
                "num_proc": 1,
                "cache_dir": f"{folder}/cache",
            },
        }
        path = os.path.join(folder, "recipe.yaml")
        pathlib.Path(path).write_text(json.dumps(recipe))
        return seconds([program, "data", path, "--steps", "1", "--out", f"{folder}/out"])


def seconds(command):
    def taken():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = taken()
    subprocess.run(command, check=True, capture_output=True, env=one_core())
    return taken() - before


def one_core():
    one = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **one}


def main():
    chats_path, model, program = sys.argv[1:4]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import AutoTokenizer

    chats_path = os.path.abspath(chats_path)
    lines = pathlib.Path(chats_path).read_text().splitlines()
    chats = [json.loads(line)["messages"] for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenize = tokenize_messages()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        one = os.path.join(folder, "one.jsonl")
        pathlib.Path(one).write_text(lines[0] + "\n")
        for _ in range(rounds):
            start = time.process_time()
            for chat in chats:
                tokenize(chat, tokenizer)
            only = len(chats) / (time.process_time() - start)
            theirs = len(chats) / reference(one, chats_path, model)
            idle = sterna(program, one, model)
            ours = len(chats) / (sterna(program, chats_path, model) - idle)
            ratios.append((ours / only, ours / theirs))
            print(
                f"reference {only:.0f} rows/s tokenize only, {theirs:.0f} whole; sterna {ours:.0f} whole:"
                f" {ours / only:.1f} and {ours / theirs:.1f} times",
                flush=True,
            )
    only, whole = (statistics.median(column) for column in zip(*ratios))
    print(f"median of {rounds}: {only:.1f} times tokenize only, {whole:.1f} times the whole")


if __name__ == "__main__":
    if sys.argv[1] == "--reference":
        import datasets
        from transformers import AutoTokenizer

        datasets.disable_caching()
        datasets.disable_progress_bars()
        in_this_process(datasets.Dataset, "map")
        in_this_process(datasets.Dataset, "filter")
        *files, model, folder = sys.argv[2:]
        tokenizer = AutoTokenizer.from_pretrained(model)
        times = [time.process_time()]
        for i, file in enumerate(files):
            whole_pipeline(file, tokenizer, f"{folder}/{i}")
            times.append(time.process_time())
        print(times[2] - times[1] - (times[1] - times[0]))
    else:
        main()
