"""Makes crates/sterna-hf/tests/fixtures/configs.json: what real transformers models have inside.

Each case builds the model on the meta device and notes its parameters by name and shape, and the
sliding window of each layer. No randomness. Run with transformers 4.57 and torch 2.11:

    python golden/make_hf_config.py
"""

import json
import pathlib

import torch
import transformers

OUT = pathlib.Path(__file__).parents[1] / "crates/sterna-hf/tests/fixtures/configs.json"
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
CASES = [
    ("llama", {"model_type": "llama"}),
    ("llama, tied", {"model_type": "llama", "tie_word_embeddings": True}),
    ("llama, biases", {"model_type": "llama", "attention_bias": True, "mlp_bias": True}),
    ("llama, head_dim", {"model_type": "llama", "head_dim": 24}),
    ("llama, null heads", {"model_type": "llama", "num_key_value_heads": None, "head_dim": None}),
    ("llama, a window that it ignores", {"model_type": "llama", "sliding_window": 16}),
    ("mistral", {"model_type": "mistral"}),
    ("mistral, no window", {"model_type": "mistral", "sliding_window": None}),
    ("mistral, biases that it ignores", {"model_type": "mistral", "attention_bias": True, "mlp_bias": True}),
    ("mistral, head_dim", {"model_type": "mistral", "head_dim": 32, "sliding_window": 8}),
    ("qwen2", {"model_type": "qwen2"}),
    ("qwen2, biases whatever it says", {"model_type": "qwen2", "attention_bias": False, "tie_word_embeddings": True}),
    ("qwen2, window off", {"model_type": "qwen2", "sliding_window": 16, "max_window_layers": 0}),
    ("qwen2, window on", {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    ("qwen2, window beyond", {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 28}),
    ("qwen3", {"model_type": "qwen3"}),
    ("qwen3, biases", {"model_type": "qwen3", "attention_bias": True, "head_dim": 16}),
    ("qwen3, tied, null head_dim", {"model_type": "qwen3", "tie_word_embeddings": True, "head_dim": 16}),
    (
        "qwen3, layer types",
        {
            "model_type": "qwen3",
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    (
        "qwen3, layer types without use",
        {"model_type": "qwen3", "sliding_window": 4, "layer_types": ["sliding_attention"] * 3},
    ),
    ("granite", {"model_type": "granite"}),
    (
        "granite, multipliers",
        {"model_type": "granite", "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.0078125, "logits_scaling": 8.0, "attention_bias": True, "tie_word_embeddings": True},
    ),
    ("seed_oss", {"model_type": "seed_oss", "attention_dropout": 0.0, "residual_dropout": 0.0}),
    (
        "seed_oss, other biases",
        {"model_type": "seed_oss", "attention_dropout": 0, "residual_dropout": 0, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True, "head_dim": None},
    ),
    # Its own pad_token_id is beyond these few rows.
    ("smollm3", {"model_type": "smollm3", "pad_token_id": None}),
    ("smollm3, untied, biases", {"model_type": "smollm3", "pad_token_id": 5, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    ("smollm3, every second", {"model_type": "smollm3", "pad_token_id": None, "no_rope_layer_interval": 2}),
    (
        "smollm3, layers without rotary by name, which have the window",
        {"model_type": "smollm3", "pad_token_id": None, "no_rope_layers": [0, 1, 0], "use_sliding_window": True, "sliding_window": 6},
    ),
    ("smollm3, a window that nothing uses", {"model_type": "smollm3", "pad_token_id": None, "use_sliding_window": True}),
]


def window(config, attention):
    if config.model_type == "mistral":
        return config.sliding_window
    return getattr(attention, "sliding_window", None)


def main():
    cases = []
    for name, keys in CASES:
        given = {**SIZES, **keys}
        config = transformers.AutoConfig.for_model(**json.loads(json.dumps(given)))
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        cases.append(
            {
                "name": name,
                "config": given,
                # A tied head is not a parameter of its own.
                "parameters": [[key, list(value.shape)] for key, value in model.named_parameters()],
                "sliding_window": [window(config, layer.self_attn) for layer in model.model.layers],
                "is_rotated": [bool(getattr(layer.self_attn, "use_rope", True)) for layer in model.model.layers],
                "multipliers": [
                    getattr(config, "embedding_multiplier", 1.0),
                    getattr(config, "residual_multiplier", 1.0),
                    model.model.layers[0].self_attn.scaling,
                    getattr(config, "logits_scaling", 1.0),
                ],
                "tie_word_embeddings": config.tie_word_embeddings,
                "head_dim": model.model.layers[0].self_attn.head_dim,
                "rms_norm_eps": config.rms_norm_eps,
                "max_position_embeddings": config.max_position_embeddings,
                "initializer_range": config.initializer_range,
                "rope_theta": config.rope_theta,
                "bos_token_id": config.bos_token_id,
                "eos_token_id": config.eos_token_id,
                "num_parameters": model.num_parameters(),
            }
        )
    out = {"transformers": transformers.__version__, "cases": cases}
    text = json.dumps(out, separators=(",", ":")).replace('{"name"', '\n{"name"')
    OUT.write_text(text + "\n")


main()
