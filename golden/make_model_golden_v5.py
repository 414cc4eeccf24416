"""Writes what transformers 5 computes for tiny models of the classes that 4.57 lacks: logits, loss and every gradient.

The files have the format of make_model_golden.py's. Differences: buffers that a checkpoint holds (the layer scalars of Gemma 4) are
stored like weights and have no gradient; experts, which this version fuses, have the names and shapes of checkpoints; Muse Glimmer has no class for text alone, so it runs in its multimodal class, and the names lose
`language_model.`; the bf16 model is built in bf16, as from_pretrained builds it, which leaves its rotary frequencies in fp32; a class with
delta nets runs its code in double precision, because its fp32 gradients of decays are off by as much as a test allows.

Run with torch 2.11.0 and transformers 5.24.0 on a CPU:

    python golden/make_model_golden_v5.py [OUTPUT_FOLDER [CASE ...]]
"""

import contextlib
import json
import sys
from pathlib import Path

import torch
import transformers
from checkpoint_names import as_in_checkpoint
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.mistral4 import Mistral4ForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

assert torch.__version__.startswith("2.11.0"), torch.__version__
assert transformers.__version__ == "5.24.0", transformers.__version__

SEED = 20261121
OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else (
    Path(__file__).resolve().parent.parent / "crates/sterna-model/tests/fixtures"
)

BASE = dict(
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=64,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=3,
)
# With mscale beside a smaller mscale_all_dim, cosine and sine are scaled too. The ramp lies inside the eight frequencies of a head.
YARN = dict(
    type="yarn",
    rope_type="yarn",
    rope_theta=100.0,
    factor=4.0,
    original_max_position_embeddings=6,
    max_position_embeddings=24,
    beta_fast=0.5,
    beta_slow=0.1,
    mscale=1.0,
    mscale_all_dim=0.5,
    llama_4_scaling_beta=0.3,
)
# Values narrower than keys, and a key of four values that all heads have.
LATENT = dict(
    {key: value for key, value in BASE.items() if key != "head_dim"},
    num_key_value_heads=4,
    intermediate_size=24,
    q_lora_rank=10,
    kv_lora_rank=14,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=6,
    moe_intermediate_size=6,
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_shared_experts=2,
    routed_scaling_factor=1.7,
    tie_word_embeddings=False,
)
YARN_OF_LATENT = dict(
    rope_type="yarn",
    rope_theta=10000.0,
    factor=4.0,
    original_max_position_embeddings=8,
    beta_fast=0.5,
    beta_slow=0.1,
    mscale=1.0,
    mscale_all_dim=0.7,
)
# What its multimodal class needs beside the text: never run.
MUSE_VISION = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    patch_size=4,
    pos_emb_height=4,
    pos_emb_width=4,
    max_position_embeddings=16,
)

# The first token of a document writes little and reads it: a small eps would make all of its rounding errors.
DELTA = dict(BASE, hidden_size=24, intermediate_size=24, linear_key_head_dim=6, linear_value_head_dim=5, rms_norm_eps=5e-2)

