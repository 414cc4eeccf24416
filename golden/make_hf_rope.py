"""Makes crates/sterna-arch/tests/fixtures/rope.json: rotary frequencies of real transformers modules.

Each case runs the family's rotary module on positions 0..seq_len and notes the frequencies it then
holds, so that "dynamic" is measured as training would see it. No randomness. Run with
transformers 4.57 and torch 2.11:

    python golden/make_hf_rope.py
"""

import json
import pathlib

import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

OUT = pathlib.Path(__file__).parents[1] / "crates/sterna-arch/tests/fixtures/rope.json"
MODULES = {
    "llama": LlamaRotaryEmbedding,
    "mistral": MistralRotaryEmbedding,
    "qwen2": Qwen2RotaryEmbedding,
    "qwen3": Qwen3RotaryEmbedding,
}
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# name, model_type, keys, seq_len
CASES = [
    ("default", "llama", {}, 64),
    ("smollm2", "llama", {"rope_theta": 100000.0, "max_position_embeddings": 8192}, 64),
    ("null scaling", "qwen2", {"rope_theta": 1000000.0, "rope_scaling": None}, 64),
    ("explicit head_dim", "qwen3", {"rope_theta": 1000000, "head_dim": 128}, 64),
    ("explicit default", "llama", {"rope_scaling": {"rope_type": "default"}}, 64),
    ("linear", "llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 64),
    ("linear, legacy key", "qwen2", {"rope_scaling": {"type": "linear", "factor": 2.5}}, 64),
    ("linear, integer", "llama", {"rope_scaling": {"rope_type": "linear", "factor": 3}}, 64),
    ("dynamic, short", "llama", {"max_position_embeddings": 128, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 100),
    ("dynamic, at the limit", "llama", {"max_position_embeddings": 128, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 128),
    ("dynamic, long", "llama", {"max_position_embeddings": 128, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 129),
    ("dynamic, very long", "qwen2", {"max_position_embeddings": 128, "rope_scaling": {"type": "dynamic", "factor": 4.0}}, 5000),
    ("yarn", "qwen2", {"rope_theta": 1000000.0, "max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, 64),
    ("yarn, no original", "qwen3", {"rope_theta": 1000000.0, "max_position_embeddings": 40960, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 64),
    ("yarn, own attention", "llama", {"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "yarn", "factor": 16.0, "attention_factor": 1.25}}, 64),
    ("yarn, mscale", "llama", {"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0}}, 64),
    ("yarn, betas", "mistral", {"head_dim": 64, "max_position_embeddings": 4096, "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "beta_fast": 4.0, "beta_slow": 2.0}}, 64),
    ("yarn, not truncated", "llama", {"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "truncate": False}}, 64),
    ("yarn, narrow ramp", "llama", {"max_position_embeddings": 32, "rope_theta": 100.0, "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1.0, "beta_slow": 1.0}}, 64),
    ("llama 3.1", "llama", {"rope_theta": 500000.0, "max_position_embeddings": 131072, "head_dim": 128, "rope_scaling": LLAMA3}, 64),
    ("llama 3.2", "llama", {"rope_theta": 500000.0, "max_position_embeddings": 131072, "rope_scaling": {**LLAMA3, "factor": 32.0}}, 64),
]


def main():
    cases = []
    for name, model_type, keys, seq_len in CASES:
        given = {"model_type": model_type, **SIZES, **keys}
        config = transformers.AutoConfig.for_model(**json.loads(json.dumps(given)))
        module = MODULES[model_type](config)
        module(torch.zeros(1, 1), torch.arange(seq_len)[None])
        cases.append(
            {
                "name": name,
                "config": given,
                "seq_len": seq_len,
                "inv_freq": [float(x) for x in module.inv_freq],
                "attention_factor": float(module.attention_scaling),
            }
        )
    out = {"transformers": transformers.__version__, "torch": torch.__version__, "cases": cases}
    OUT.write_text(json.dumps(out, indent=1) + "\n")


main()
