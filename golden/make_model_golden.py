"""Writes what transformers computes for tiny models: logits, loss and every gradient, for crates/sterna-model/tests/it/golden.rs.

Each document of a packed batch is a forward of its own, so that the expected values do not depend on how transformers masks
packed batches. Run with torch 2.11.0 and transformers 4.57.6 on a CPU:

    python golden/make_model_golden.py
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

assert torch.__version__.startswith("2.11.0"), torch.__version__
assert transformers.__version__ == "4.57.6", transformers.__version__

SEED = 20261121
OUT = Path(__file__).resolve().parent.parent / "crates/sterna-model/tests/fixtures"

BASE = dict(
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=64,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
)
ROPE = dict(BASE, num_hidden_layers=1, tie_word_embeddings=True, max_position_embeddings=64)

# name -> (model_type, config, document lengths)
CASES = {
    # Nine query heads on three kv heads: sp 2 splits a kv head. Tied. The pad token occurs, and is looked up without gradient.
    "llama_tied": (
        "llama",
        dict(BASE, hidden_size=36, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True, pad_token_id=3),
        [13, 1, 10],
    ),
    # Every bias that a llama config can ask for.
    "llama_biased": ("llama", dict(BASE, attention_bias=True, mlp_bias=True, pad_token_id=3), [5, 19]),
    # A window shorter than the first document and longer than the second.
    "mistral_window": ("mistral", dict(BASE, sliding_window=5, head_dim=8), [19, 4, 1]),
    # One kv head for all ranks; query, key and value biases.
    "qwen2": ("qwen2", dict(BASE, num_key_value_heads=1), [16, 8]),
    # Norms on queries and keys, and heads wider than the hidden size divided by their number.
    "qwen3": ("qwen3", dict(BASE, hidden_size=24, head_dim=8), [16, 8]),
    # Biases on q, k and v by default and none on o, heads wider than the hidden size over their number.
    "seed_oss": (
        "seed_oss",
        dict(BASE, hidden_size=24, head_dim=8, attention_dropout=0.0, residual_dropout=0.0, pad_token_id=3),
        [11, 13],
    ),
    # One block with rotary embeddings and one without; tied, as its class has it.
    "smollm3": ("smollm3", dict(BASE, no_rope_layers=[1, 0], tie_word_embeddings=True, pad_token_id=3), [14, 10]),
    # Four multipliers, none of them a power of two.
    "granite": (
        "granite",
        dict(
            BASE,
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            attention_multiplier=0.3,
            logits_scaling=6.0,
            attention_bias=True,
            tie_word_embeddings=True,
            pad_token_id=3,
        ),
        [17, 7],
    ),
    "rope_linear": ("llama", dict(ROPE, rope_scaling=dict(rope_type="linear", factor=4.0)), [24]),
    # Longer than max_position_embeddings, so that the base grows.
    "rope_dynamic": (
        "llama",
        dict(ROPE, max_position_embeddings=16, rope_scaling=dict(rope_type="dynamic", factor=4.0)),
        [24],
    ),
    "rope_yarn": (
        "llama",
        dict(ROPE, rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)),
        [24],
    ),
    "rope_llama3": (
        "llama",
        dict(
            ROPE,
            rope_scaling=dict(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=16,
            ),
        ),
        [24],
    ),
}


def randomize(model, generator):
    """Weights large enough that every path matters, and exact in bf16, so that they are stored in half the space."""
    for name, param in model.named_parameters():
        noise = torch.randn(param.shape, generator=generator)
        value = 1 + 0.2 * noise if name.endswith("norm.weight") else 0.25 * noise
        param.data.copy_(value.to(torch.bfloat16).float())


def run(model, input_ids, shift_labels, lengths):
    """Logits [s, v], mean loss over labels, gradient of every parameter."""
    model.zero_grad()
    num_valid = (shift_labels != -100).sum()
    logits, loss, start = [], 0.0, 0
    for length in lengths:
        document = slice(start, start + length)
        start += length
        out = model(
            input_ids=input_ids[None, document],
            position_ids=torch.arange(length)[None],
            use_cache=False,
        ).logits[0]
        loss_sum = torch.nn.functional.cross_entropy(
            out.float(), shift_labels[document], ignore_index=-100, reduction="sum"
        )
        (loss_sum / num_valid).backward()
        loss += loss_sum.item() / num_valid.item()
        logits.append(out.detach())
    grads = {name: param.grad.detach().clone() for name, param in model.named_parameters()}
    return torch.cat(logits), loss, grads


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def make(name, model_type, overrides, lengths):
    generator = torch.Generator().manual_seed(SEED)
    config = AutoConfig.for_model(model_type, **overrides, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config).float()
    randomize(model, generator)
    num_tokens = sum(lengths)
    input_ids = torch.randint(0, config.vocab_size, (num_tokens,), generator=generator)
    shift_labels = torch.randint(0, config.vocab_size, (num_tokens,), generator=generator)
    # A prompt without labels, and no label across the end of a document.
    shift_labels[2:5] = -100
    shift_labels[torch.tensor(lengths).cumsum(0) - 1] = -100
    if config.pad_token_id is not None:
        input_ids[7] = config.pad_token_id

    logits, loss, grads = run(model, input_ids, shift_labels, lengths)
    weights = {name: param.detach().clone() for name, param in model.named_parameters()}

    # How far transformers' own bf16 is from its fp32: what a bf16 implementation may be off by.
    half = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    half.load_state_dict({name: value.to(torch.bfloat16) for name, value in weights.items()}, strict=False)
    half.set_attn_implementation("sdpa")
    half_logits, half_loss, half_grads = run(half, input_ids, shift_labels, lengths)
    bf16_errors = {"logits": relative_error(half_logits, logits), "loss": abs(half_loss / loss - 1)}
    bf16_errors |= {name: relative_error(half_grads[name], grads[name]) for name in grads}

    tensors = {name: value.to(torch.bfloat16) for name, value in weights.items()}
    tensors |= {f"grad.{name}": value for name, value in grads.items()}
    tensors |= {"logits": logits, "input_ids": input_ids, "shift_labels": shift_labels}
    save_file({name: value.contiguous() for name, value in tensors.items()}, OUT / f"{name}.safetensors")
    record = dict(config=json.loads(config.to_json_string()), lengths=lengths, loss=loss, bf16_errors=bf16_errors)
    (OUT / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(name, f"loss {loss:.6f}", (OUT / f"{name}.safetensors").stat().st_size, "bytes")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for case, (model_type, overrides, lengths) in CASES.items():
        make(case, model_type, overrides, lengths)
