"""Writes what PEFT gets from three steps of AdamW on chats, into crates/sterna-train/tests/fixtures/adapters: a folder for each case with

- adapter_config.json and adapter_model.safetensors: where training begins, as PEFT saves it, on the base named in expected.json, which
  make_family_steps.py has written;
- final.safetensors: what is trained after three steps, less that before, in fp32;
- merged.safetensors: the tensors that `merge_and_unload` changes of the base, where training begins, less the base's;
- expected.json: the base, the losses and the norms of the gradients.

The steps are those of make_family_steps.py, in fp32 and in fp64, to see which numbers fp32 can say at all. Run with torch 2.11.0,
peft 0.18.0 and transformers 4.57.6 on a CPU, `delta_net` with transformers 5.24.0, which has its base:

    OMP_NUM_THREADS=1 python golden/make_adapter_steps.py [CASE ...]
"""

import json
import sys
import tempfile
from pathlib import Path

import peft
import torch
from make_family_steps import FP32, NOISE, OUT, SEED, floats, fp32_means_fp64, read_data, relative_error, train
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

assert peft.__version__ == "0.18.0", peft.__version__

ADAPTERS = OUT.parent / "adapters"

# case -> base, config
CASES = {
    # Biases of queries, keys and values stay frozen.
    "lora": ("qwen2", dict(r=4, lora_alpha=6, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])),
    # Ranks and alphas of their own, one layer, biases of what has an adapter, modules that are trained whole.
    "patterns": (
        "seed_oss",
        dict(
            r=3,
            lora_alpha=5,
            use_rslora=True,
            target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
            rank_pattern={"down_proj": 5, r"layers\.1\.self_attn\.q_proj": 2},
            alpha_pattern={"v_proj": 9},
            layers_to_transform=[1],
            bias="lora_only",
            modules_to_save=["lm_head", "embed_tokens", "input_layernorm"],
        ),
    ),
    # Two maps of one input, and three, in a tensor each; an expression, and what it is not to match.
    "fused": ("phi3", dict(r=3, lora_alpha=5, target_modules=r".*\.(qkv_proj|gate_up_proj|o_proj)", exclude_modules=r".*\.0\..*o_proj")),
    "dora": ("llama", dict(r=3, lora_alpha=5, target_modules="all-linear", use_dora=True, bias="all")),
    "dora_fused": ("phi3", dict(r=3, lora_alpha=5, target_modules="all-linear", use_dora=True)),
    "experts": ("qwen3_moe", dict(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"])),
    # A gated delta net beside attention with a gate, whose rows alternate with those of the queries.
    "delta_net": (
        "qwen3_5_text",
        dict(
            r=3,
            lora_alpha=5,
            target_modules=["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj", "q_proj", "k_proj", "o_proj", "down_proj"],
        ),
    ),
    "latent": ("deepseek_v3", dict(r=3, lora_alpha=5, target_modules=["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"])),
}


def name_in_files(name):
    """What PEFT calls a parameter in its files."""
    if name.endswith("lora_magnitude_vector.default.weight"):
        return name.removesuffix(".default.weight")
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".").replace(".original_module.", ".")


class Adapted:
    """A base with adapters, as `train` sees it."""

    def __init__(self, base, dtype, config=None, folder=None):
        model = AutoModelForCausalLM.from_pretrained(OUT / base, dtype=dtype, attn_implementation="eager").eval().to(dtype)
        self.model = get_peft_model(model, config) if config else PeftModel.from_pretrained(model, folder, is_trainable=True)
        self.model.eval()

    def params(self):
        return {name_in_files(name): param for name, param in self.model.named_parameters() if param.requires_grad}

    def trained(self):
        return {name: param.data for name, param in self.params().items()}

    def logits(self, input_ids, **kwargs):
        return self.model(input_ids=input_ids, use_cache=False, **kwargs).logits


def draw(adapted, generator):
    """Weights large enough that every path matters, and exact in bf16."""
    for name, value in adapted.trained().items():
        noise = torch.randn(value.shape, generator=generator)
        if "lora_magnitude_vector" in name:
            value.copy_((value * (1 + 0.2 * noise)).to(torch.bfloat16))
        elif "lora_" in name:
            value.copy_((0.3 * noise).to(torch.bfloat16))


def changes(after, before):
    return {name: (value - before[name]).contiguous() for name, value in after.items()}


def make(case, data):
    base, config = CASES[case]
    folder = ADAPTERS / case
    adapted = Adapted(base, FP32, config=LoraConfig(task_type="CAUSAL_LM", **config))
    draw(adapted, torch.Generator().manual_seed(SEED))
    with tempfile.TemporaryDirectory() as saved:
        adapted.model.save_pretrained(saved)
        folder.mkdir(parents=True, exist_ok=True)
        written = json.loads((Path(saved) / "adapter_config.json").read_text())
        written["base_model_name_or_path"] = base
        for key in ("target_modules", "modules_to_save"):
            if isinstance(written[key], list):
                written[key].sort()
        (folder / "adapter_config.json").write_text(json.dumps(written, separators=(",", ":")) + "\n")
        tensors = load_file(Path(saved) / "adapter_model.safetensors")
        save_file({name: value.to(torch.bfloat16) for name, value in tensors.items()}, folder / "adapter_model.safetensors", {"format": "pt"})
        assert all(torch.equal(value, value.to(torch.bfloat16).float()) for value in tensors.values())

    again = Adapted(base, FP32, folder=folder)
    assert again.trained().keys() == adapted.trained().keys()
    assert all(torch.equal(again.trained()[name], value) for name, value in adapted.trained().items())
    before = load_file(OUT / base / "model.safetensors")
    merged = again.model.merge_and_unload().state_dict()
    merged = {name: merged[name] for name in before}
    moved = {name: value - before[name].float() for name, value in merged.items() if not torch.equal(value, before[name].float())}

    found = train(adapted, data)
    with fp32_means_fp64():
        truth = train(Adapted(base, torch.float64, folder=folder), data)
    assert all(torch.equal(*pair) for pair in zip(found["choices"], truth["choices"])), "another choice of experts"
    errors = {name: relative_error(found["deltas"][name], delta) for name, delta in truth["deltas"].items()}
    noisy = [name for name, error in errors.items() if error > NOISE]
    record = dict(base=base, losses=found["losses"], grad_norms=found["grad_norms"], noisy=noisy)
    (folder / "expected.json").write_text(json.dumps(record, indent=1) + "\n")
    save_file({name: delta.contiguous() for name, delta in found["deltas"].items()}, folder / "final.safetensors")
    save_file({name: value.contiguous() for name, value in moved.items()}, folder / "merged.safetensors")
    size = sum(path.stat().st_size for path in folder.iterdir())
    error_of = lambda key: max(abs(a / b - 1) for a, b in zip(found[key], truth[key]))
    worst = max((name for name in errors if name not in noisy), key=errors.get)
    print(
        f"{case}: {size} bytes, losses",
        " ".join(f"{loss:.6f}" for loss in found["losses"]),
        f"| errors: loss {error_of('losses'):.1e}, norm {error_of('grad_norms'):.1e}, delta {errors[worst]:.1e} {worst}",
        "| noisy" if noisy else "",
        *(f"{name} {errors[name]:.1e}" for name in noisy),
        flush=True,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    chats = read_data(OUT / "data")
    for case in sys.argv[1:] or [case for case in CASES if case != "delta_net"]:
        make(case, chats)
