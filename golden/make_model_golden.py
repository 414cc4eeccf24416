"""Writes what transformers computes for tiny models: logits, loss and every gradient, for crates/sterna-model/tests/it/golden.rs.

Each document of a packed batch is a forward of its own, so that the expected values do not depend on how transformers masks
packed batches. Run with torch 2.11.0 and transformers 4.57.6 on a CPU:

    python golden/make_model_golden.py [CASE ...]

Without a name all cases are written.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import no_init_weights
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

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
# Classes whose norms read another key, or none.
NO_RMS_EPS = {key: value for key, value in BASE.items() if key != "rms_norm_eps"}
TIED = dict(tie_word_embeddings=True)
ONE_LAYER = dict(num_hidden_layers=1)
# One layer of each type, and a window shorter than the first document of each case.
BOTH_TYPES = dict(layer_types=["sliding_attention", "full_attention"], sliding_window=5)
# Heads wider than the hidden size divided by their number.
WIDE_HEADS = dict(head_dim=12)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
# Three pairs of the eight dimensions of a head rotate.
PHI3_LONGROPE = dict(
    BASE,
    num_hidden_layers=1,
    partial_rotary_factor=0.75,
    rope_scaling=dict(type="longrope", short_factor=[1.1, 1.4, 2.3], long_factor=[1.3, 3.1, 9.7]),
)
# Values narrower than keys, and a key of four values that all heads have.
LATENT = dict(
    BASE,
    num_key_value_heads=4,
    intermediate_size=24,
    kv_lora_rank=14,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=6,
    moe_intermediate_size=6,
    n_routed_experts=8,
    num_experts_per_tok=3,
    first_k_dense_replace=1,
    pad_token_id=3,
)
YARN_OF_LATENT = dict(
    type="yarn",
    factor=4.0,
    original_max_position_embeddings=8,
    beta_fast=0.5,
    beta_slow=0.1,
    mscale=1.0,
    mscale_all_dim=0.7,
)
QWEN3_MOE = dict(
    BASE,
    output_router_logits=True,
    router_aux_loss_coef=0.5,
    moe_intermediate_size=8,
    num_experts=6,
    num_experts_per_tok=2,
)
MIXTRAL = dict(
    BASE,
    output_router_logits=True,
    router_aux_loss_coef=0.5,
    intermediate_size=10,
    num_local_experts=5,
    num_experts_per_tok=2,
)

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
    # Norms that multiply by one more than their weight, rows of embeddings times a root, heads of a size of their own, biases.
    "gemma": ("gemma", dict(BASE, **TIED, **WIDE_HEADS, attention_bias=True, pad_token_id=3), [15, 9]),
    # The exact gelu, as configs on the hub have it; the class does not read hidden_activation.
    "gemma_gelu": (
        "gemma",
        dict(BASE, **TIED, **ONE_LAYER, head_dim=8, hidden_act="gelu", hidden_activation="gelu_pytorch_tanh", pad_token_id=None),
        [14, 10],
    ),
    # Softcaps that bite, both layer types, norms before and after each branch, a scale that is not that of the heads.
    "gemma2": (
        "gemma2",
        dict(
            BASE,
            **TIED,
            **BOTH_TYPES,
            **WIDE_HEADS,
            query_pre_attn_scalar=11,
            attn_logit_softcapping=2.1,
            final_logit_softcapping=2.9,
            pad_token_id=3,
        ),
        [17, 7],
    ),
    # No softcap at all.
    "gemma2_uncapped": (
        "gemma2",
        dict(
            BASE,
            **TIED,
            **ONE_LAYER,
            head_dim=8,
            sliding_window=5,
            query_pre_attn_scalar=11,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            pad_token_id=None,
        ),
        [17, 7],
    ),
    # Another base on the layers with a window, and linear scaling on the others only.
    "gemma3_text": (
        "gemma3_text",
        dict(
            BASE,
            **TIED,
            **BOTH_TYPES,
            **WIDE_HEADS,
            query_pre_attn_scalar=11,
            rope_theta=50000.0,
            rope_local_base_freq=300.0,
            rope_scaling=dict(rope_type="linear", factor=3.0),
            final_logit_softcapping=2.9,
            pad_token_id=3,
        ),
        [17, 7],
    ),
    # That of gemma2 without the norms after its branches, and with biases.
    "vaultgemma": (
        "vaultgemma",
        dict(
            BASE,
            **TIED,
            **BOTH_TYPES,
            **WIDE_HEADS,
            attention_bias=True,
            query_pre_attn_scalar=11,
            attn_logit_softcapping=2.1,
            final_logit_softcapping=2.9,
            pad_token_id=3,
        ),
        [17, 7],
    ),
    # Norms without weights; about four in ten of the queries, keys and values are clipped.
    "olmo": ("olmo", dict(NO_RMS_EPS, clip_qkv=1.1, pad_token_id=3), [14, 10]),
    "olmo_unclipped": ("olmo", dict(NO_RMS_EPS, **ONE_LAYER, attention_bias=True, pad_token_id=None), [14, 10]),
    # Norms after the branches only, and one norm over the queries of all heads together.
    "olmo2": ("olmo2", dict(BASE, pad_token_id=3), [14, 10]),
    # Yarn on the full layer only, with its factor on cosines and sines.
    "olmo3": (
        "olmo3",
        dict(
            BASE,
            **BOTH_TYPES,
            max_position_embeddings=64,
            rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
            pad_token_id=3,
        ),
        [17, 7],
    ),
    # Projections in one matrix, a window on every layer.
    "phi3": ("phi3", dict(BASE, sliding_window=5, pad_token_id=3), [17, 7]),
    # All documents longer than the original length, all shorter, so that each has the same factors alone and in a batch.
    "phi3_long": ("phi3", dict(PHI3_LONGROPE, original_max_position_embeddings=8, pad_token_id=None), [14, 10]),
    "phi3_short": ("phi3", dict(PHI3_LONGROPE, original_max_position_embeddings=16, pad_token_id=None), [14, 10]),
    # Branches side by side, norms of mean and variance with a weight for each head, pairs that lie next to each other.
    "cohere": (
        "cohere",
        dict(NO_RMS_EPS, **TIED, layer_norm_eps=1e-5, logit_scale=0.3, use_qk_norm=True, attention_bias=True, pad_token_id=3),
        [14, 10],
    ),
    # The full layer has no rotary embedding. No biases: there that of the keys would have no gradient but noise.
    "cohere2": (
        "cohere2",
        dict(NO_RMS_EPS, **TIED, **BOTH_TYPES, layer_norm_eps=1e-5, logit_scale=0.3, pad_token_id=3),
        [17, 7],
    ),
    # Six of twelve dimensions rotate, in pairs that lie next to each other; no bias on o.
    "glm": ("glm", dict(BASE, **WIDE_HEADS, partial_rotary_factor=0.5, attention_bias=True, pad_token_id=3), [14, 10]),
    # Norms before and after each branch.
    "glm4": (
        "glm4",
        dict(BASE, head_dim=8, partial_rotary_factor=0.75, attention_bias=False, pad_token_id=3),
        [14, 10],
    ),
    # Only the layer with a window rotates.
    "exaone4": ("exaone4", dict(BASE, **BOTH_TYPES, **WIDE_HEADS, pad_token_id=None), [17, 7]),
    # Without a window every layer rotates.
    "exaone4_full": (
        "exaone4",
        dict(BASE, **ONE_LAYER, sliding_window=None, layer_types=["full_attention"], pad_token_id=3),
        [14, 10],
    ),
    "starcoder2": (
        "starcoder2",
        dict(NO_RMS_EPS, **TIED, norm_epsilon=1e-5, sliding_window=5, use_bias=True, pad_token_id=3),
        [17, 7],
    ),
    # The norms keep their biases.
    "starcoder2_unbiased": (
        "starcoder2",
        dict(NO_RMS_EPS, **ONE_LAYER, norm_epsilon=1e-5, use_bias=False, pad_token_id=None),
        [14, 10],
    ),
    # Norms of queries and keys after the rotation.
    "hunyuan_v1_dense": (
        "hunyuan_v1_dense",
        dict(BASE, **WIDE_HEADS, attention_bias=True, pad_token_id=3),
        [14, 10],
    ),
    # The base grows by alpha at every length up to max_position_embeddings.
    "hunyuan_v1_dense_alpha": (
        "hunyuan_v1_dense",
        dict(
            BASE,
            **ONE_LAYER,
            **TIED,
            head_dim=8,
            rope_scaling=dict(type="dynamic", alpha=50.0, factor=1.0),
            pad_token_id=None,
        ),
        [14, 10],
    ),
    # An activation with two parameters of its own in each layer.
    "apertus": ("apertus", dict(BASE, rope_scaling=LLAMA3, pad_token_id=3), [14, 10]),
    "arcee": ("arcee", dict(BASE, attention_bias=True, mlp_bias=True, pad_token_id=3), [14, 10]),
    "ernie4_5": ("ernie4_5", dict(BASE, **TIED, **WIDE_HEADS, use_bias=True, pad_token_id=3), [14, 10]),
    "helium": ("helium", dict(BASE, head_dim=8, attention_bias=True, mlp_bias=True, pad_token_id=3), [14, 10]),
    "nemotron": (
        "nemotron",
        dict(
            NO_RMS_EPS,
            **WIDE_HEADS,
            norm_eps=1e-5,
            partial_rotary_factor=0.5,
            attention_bias=True,
            mlp_bias=True,
            pad_token_id=3,
        ),
        [14, 10],
    ),
    "stablelm": (
        "stablelm",
        dict(NO_RMS_EPS, layer_norm_eps=1e-5, partial_rotary_factor=0.75, pad_token_id=3),
        [14, 10],
    ),
    # Branches side by side; a norm for each head.
    "stablelm_parallel": (
        "stablelm",
        dict(
            NO_RMS_EPS,
            layer_norm_eps=1e-5,
            partial_rotary_factor=0.25,
            use_parallel_residual=True,
            qk_layernorm=True,
            use_qkv_bias=True,
            pad_token_id=None,
        ),
        [14, 10],
    ),
    "qwen3_moe": ("qwen3_moe", dict(QWEN3_MOE, norm_topk_prob=True, pad_token_id=3), [10, 6]),
    # The weights of a token's experts do not add up to one.
    "qwen3_moe_unnormed": (
        "qwen3_moe",
        dict(QWEN3_MOE, **ONE_LAYER, norm_topk_prob=False, pad_token_id=None),
        [10, 6],
    ),
    # A layer without experts, which has no router logits to balance.
    "qwen3_moe_dense": (
        "qwen3_moe",
        dict(QWEN3_MOE, norm_topk_prob=False, mlp_only_layers=[0], pad_token_id=3),
        [10, 6],
    ),
    # Norms over all heads.
    "olmoe": ("olmoe", dict(QWEN3_MOE, intermediate_size=8, attention_bias=True, pad_token_id=3), [10, 6]),
    # A shared expert behind a gate in the second layer, an MLP in the first; query, key and value biases.
    "qwen2_moe": (
        "qwen2_moe",
        dict(QWEN3_MOE, shared_expert_intermediate_size=12, mlp_only_layers=[0], pad_token_id=3),
        [10, 6],
    ),
    # Two of four groups of experts may be chosen, which a bias decides; weights over their sum and a factor; a shared expert in the second
    # layer, an MLP in the first; half of a head rotates.
    "glm4_moe": (
        "glm4_moe",
        dict(
            BASE,
            moe_intermediate_size=6,
            n_routed_experts=8,
            num_experts_per_tok=3,
            n_group=4,
            topk_group=2,
            n_shared_experts=2,
            routed_scaling_factor=1.7,
            head_dim=8,
            attention_bias=True,
            use_qk_norm=True,
            pad_token_id=3,
        ),
        [10, 6],
    ),
    # Latents of queries and of keys and values; heads of 12 and 6; biases; yarn with a magnitude, which cosines have in part. Experts as
    # those of glm4_moe in the second layer.
    "deepseek_v3": (
        "deepseek_v3",
        dict(
            LATENT,
            q_lora_rank=10,
            attention_bias=True,
            rope_scaling=YARN_OF_LATENT,
            n_group=4,
            topk_group=2,
            n_shared_experts=2,
            routed_scaling_factor=1.7,
        ),
        [10, 6],
    ),
    # Queries without a latent, halves of what turns in place of neighbours.
    "deepseek_v3_halves": (
        "deepseek_v3",
        dict(
            LATENT,
            **ONE_LAYER,
            **TIED,
            first_k_dense_replace=1,
            q_lora_rank=None,
            rope_interleave=False,
            n_group=1,
            topk_group=1,
        ),
        [10, 6],
    ),
    # Queries without a latent, experts in all layers, the two of the largest probabilities.
    "deepseek_v2_lite": (
        "deepseek_v2",
        dict(
            LATENT,
            **ONE_LAYER,
            first_k_dense_replace=0,
            q_lora_rank=None,
            n_routed_experts=5,
            num_experts_per_tok=2,
            n_shared_experts=1,
            routed_scaling_factor=1.7,
        ),
        [10, 6],
    ),
    # Scores as they are, without groups.
    "dots1": (
        "dots1",
        dict(
            BASE,
            moe_intermediate_size=6,
            n_routed_experts=5,
            num_experts_per_tok=2,
            n_shared_experts=1,
            routed_scaling_factor=0.6,
            norm_topk_prob=False,
            attention_bias=True,
            sliding_window=5,
            max_window_layers=1,
            pad_token_id=3,
        ),
        [10, 6],
    ),
    # A bias for the choice, and a shared expert.
    "ernie4_5_moe": (
        "ernie4_5_moe",
        dict(
            BASE,
            **TIED,
            intermediate_size=12,
            output_router_logits=True,
            router_aux_loss_coef=0.5,
            moe_intermediate_size=5,
            moe_num_experts=5,
            moe_k=2,
            moe_num_shared_experts=2,
            moe_layer_start_index=1,
            pad_token_id=3,
        ),
        [10, 6],
    ),
    "hunyuan_v1_moe": (
        "hunyuan_v1_moe",
        dict(BASE, intermediate_size=8, head_dim=8, num_experts=5, moe_topk=2, attention_bias=True, pad_token_id=3),
        [10, 6],
    ),
    # Experts in one tensor; four multipliers.
    "granitemoe": (
        "granitemoe",
        dict(
            MIXTRAL,
            embedding_multiplier=6.0,
            residual_multiplier=0.22,
            attention_multiplier=0.3,
            logits_scaling=3.0,
            attention_bias=True,
            pad_token_id=3,
        ),
        [10, 6],
    ),
    "mixtral": ("mixtral", dict(MIXTRAL, sliding_window=5, pad_token_id=3), [10, 6]),
    # No token chooses one of the experts.
    "mixtral_idle": (
        "mixtral",
        dict(MIXTRAL, **ONE_LAYER, num_local_experts=6, sliding_window=None, pad_token_id=None),
        [8, 5],
    ),
}

# Classes whose norms multiply by one more than their weight.
NORMS_OF_ONE_MORE = ("gemma", "gemma2", "gemma3_text", "nemotron", "vaultgemma")
# Scores that are capped: sdpa would leave the cap out.
EAGER_ONLY = ("gemma2", "vaultgemma")
# Found by trying: here a token's second and third choice of experts are too far apart (0.14 in their logits) for bf16 to swap them.
SEEDS = {
    # With the usual seed transformers' own bf16 errors are a third smaller than with six others.
    "ernie4_5": 11,
    "ernie4_5_moe": 20261217,
    "hunyuan_v1_moe": 20261149,
    "dots1": 20261462,
    "glm4_moe": 20261220,
    "granitemoe": 20261169,
    "qwen3_moe": 20263093,
    "qwen3_moe_unnormed": 20261639,
    "qwen3_moe_dense": 20262359,
    "mixtral": 20265350,
    "olmoe": 20261983,
    "qwen2_moe": 20262297,
    "mixtral_idle": 20262085,
}


def randomize(model, generator):
    """Weights large enough that every path matters, and exact in bf16, so that they are stored in half the space."""
    centre = 0 if model.config.model_type in NORMS_OF_ONE_MORE else 1
    for name, param in model.named_parameters():
        noise = torch.randn(param.shape, generator=generator)
        if "norm" in name and name.endswith(".weight"):
            value = centre + 0.2 * noise
        elif name.endswith("e_score_correction_bias"):
            continue
        elif ".act_fn." in name:
            # The parameters of an activation stay near to where its class begins.
            value = param.data + 0.2 * noise
        else:
            value = 0.25 * noise
        param.data.copy_(value.to(torch.bfloat16).float())
    for _, bias in correction_biases(model):
        bias.data.copy_((0.2 * torch.randn(bias.shape, generator=generator)).to(torch.bfloat16).float())


def correction_biases(model):
    """What is added to scores for the choice of experts alone, by name."""
    return [(name, value) for name, value in model.state_dict().items() if name.endswith("e_score_correction_bias")]


def new_model(config, attn_implementation):
    # Every parameter is set here; and stablelm's own initialization fails at norms without biases.
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)
    model.tie_weights()
    return model


def choices_of(router_logits, config):
    """The experts of each token; their order has no effect."""
    k = getattr(config, "moe_k", None) or getattr(config, "num_experts_per_tok", None)
    return [logits.topk(k).indices.sort().values for logits in router_logits]


def run(model, input_ids, shift_labels, lengths):
    """Logits [s, v], mean loss over labels, gradient of every parameter; of a mixture of experts also the loss that balances
    them, which the gradients then contain, and the router's logits of each layer."""
    model.zero_grad()
    num_valid = (shift_labels != -100).sum()
    logits, loss, start = [], 0.0, 0
    routers, losses = [], []
    for length in lengths:
        document = slice(start, start + length)
        start += length
        out = model(
            input_ids=input_ids[None, document],
            position_ids=torch.arange(length)[None],
            use_cache=False,
        )
        logits.append(out.logits[0].detach())
        loss_sum = torch.nn.functional.cross_entropy(
            out.logits[0].float(), shift_labels[document], ignore_index=-100, reduction="sum"
        )
        loss += loss_sum.item() / num_valid.item()
        if getattr(out, "router_logits", None) is None:
            (loss_sum / num_valid).backward()
        else:
            routers.append(out.router_logits)
            losses.append(loss_sum / num_valid)
    aux_loss, router_logits = None, ()
    if routers:
        # Balanced over the batch, as one forward of all documents would be.
        router_logits = tuple(torch.cat(layer) for layer in zip(*routers))
        balance = load_balancing_loss_func(router_logits, model.num_experts, model.num_experts_per_tok)
        aux_loss = model.router_aux_loss_coef * balance
        (sum(losses) + aux_loss).backward()
        aux_loss = aux_loss.item()
    # An expert that no token chose has no gradient.
    grads = {
        name: torch.zeros_like(param) if param.grad is None else param.grad.detach().clone()
        for name, param in model.named_parameters()
        if param.requires_grad
    }
    return torch.cat(logits), loss, grads, aux_loss, router_logits


