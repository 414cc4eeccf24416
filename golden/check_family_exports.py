"""Trains the tiny model of every family with `sterna train`, opens what it exports in transformers, and compares logits.

The expected logits are those of transformers' own three steps (make_family_steps.py). Run with torch 2.11.0, once with transformers
4.57.6 and once with 5.24.0, each of which opens the families that it has:

    cargo build -p sterna && python golden/check_family_exports.py target/debug/sterna
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

FIXTURES = Path(__file__).resolve().parent.parent / "crates/sterna-train/tests/fixtures/families"
# In 5.24 a base at the top level of the config does not reach the layers with a window, which keep the class's own.
WRONG_IN_5 = ("olmo3",)
# In 4.57 the activation of experts has constants whatever the config says, and `rope_parameters` is not read.
WRONG_IN_4 = ("gpt_oss",)
# What one trained model may differ from the other by: their weights differ by 2e-3 of their ways at most.
TOLERANCE = 1e-3


def recipe(family, folder):
    data = FIXTURES / "data"
    roles = {"user": "messages.role.user", "assistant": "messages.role.assistant"}
    source = dict(type="huggingface_instruct", name_or_path=str(data / "chats.jsonl"), split="train", role_mapping=roles)
    return dict(
        type="sft",
        model=dict(name_or_path=str(family), dtype="fp32"),
        tokenizer=dict(name_or_path=str(data)),
        data=dict(sources=[source], cache_dir=str(folder / "cache"), num_proc=1, max_length=384, pack_samples=True, packing="global"),
        micro_batch_size=1,
        loss_average="token",
        epochs=3,
        optimizer=dict(type="cpu_adam", lr=3e-3, betas=[0.9, 0.95], weight_decay=0.1),
        scheduler=dict(name="constant"),
        deepspeed=dict(zero_optimization=dict(stage=0), gradient_clipping=0),
        checkpoint=dict(type="huggingface", output_dir=str(folder / "out"), save_end_of_training=True),
    )


def check(sterna, family):
    config = json.loads((family / "config.json").read_text())
    try:
        AutoConfig.for_model(config["model_type"])
        known = config["model_type"] in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except (ValueError, KeyError):
        known = False
    if config["model_type"] in WRONG_IN_5 and transformers.__version__ == "5.24.0":
        print(f"{family.name}: transformers {transformers.__version__} reads another rope_theta than the config says")
        return True
    if config["model_type"] in WRONG_IN_4 and transformers.__version__ == "4.57.6":
        print(f"{family.name}: transformers {transformers.__version__} reads neither the limit of the activation nor the angles")
        return True
    if not known:
        print(f"{family.name}: not in transformers {transformers.__version__} as a model of text alone")
        return True
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        path = folder / "recipe.yaml"
        path.write_text(json.dumps(recipe(family, folder)))
        subprocess.run([sterna, "train", str(path)], check=True, capture_output=True)
        exports = [config.parent for config in (folder / "out").rglob("config.json")]
        assert len(exports) == 1, exports
        model, info = AutoModelForCausalLM.from_pretrained(
            exports[0], dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        if hasattr(model, "set_experts_implementation"):
            # Transformers 5 groups the products of experts, which torch refuses on a CPU for widths such as these.
            model.set_experts_implementation("eager")
        model = model.float().eval()
        # Transformers 5 makes another tokenizer of some model types than tokenizer.json has.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(exports[0])
    chat = json.loads((FIXTURES / "data/chats.jsonl").read_text().splitlines()[0])["messages"]
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0, -2:].flatten()
    expected = torch.tensor(json.loads((family / "expected.json").read_text())["logits_after"])
    error = ((logits - expected).norm() / expected.norm()).item()
    lost = {key: value for key, value in info.items() if value}
    good = error <= TOLERANCE and not lost
    print(f"{family.name}: logits within {error:.1e}{'' if good else ' WRONG'}{f', {lost}' if lost else ''}")
    return good


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    families = sorted(path for path in FIXTURES.iterdir() if path.name != "data")
    results = [check(sys.argv[1], family) for family in families]
    sys.exit(0 if all(results) else 1)
