#!/usr/bin/env python3
"""Load an export with transformers, generate from it, and compare its weights with the model it came from.

Usage: python check_export.py EXPORT_DIR [ORIGINAL_DIR]
Needs transformers 4.x and torch. Exits with 1 and a sentence when something does not hold.
"""
import glob
import json
import os
import sys

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer


def fail(sentence: str) -> None:
    sys.exit(f"check_export: {sentence}")


def tensors(folder: str) -> dict:
    """Name -> tensor over all safetensors files of a folder."""
    out = {}
    for path in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        with safe_open(path, "pt") as f:
            out.update({name: f.get_tensor(name) for name in f.keys()})
    return out


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    export = sys.argv[1]
    model, info = AutoModelForCausalLM.from_pretrained(export, torch_dtype="auto", output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            fail(f"{problem}: {info[problem]}")
    index = os.path.join(export, "model.safetensors.index.json")
    if os.path.exists(index):
        with open(index, encoding="utf-8") as f:
            files = set(json.load(f)["weight_map"].values())
        if files != {os.path.basename(p) for p in glob.glob(os.path.join(export, "*.safetensors"))}:
            fail("the index names other files than the folder holds")
    for path in glob.glob(os.path.join(export, "*.safetensors")):
        if os.path.getsize(path) > 5_000_000_000 + 100_000_000:
            fail(f"{path} is larger than 5 GB")

    if len(sys.argv) == 3:
        new, old = tensors(export), tensors(sys.argv[2])
        if {k: v.shape for k, v in new.items()} != {k: v.shape for k, v in old.items()}:
            fail("the export has other tensors than the model it came from")
        moved = sum(not torch.equal(new[name].float(), old[name].float()) for name in new)
        print(f"{moved} of {len(new)} tensors differ from {sys.argv[2]}")
        if moved == 0:
            fail("no tensor was trained")

    tokenizer = AutoTokenizer.from_pretrained(export)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(prompt, max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    reply = tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True)
    print(f"{model.config.model_type}, {model.num_parameters():,} parameters, {model.dtype}; it says: {reply!r}")


if __name__ == "__main__":
    main()