def relative_error(actual, expected):
    if not expected.any() and not actual.any():
        return 0.0
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def make(name, model_type, overrides, lengths):
    generator = torch.Generator().manual_seed(SEEDS.get(name, SEED))
    config = AutoConfig.for_model(model_type, **overrides, attn_implementation="eager")
    model = new_model(config, "eager").float()
    randomize(model, generator)
    num_tokens = sum(lengths)
    input_ids = torch.randint(0, config.vocab_size, (num_tokens,), generator=generator)
    shift_labels = torch.randint(0, config.vocab_size, (num_tokens,), generator=generator)
    # A prompt without labels, and no label across the end of a document.
    shift_labels[2:5] = -100
    shift_labels[torch.tensor(lengths).cumsum(0) - 1] = -100
    if config.pad_token_id is not None:
        input_ids[7] = config.pad_token_id

    logits, loss, grads, aux_loss, router_logits = run(model, input_ids, shift_labels, lengths)
    weights = {name: param.detach().clone() for name, param in [*model.named_parameters(), *correction_biases(model)]}

    # How far transformers' own bf16 is from its fp32: what a bf16 implementation may be off by.
    half = new_model(config, "eager" if model_type in EAGER_ONLY else "sdpa").to(torch.bfloat16)
    if model_type == "ernie4_5_moe":
        # As from_pretrained has it.
        for key, module in half.named_modules():
            if key.endswith((".gate", ".moe_statics")):
                module.float()
    for key, value in half.state_dict().items():
        if key in weights:
            value.copy_(weights[key])
    half_logits, half_loss, half_grads, half_aux_loss, half_router_logits = run(half, input_ids, shift_labels, lengths)
    bf16_errors = {"logits": relative_error(half_logits, logits), "loss": abs(half_loss / loss - 1)}
    bf16_errors |= {name: relative_error(half_grads[name], grads[name]) for name in grads}
    record = dict(config=json.loads(config.to_json_string()), lengths=lengths, loss=loss)
    if aux_loss is not None:
        record["aux_loss"] = aux_loss
        bf16_errors["aux_loss"] = abs(half_aux_loss / aux_loss - 1)
    choices, half_choices = (choices_of(each, config) for each in (router_logits, half_router_logits))
    if all(torch.equal(*pair) for pair in zip(choices, half_choices)):
        record["bf16_errors"] = bf16_errors
    else:
        # A token went to other experts: its outputs are as different as they can be.
        record["bf16"] = False

    tensors = {name: value.to(torch.bfloat16) for name, value in weights.items()}
    tensors |= {f"grad.{name}": value for name, value in grads.items()}
    tensors |= {"logits": logits, "input_ids": input_ids, "shift_labels": shift_labels}
    save_file({name: value.contiguous() for name, value in tensors.items()}, OUT / f"{name}.safetensors")
    (OUT / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(name, f"loss {loss:.6f}", (OUT / f"{name}.safetensors").stat().st_size, "bytes")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for case in sys.argv[1:] or CASES:
        make(case, *CASES[case])
