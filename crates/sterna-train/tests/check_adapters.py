"""Opens the adapters of an export with PEFT, and what `sterna export --merge` made of them with transformers, and compares the logits.

    python crates/sterna-train/tests/check_adapters.py ADAPTERS MERGED BASE
"""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    adapters, merged, base = sys.argv[1:]
    load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(adapters)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        of_base = load(base)(**tokens).logits
        adapted = PeftModel.from_pretrained(load(base), adapters)
        of_adapters = adapted(**tokens).logits
        of_peft = adapted.merge_and_unload()(**tokens).logits
        of_merged = load(merged)(**tokens).logits
    off = lambda logits: ((logits - of_adapters).norm() / of_adapters.norm()).item()
    print(f"relative to PEFT's logits: base {off(of_base):.1e}, merged by PEFT {off(of_peft):.1e}, merged by Sterna {off(of_merged):.1e}")
    assert off(of_base) > 1e-3, "the adapters do nothing"
    assert off(of_merged) < 1e-4, "another model"


if __name__ == "__main__":
    main()