# name -> (model_type, config, document lengths)
CASES = {
    # Positions up to 16 beside an original context of 6: the scale of the queries takes three values within the first document.
    # Heads wider than the hidden size over their number.
    "ministral3": (
        "ministral3",
        dict(BASE, head_dim=16, intermediate_size=24, rope_parameters=YARN, rms_norm_eps=1e-3, tie_word_embeddings=False),
        [17, 1, 6],
    ),
    # The window, tied. A beta, and yarn's defaults.
    "ministral3_window": (
        "ministral3",
        dict(
            BASE,
            rope_parameters=dict(
                rope_type="yarn",
                rope_theta=10000.0,
                factor=16.0,
                original_max_position_embeddings=8,
                llama_4_scaling_beta=0.1,
            ),
            sliding_window=5,
            tie_word_embeddings=True,
        ),
        [19, 5],
    ),
    # The shape of the 31B: on the full layer, wider heads, fewer of them for keys, which are also the values, and rotary embeddings on a
    # quarter of a head. Tied, capped.
    "gemma4_text": (
        "gemma4_text",
        dict(
            BASE,
            intermediate_size=24,
            num_hidden_layers=3,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            sliding_window=5,
            global_head_dim=16,
            num_global_key_value_heads=1,
            attention_k_eq_v=True,
            hidden_size_per_layer_input=0,
            final_logit_softcapping=2.5,
            rms_norm_eps=1e-2,
            rope_parameters=dict(
                sliding_attention=dict(rope_type="default", rope_theta=1000.0),
                full_attention=dict(rope_type="proportional", partial_rotary_factor=0.25, rope_theta=100.0),
            ),
            use_bidirectional_attention="vision",
            vocab_size_per_layer_input=64,
            tie_word_embeddings=True,
        ),
        [15, 1, 8],
    ),
    # Values of their own on the full layer, whose number of key heads then is that of all layers; every bias; a factor on the proportional
    # frequencies; neither tied nor capped.
    "gemma4_text_biased": (
        "gemma4_text",
        dict(
            BASE,
            intermediate_size=24,
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=5,
            global_head_dim=16,
            num_global_key_value_heads=1,
            attention_k_eq_v=False,
            attention_bias=True,
            hidden_size_per_layer_input=0,
            rope_parameters=dict(
                sliding_attention=dict(rope_type="default", rope_theta=10000.0),
                full_attention=dict(rope_type="proportional", partial_rotary_factor=0.5, rope_theta=100.0, factor=2.0),
            ),
            vocab_size_per_layer_input=64,
            tie_word_embeddings=False,
        ),
        [16, 8],
    ),
    # The shape of the 26B: experts beside the MLP, each with norms of its own, of a router with a norm and a scale for each expert.
    "gemma4_text_moe": (
        "gemma4_text",
        dict(
            BASE,
            hidden_size=24,
            intermediate_size=16,
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=5,
            global_head_dim=16,
            num_global_key_value_heads=1,
            attention_k_eq_v=True,
            hidden_size_per_layer_input=0,
            enable_moe_block=True,
            num_experts=5,
            top_k_experts=2,
            moe_intermediate_size=8,
            rms_norm_eps=1e-2,
            rope_parameters=dict(
                sliding_attention=dict(rope_type="default", rope_theta=1000.0),
                full_attention=dict(rope_type="proportional", partial_rotary_factor=0.25, rope_theta=100.0),
            ),
            vocab_size_per_layer_input=64,
            tie_word_embeddings=True,
        ),
        [15, 1, 8],
    ),
    # The whole of DeepSeek 2, which 4.57 gives another scale: latents of queries and of keys and values, biases, yarn with a magnitude; two of
    # four groups of experts, by their best, in the second layer.
    "deepseek_v2": (
        "deepseek_v2",
        dict(
            LATENT,
            attention_bias=True,
            rope_parameters=dict(YARN_OF_LATENT),
            topk_method="group_limited_greedy",
            first_k_dense_replace=1,
            n_group=4,
            topk_group=2,
        ),
        [10, 6],
    ),
    # Latents of queries and of keys and values, biases; the scale of the queries takes three values within the first document; in the second
    # layer experts in one tensor, two of four groups of them by the sum of their best two.
    "mistral4": (
        "mistral4",
        dict(
            LATENT,
            attention_bias=True,
            rope_parameters=dict(YARN_OF_LATENT, original_max_position_embeddings=4, llama_4_scaling_beta=0.3),
            first_k_dense_replace=1,
            n_group=4,
            topk_group=2,
        ),
        [10, 6],
    ),
    # Values as wide as keys; a bias for the choice of experts in the second layer.
    "glm4_moe_lite": ("glm4_moe_lite", dict(LATENT, v_head_dim=12, mlp_layer_types=["dense", "sparse"]), [10, 6]),
    # Sinks, a window in the first of two layers, every bias, yarn without truncation; experts with biases whose activation is clamped for
    # about half of its inputs, and the loss that balances them.
    "gpt_oss": (
        "gpt_oss",
        dict(
            BASE,
            hidden_size=24,
            intermediate_size=8,
            sliding_window=5,
            num_local_experts=5,
            num_experts_per_tok=2,
            swiglu_alpha=1.3,
            swiglu_limit=0.9,
            output_router_logits=True,
            router_aux_loss_coef=0.5,
            rope_parameters=dict(
                rope_type="yarn",
                rope_theta=100.0,
                factor=4.0,
                beta_fast=0.7,
                beta_slow=0.1,
                truncate=False,
                original_max_position_embeddings=8,
            ),
        ),
        [17, 1, 6],
    ),
    # A bias for the choice of experts, and the loss that balances them; half of a head rotates; norms over all heads.
    "minimax_m2": (
        "minimax_m2",
        dict(
            BASE,
            intermediate_size=8,
            num_local_experts=5,
            num_experts_per_tok=2,
            output_router_logits=True,
            router_aux_loss_coef=0.5,
            rotary_dim=4,
        ),
        [10, 6],
    ),
    # A delta net, whose two key heads are of another width than its four value heads, after a gated full layer on whose heads two of eight
    # values turn. The first document is longer than a chunk of 64 tokens; the sum is what two, three and four ranks can share.
    "qwen3_5_text": (
        "qwen3_5_text",
        dict(
            DELTA,
            layer_types=["full_attention", "linear_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            rope_parameters=dict(
                rope_type="default",
                rope_theta=1000.0,
                partial_rotary_factor=0.25,
                mrope_interleaved=True,
                mrope_section=[1, 0, 0],
            ),
            tie_word_embeddings=False,
        ),
        [66, 1, 5],
    ),
    # Three value heads on one key head, biases of the full layer, tied; a kernel of two tokens.
    "qwen3_5_text_biased": (
        "qwen3_5_text",
        dict(
            DELTA,
            full_attention_interval=2,
            linear_num_key_heads=1,
            linear_num_value_heads=3,
            linear_conv_kernel_dim=2,
            attention_bias=True,
            tie_word_embeddings=True,
        ),
        [13, 11],
    ),
    # Experts in one tensor beside one of all tokens, behind a gate; the loss that balances them.
    "qwen3_5_moe_text": (
        "qwen3_5_moe_text",
        dict(
            DELTA,
            layer_types=["full_attention", "linear_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            num_experts=5,
            num_experts_per_tok=2,
            moe_intermediate_size=8,
            shared_expert_intermediate_size=12,
            output_router_logits=True,
            router_aux_loss_coef=0.5,
            rope_parameters=dict(rope_type="default", rope_theta=1000.0, partial_rotary_factor=0.25),
            tie_word_embeddings=False,
        ),
        [13, 1, 6],
    ),
    # A delta net whose projections lie key head by key head, three value heads on each of two, so that ranks and groups cut them; experts there,
    # and an MLP in the gated full layer before it; the loss that balances them.
    "qwen3_next": (
        "qwen3_next",
        dict(
            DELTA,
            layer_types=["full_attention", "linear_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=6,
            num_experts=5,
            num_experts_per_tok=2,
            moe_intermediate_size=8,
            shared_expert_intermediate_size=12,
            mlp_only_layers=[0],
            output_router_logits=True,
            router_aux_loss_coef=0.5,
            rope_parameters=dict(rope_type="default", rope_theta=1000.0, partial_rotary_factor=0.25),
            tie_word_embeddings=False,
        ),
        [17, 1, 6],
    ),
    # A sliding layer, and full layers with and without rotary embeddings.
    "muse_glimmer_text": (
        "muse_glimmer_text",
        dict(
            BASE,
            hidden_size=24,
            intermediate_size=24,
            num_hidden_layers=3,
            layer_types=["sliding_attention", "full_attention", "full_attention"],
            layer_rope_theta=[1000.0, 1000.0, 0],
            rope_parameters=dict(rope_type="default", rope_theta=1000.0),
            sliding_window=5,
            attention_bias=True,
            qk_scale_factor=1.7,
            output_multiplier=0.7,
            final_logit_softcapping=1.5,
            rms_norm_eps=1e-3,
            post_norm_eps=1e-2,
            tie_word_embeddings=False,
        ),
        [15, 1, 8],
    ),
}

# Found by trying: the gradient of a decay is one sum over all tokens, here one whose terms do not cancel. With most of 40 seeds transformers'
# own single precision is off by more than 3e-6.
# The others as in make_model_golden.py.
SEEDS = {
    "gemma4_text_moe": SEED + 2,
    "minimax_m2": 20261692,
    "qwen3_5_text": 23,
    # With the usual seed transformers' bf16 error in the six numbers of A_log is a third of that in other tensors, by chance.
    "qwen3_next": SEED + 1,
}

# Classes of which only the code of `eager` has sinks.
EAGER_ONLY = ("gpt_oss",)


def build(config, dtype):
    """A model, and what to strip from the names of its text decoder."""
    if config.model_type != "muse_glimmer_text":
        # Loaders know it inside of its multimodal class only.
        make = Mistral4ForCausalLM._from_config if config.model_type == "mistral4" else AutoModelForCausalLM.from_config
        model = make(config, dtype=dtype)
        # Grouped products need wider rows on a CPU, and have no double precision.
        model.set_experts_implementation("eager")
        return model, ""
    whole = AutoConfig.for_model(
        "muse_glimmer",
        text_config=config,
        vision_config=MUSE_VISION,
        out_hidden_size=64,
        projector_hidden_size=16,
        attn_implementation=config._attn_implementation,
    )
    return AutoModelForImageTextToText.from_config(whole, dtype=dtype), "language_model."


def named(model, infix):
    """Parameters of the text decoder, and buffers that a checkpoint holds."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.startswith("lm_head.") or name.startswith("model." + infix):
            if isinstance(value, torch.nn.Parameter) or name.endswith((".layer_scalar", ".e_score_correction_bias")):
                yield name.replace(infix, "", 1) if infix else name, value


def randomize(model, infix, generator):
    """Weights large enough that every path matters, and exact in bf16, so that they are stored in half the space."""
    centered = "model.layers." if infix else "nothing"
    for name, value in named(model, infix):
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("layer_scalar"):
            value_ = 0.7 + 0.2 * noise
        elif model.config.model_type == "gemma4_text" and name.endswith(("q_norm.weight", "k_norm.weight")):
            # Its scores have no scale but these; as large as with one over the root of the head size.
            value_ = 0.6 + 0.2 * noise
        elif name.endswith("router.scale"):
            # What it multiplies is divided by the root of the hidden size.
            value_ = 4 + noise
        elif name.endswith("per_expert_scale"):
            value_ = 1 + 0.3 * noise
        elif name.endswith("A_log"):
            # Some heads remember for a token, some for many.
            value_ = noise - 1.5
        elif name.endswith("conv1d.weight"):
            value_ = 0.5 * noise
        elif model.config.model_type in ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next") and name.endswith("norm.weight") and "linear_attn" not in name:
            value_ = 0.2 * noise
        elif ("norm.weight" in name or "layernorm_" in name) and not name.startswith(centered):
            value_ = 1 + 0.2 * noise
        else:
            value_ = 0.25 * noise
        value.data.copy_(value_.to(torch.bfloat16).float())


def run(model, infix, input_ids, shift_labels, lengths):
    """Logits [s, v], mean loss over labels, gradient of every parameter; of a mixture of experts whose config asks for it also the loss
    that balances them, which the gradients then contain."""
    model.zero_grad()
    num_valid = (shift_labels != -100).sum()
    logits, loss, start = [], 0.0, 0
    routers, losses = [], []
    for length in lengths:
        document = slice(start, start + length)
        start += length
        whole = model(
            input_ids=input_ids[None, document],
            position_ids=torch.arange(length)[None],
            use_cache=False,
        )
        out = whole.logits[0]
        loss_sum = torch.nn.functional.cross_entropy(
            out.float(), shift_labels[document], ignore_index=-100, reduction="sum"
        )
        if getattr(whole, "router_logits", None) is None:
            (loss_sum / num_valid).backward()
        else:
            routers.append(whole.router_logits)
            losses.append(loss_sum / num_valid)
        loss += loss_sum.item() / num_valid.item()
        logits.append(out.detach())
    aux_loss = None
    if routers:
        # Balanced over the batch, as one forward of all documents would be.
        router_logits = tuple(torch.cat(layer) for layer in zip(*routers))
        balance = load_balancing_loss_func(router_logits, model.num_experts, model.num_experts_per_tok)
        aux_loss = model.router_aux_loss_coef * balance
        (sum(losses) + aux_loss).backward()
        aux_loss = aux_loss.item()
    grads = {name: p.grad.detach().clone() for name, p in named(model, infix) if isinstance(p, torch.nn.Parameter)}
    return torch.cat(logits), loss, as_in_checkpoint(grads, model.config.model_type), aux_loss


class DoubleTorch:
    """torch, where single precision is double."""

    float32 = torch.float64
    float = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@contextlib.contextmanager
def in_double(model):
    """The code of the model's class, with every cast to single precision a cast to double."""
    module, to_float = sys.modules[type(model).__module__], torch.Tensor.float
    module.torch, torch.Tensor.float = DoubleTorch(), torch.Tensor.double
    softmax = torch.nn.functional.softmax
    torch.nn.functional.softmax = lambda x, dim, dtype=None: softmax(x, dim)
    try:
        yield
    finally:
        module.torch, torch.Tensor.float, torch.nn.functional.softmax = torch, to_float, softmax


def relative_error(actual, expected):
    if not expected.any() and not actual.any():
        # An expert that no token takes.
        return 0.0
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def make(name, model_type, overrides, lengths):
    generator = torch.Generator().manual_seed(SEEDS.get(name, SEED))
    config = AutoConfig.for_model(model_type, **json.loads(json.dumps(overrides)), attn_implementation="eager")
    model, infix = build(config, torch.float32)
    randomize(model, infix, generator)
    num_tokens = sum(lengths)
    input_ids = torch.randint(0, config.vocab_size, (num_tokens,), generator=generator)
    shift_labels = torch.randint(0, config.vocab_size, (num_tokens,), generator=generator)
    # A prompt without labels, and no label across the end of a document.
    shift_labels[2:5] = -100
    shift_labels[torch.tensor(lengths).cumsum(0) - 1] = -100
    if config.pad_token_id is not None:
        input_ids[7] = config.pad_token_id

    if hasattr(config, "linear_num_key_heads"):
        with in_double(model):
            exact = run(model.double(), infix, input_ids, shift_labels, lengths)
        assert exact[0].dtype == torch.float64
        logits, loss, grads = exact[0].float(), exact[1], {name: grad.float() for name, grad in exact[2].items()}
        aux_loss = exact[3]
    else:
        logits, loss, grads, aux_loss = run(model, infix, input_ids, shift_labels, lengths)
    weights = {name: value.detach().clone() for name, value in named(model, infix)}

    # How far transformers' own bf16 is from its fp32: what a bf16 implementation may be off by.
    half, _ = build(config, torch.bfloat16)
    # Routers of some classes stay in fp32.
    routers = (".gate.weight", ".e_score_correction_bias")
    assert all(value.dtype == torch.bfloat16 or name_.endswith(routers) for name_, value in named(half, infix))
    for name_, value in named(half, infix):
        value.data.copy_(weights[name_])
    if model_type not in EAGER_ONLY:
        half.set_attn_implementation("sdpa")
    half_logits, half_loss, half_grads, half_aux_loss = run(half, infix, input_ids, shift_labels, lengths)
    bf16_errors = {"logits": relative_error(half_logits, logits), "loss": abs(half_loss / loss - 1)}
    bf16_errors |= {name: relative_error(half_grads[name], grads[name]) for name in grads}

    tensors = {name: value.to(torch.bfloat16) for name, value in as_in_checkpoint(weights, model_type).items()}
    tensors |= {f"grad.{name}": value for name, value in grads.items()}
    tensors |= {"logits": logits, "input_ids": input_ids, "shift_labels": shift_labels}
    save_file({name: value.contiguous() for name, value in tensors.items()}, str(OUT / f"{name}.safetensors"))
    record = dict(config=json.loads(config.to_json_string()), lengths=lengths, loss=loss)
    if aux_loss is not None:
        record["aux_loss"] = aux_loss
        bf16_errors["aux_loss"] = abs(half_aux_loss / aux_loss - 1)
    record["bf16_errors"] = bf16_errors
    (OUT / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    size = (OUT / f"{name}.safetensors").stat().st_size
    worst = max(bf16_errors, key=bf16_errors.get)
    print(name, f"loss {loss:.6f}", size, "bytes", f"logits std {logits.std():.2f}", f"worst bf16 {worst} {bf16_errors[worst]:.3f}")
    return config, model, infix, weights, input_ids, lengths, logits


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for case, (model_type, overrides, lengths) in CASES.items():
        if not sys.argv[2:] or case in sys.argv[2:]:
            make(case, model_type, overrides, lengths)
