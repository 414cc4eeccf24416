"""Writes what transformers gets from three steps of AdamW on chats, for a tiny model of every family, into
crates/sterna-train/tests/fixtures/families: a folder `data` with a tokenizer and chats, and a folder for each family with

- config.json and model.safetensors: where training begins, in bf16, which holds these weights exactly;
- final.safetensors: the parameters after three steps, less those before, in fp32;
- expected.json: the losses and the norms of the gradients of the three steps, and logits of the trained model; of a mixture of experts
  also the losses and norms of a training with the auxiliary loss, which weighs as much as a chat's labels do.

Every step sees all chats, each in a forward of its own, in fp32. Its loss is the mean over all labels. The same steps are done in
fp64, and in fp32 in another order, to see which numbers fp32 can say at all. Run with torch 2.11.0 on a CPU, once with transformers
4.57.6 and once with 5.24.0, each of which makes the families that it has first:

    OMP_NUM_THREADS=1 python golden/make_family_steps.py [FAMILY ...]

Without a name all families of this transformers are written.
"""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from checkpoint_names import as_in_checkpoint
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

assert torch.__version__.startswith("2.11.0"), torch.__version__
assert transformers.__version__ in ("4.57.6", "5.24.0"), transformers.__version__

if transformers.__version__ == "5.24.0":
    from transformers.models.mistral4 import Mistral4ForCausalLM

SEED = 20261121
OUT = Path(__file__).resolve().parent.parent / "crates/sterna-train/tests/fixtures/families"

NUM_STEPS = 3
LR = 3e-3
BETAS = (0.9, 0.95)
EPS = 1e-8
WEIGHT_DECAY = 0.1
# Large enough to matter.
ROUTER_AUX_LOSS_COEF = 0.2
# What exempts a parameter from it, in its lower-cased name.
NO_DECAY = ("bias", "layer_norm.weight", "layernorm.weight", "norm.weight", "ln_f.weight")
# Tensors whose change differs by more between fp32 and fp64 are named in expected.json.
NOISE = 5e-4

FP32 = torch.float32

# ---------------------------------------------------------------------------------------------------------------------------- data

SPECIALS = ["<|im_start|>", "<|im_end|>", "<unk>"]
VOCABULARY = SPECIALS + [chr(byte) for byte in range(ord(" "), ord("~") + 1)] + ["\n"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
)
# The same, with the spans that are labels: what the assistant wrote, and the special token that ends its turn.
TEMPLATE_WITH_SPANS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}"
)
CHATS = [
    [("user", "Where is Oslo?"), ("assistant", "In Norway.")],
    [("user", "Name a star."), ("assistant", "Vega."), ("user", "How far is it?"), ("assistant", "25 light-years.")],
    [("user", "Is 91 a prime number?"), ("assistant", "No: 91 = 7 * 13.")],
    # The last word is the user's, and is no label.
    [("user", "How long do eggs boil?"), ("assistant", "9 minutes."), ("user", "Thanks!")],
    [("user", "Two words for snow?"), ("assistant", "1. powder\n2. wet slush")],
]


def write_data(folder):
    added = [
        dict(id=id_, content=text, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        for id_, text in enumerate(SPECIALS)
    ]
    tokenizer = dict(
        version="1.0",
        truncation=None,
        padding=None,
        added_tokens=added,
        normalizer=None,
        pre_tokenizer=dict(type="Split", pattern=dict(Regex=r"[\s\S]"), behavior="Isolated", invert=False),
        post_processor=None,
        decoder=None,
        model=dict(type="WordLevel", vocab={token: id_ for id_, token in enumerate(VOCABULARY)}, unk_token="<unk>"),
    )
    config = dict(
        tokenizer_class="PreTrainedTokenizerFast",
        eos_token="<|im_end|>",
        pad_token="<unk>",
        chat_template=TEMPLATE,
    )
    folder.mkdir(parents=True, exist_ok=True)
    compact = dict(separators=(",", ":"))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, **compact))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, **compact))
    rows = [dict(messages=messages_of(chat)) for chat in CHATS]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def messages_of(chat):
    return [dict(role=role, content=content) for role, content in chat]


def read_data(folder):
    """(tokens, which of them are labels) for each chat."""
    ids = {token: id_ for id_, token in enumerate(VOCABULARY)}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = []
    for chat in CHATS:
        tokens, is_label = [], []
        for role, content in chat:
            written = [ids[char] for char in content]
            tokens += [0, *(ids[char] for char in role + "\n"), *written, 1, ids["\n"]]
            # The exact mask of crates/sterna-data/src/label_mask: a reply and the special tokens that close its turn, and so not the
            # newline behind them.
            is_trained = role == "assistant"
            is_label += [False] * (2 + len(role)) + [is_trained] * (len(content) + 1) + [False]
        spans = tokenizer.apply_chat_template(
            messages_of(chat), chat_template=TEMPLATE_WITH_SPANS, return_assistant_tokens_mask=True, return_dict=True
        )
        assert spans["input_ids"] == tokens and [bool(bit) for bit in spans["assistant_masks"]] == is_label
        rendered = tokenizer.apply_chat_template(messages_of(chat), tokenize=False)
        assert tokenizer(rendered, add_special_tokens=False)["input_ids"] == tokens and 2 not in tokens
        # The token at t predicts the one at t + 1; the last predicts none.
        labels = [token if is_label else -100 for token, is_label in zip(tokens, is_label)][1:] + [-100]
        data.append((torch.tensor(tokens), torch.tensor(labels)))
    return data


# ------------------------------------------------------------------------------------------------------------------------- families

BASE = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    # One more row than there are tokens.
    vocab_size=len(VOCABULARY) + 1,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    rope_theta=500.0,
    tie_word_embeddings=False,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)


def without(base, *keys):
    return {key: value for key, value in base.items() if key not in keys}


# Classes whose norms read another key, or none.
NO_RMS_EPS = without(BASE, "rms_norm_eps")
TIED = dict(tie_word_embeddings=True)
NO_PAD = dict(pad_token_id=None)
# Heads wider than the hidden size divided by their number.
WIDE = dict(head_dim=8)
BOTH_TYPES = dict(layer_types=["sliding_attention", "full_attention"], sliding_window=7)
# The second layer only has a window.
SECOND_SLIDES = dict(use_sliding_window=True, sliding_window=7, max_window_layers=1)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)

# Other models of a family, beside that of its name.
VARIANTS = {"gemma4_text_moe": "gemma4_text"}

# model_type, or a variant -> config
# Few heads and sizes of latents, and experts in the second layer.
LATENT = dict(
    num_key_value_heads=4,
    kv_lora_rank=6,
    qk_nope_head_dim=4,
    qk_rope_head_dim=4,
    v_head_dim=6,
    moe_intermediate_size=4,
    n_routed_experts=5,
    num_experts_per_tok=2,
    n_shared_experts=2,
    routed_scaling_factor=1.7,
)
FAMILIES_4 = {
    # An activation with two parameters of its own and two buffers in each layer.
    "apertus": dict(BASE, **WIDE, attention_bias=True, rope_scaling=LLAMA3),
    "arcee": dict(BASE, attention_bias=True, mlp_bias=True),
    "cohere": dict(NO_RMS_EPS, **TIED, layer_norm_eps=1e-5, logit_scale=0.7, use_qk_norm=True, attention_bias=True),
    # The full layer has no rotary embedding, and so no biases: that of its keys would have no gradient.
    "cohere2": dict(NO_RMS_EPS, **TIED, **WIDE, **BOTH_TYPES, layer_norm_eps=1e-5, logit_scale=0.7),
    "ernie4_5": dict(BASE, **TIED, **WIDE, use_bias=True),
    "exaone4": dict(BASE, **WIDE, **BOTH_TYPES, **NO_PAD),
    "gemma": dict(BASE, **TIED, **WIDE, attention_bias=True),
    "gemma2": dict(
        BASE,
        **TIED,
        **WIDE,
        **BOTH_TYPES,
        query_pre_attn_scalar=11,
        attn_logit_softcapping=2.1,
        final_logit_softcapping=2.9,
        **NO_PAD,
    ),
    # Another base on the layer with a window, and linear scaling on the other only.
    "gemma3_text": dict(
        BASE,
        **TIED,
        **WIDE,
        **BOTH_TYPES,
        query_pre_attn_scalar=11,
        rope_local_base_freq=50.0,
        rope_scaling=dict(rope_type="linear", factor=3.0),
        final_logit_softcapping=2.9,
    ),
    # Half of a head rotates; a bias on its other half moves no probability.
    "glm": dict(BASE, **WIDE, partial_rotary_factor=0.5, attention_bias=True),
    "glm4": dict(BASE, **WIDE, partial_rotary_factor=0.75, attention_bias=False),
    "granite": dict(
        BASE,
        **TIED,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.3,
        logits_scaling=1.7,
        attention_bias=True,
        mlp_bias=True,
    ),
    # Its class takes no wider heads.
    "helium": dict(BASE, head_dim=4, attention_bias=True, mlp_bias=True),
    # The base grows by alpha at every length.
    "hunyuan_v1_dense": dict(
        BASE, **WIDE, attention_bias=True, rope_scaling=dict(type="dynamic", alpha=50.0, factor=1.0)
    ),
    "llama": dict(BASE, **WIDE, attention_bias=True, mlp_bias=True, rope_scaling=LLAMA3, **NO_PAD),
    "mistral": dict(BASE, **WIDE, sliding_window=7, **NO_PAD),
    "nemotron": dict(NO_RMS_EPS, **WIDE, norm_eps=1e-5, partial_rotary_factor=0.5, attention_bias=True, mlp_bias=True),
    # No norm has a weight. About a quarter of the queries, keys and values are clipped.
    "olmo": dict(NO_RMS_EPS, **WIDE, clip_qkv=1.1, attention_bias=True),
    "olmo2": dict(BASE, **WIDE, attention_bias=True),
    # Yarn on the full layer only, with its factor on cosines and sines.
    "olmo3": dict(
        BASE,
        **WIDE,
        **BOTH_TYPES,
        rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    ),
    # Every chat is longer than the original length. Its class counts the factors by the hidden size over the number of heads.
    "phi3": dict(
        BASE,
        **TIED,
        hidden_size=32,
        intermediate_size=12,
        sliding_window=7,
        partial_rotary_factor=0.75,
        original_max_position_embeddings=16,
        rope_scaling=dict(type="longrope", short_factor=[1.1, 1.4, 2.3], long_factor=[1.3, 3.1, 9.7]),
    ),
    "qwen2": dict(BASE, **WIDE, **SECOND_SLIDES, **NO_PAD),
    "qwen3": dict(BASE, **WIDE, **SECOND_SLIDES, **TIED, attention_bias=True),
    "seed_oss": dict(
        BASE, **WIDE, attention_bias=True, attention_out_bias=True, mlp_bias=True, attention_dropout=0.0, residual_dropout=0.0
    ),
    # The layer without rotary embedding has the window.
    "smollm3": dict(BASE, **TIED, **WIDE, no_rope_layers=[1, 0], use_sliding_window=True, sliding_window=7, mlp_bias=True),
    # Branches side by side. Its class takes no wider heads, and four dimensions of each rotate.
    "stablelm": dict(
        NO_RMS_EPS,
        **TIED,
        hidden_size=32,
        intermediate_size=10,
        layer_norm_eps=1e-5,
        partial_rotary_factor=0.5,
        use_parallel_residual=True,
        use_qkv_bias=True,
    ),
    "starcoder2": dict(NO_RMS_EPS, **TIED, **WIDE, norm_epsilon=1e-5, sliding_window=7, use_bias=True),
    "vaultgemma": dict(
        BASE,
        **TIED,
        **WIDE,
        **BOTH_TYPES,
        attention_bias=True,
        query_pre_attn_scalar=11,
        attn_logit_softcapping=2.1,
        final_logit_softcapping=2.9,
    ),
    # The first layer has no experts.
    "qwen3_moe": dict(
        BASE,
        head_dim=4,
        num_hidden_layers=3,
        moe_intermediate_size=6,
        num_experts=5,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        mlp_only_layers=[0],
    ),
    "olmoe": dict(BASE, intermediate_size=6, num_experts=5, num_experts_per_tok=2, attention_bias=True),
    # The first layer has no experts.
    "qwen2_moe": dict(
        BASE,
        moe_intermediate_size=6,
        shared_expert_intermediate_size=10,
        num_experts=5,
        num_experts_per_tok=2,
        norm_topk_prob=False,
        mlp_only_layers=[0],
        **NO_PAD,
    ),
    # The first layer has no experts. Two of four groups of experts may be chosen.
    "glm4_moe": dict(
        BASE,
        **WIDE,
        moe_intermediate_size=4,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        n_shared_experts=2,
        routed_scaling_factor=1.7,
        attention_bias=True,
        use_qk_norm=True,
    ),
    # Queries without a latent. The first layer has no experts.
    "deepseek_v2": dict({**BASE, **LATENT}, q_lora_rank=None, n_routed_experts=4, first_k_dense_replace=1),
    # Latents of queries and of keys and values, values narrower than keys; yarn with a magnitude. The first layer has no experts.
    "deepseek_v3": dict(
        {**BASE, **LATENT},
        q_lora_rank=8,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        attention_bias=True,
        rope_scaling=dict(
            type="yarn",
            factor=4.0,
            original_max_position_embeddings=32,
            beta_fast=0.5,
            beta_slow=0.1,
            mscale=1.0,
            mscale_all_dim=0.7,
        ),
    ),
    # A window in the second layer.
    "dots1": dict(
        BASE,
        moe_intermediate_size=6,
        n_routed_experts=5,
        num_experts_per_tok=2,
        n_shared_experts=1,
        routed_scaling_factor=0.6,
        attention_bias=True,
        sliding_window=7,
        max_window_layers=1,
        **NO_PAD,
    ),
    # The first layer has no experts.
    "ernie4_5_moe": dict(
        BASE,
        **TIED,
        **WIDE,
        moe_intermediate_size=5,
        moe_num_experts=5,
        moe_k=2,
        moe_num_shared_experts=1,
    ),
    "hunyuan_v1_moe": dict(BASE, **WIDE, intermediate_size=6, num_experts=5, moe_topk=2),
    # Experts in one tensor.
    "granitemoe": dict(
        BASE,
        **TIED,
        intermediate_size=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.3,
        logits_scaling=1.7,
        attention_bias=True,
    ),
    # A delta net and a gated full layer; what the first token of a document reads is small, hence the eps. The first layer has no experts.
    "qwen3_next": dict(
        without(BASE, "rms_norm_eps"),
        **WIDE,
        rms_norm_eps=1e-2,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=6,
        linear_value_head_dim=4,
        partial_rotary_factor=0.5,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=5,
        shared_expert_intermediate_size=6,
        mlp_only_layers=[0],
    ),
    "mixtral": dict(
        BASE, head_dim=4, intermediate_size=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=7, **NO_PAD
    ),
}

BASE_5 = without(BASE, "rope_theta")
# A delta net and a gated full layer; what the first token of a document reads is small, hence the eps.
DELTA_5 = dict(
    without(BASE_5, "rms_norm_eps"),
    **WIDE,
    rms_norm_eps=1e-2,
    layer_types=["linear_attention", "full_attention"],
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=6,
    linear_value_head_dim=4,
    rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5),
)
FAMILIES_5 = {
    # Values as wide as keys. The first layer has no experts.
    "glm4_moe_lite": dict(
        {**BASE, **LATENT}, q_lora_rank=8, v_head_dim=8, mlp_layer_types=["dense", "sparse"], attention_bias=True
    ),
    # The scale of the queries takes six values in the longest chat. With mscale beside a smaller mscale_all_dim, cosine and sine are
    # scaled too.
    "ministral3": dict(
        BASE_5,
        **WIDE,
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=100.0,
            factor=4.0,
            original_max_position_embeddings=16,
            max_position_embeddings=128,
            beta_fast=0.5,
            beta_slow=0.1,
            mscale=1.0,
            mscale_all_dim=0.5,
            llama_4_scaling_beta=0.3,
        ),
    ),
    # On the full layer, wider heads, one of them for keys, which are also the values, and rotary embeddings on a quarter of a head.
    "gemma4_text": dict(
        BASE_5,
        **TIED,
        **WIDE,
        num_hidden_layers=3,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        sliding_window=7,
        global_head_dim=16,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=BASE["vocab_size"],
        final_logit_softcapping=2.5,
        rope_parameters=dict(
            sliding_attention=dict(rope_type="default", rope_theta=1000.0),
            full_attention=dict(rope_type="proportional", partial_rotary_factor=0.25, rope_theta=100.0),
        ),
        use_bidirectional_attention="vision",
    ),
    # The scale of the queries takes several values. The first layer has no experts.
    "mistral4": dict(
        {**BASE_5, **LATENT},
        q_lora_rank=8,
        first_k_dense_replace=1,
        n_routed_experts=4,
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=500.0,
            factor=4.0,
            original_max_position_embeddings=16,
            beta_fast=0.5,
            beta_slow=0.1,
            mscale=1.0,
            mscale_all_dim=0.7,
            llama_4_scaling_beta=0.3,
        ),
    ),
    # Experts beside the MLP, each with norms of its own.
    "gemma4_text_moe": dict(
        BASE_5,
        **TIED,
        **WIDE,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=7,
        global_head_dim=8,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=BASE["vocab_size"],
        enable_moe_block=True,
        num_experts=3,
        top_k_experts=2,
        moe_intermediate_size=5,
        rope_parameters=dict(
            sliding_attention=dict(rope_type="default", rope_theta=1000.0),
            full_attention=dict(rope_type="proportional", partial_rotary_factor=0.5, rope_theta=100.0),
        ),
    ),
    # Sinks, a window in the first layer, yarn without truncation; experts with biases whose activation is clamped.
    "gpt_oss": dict(
        BASE_5,
        **WIDE,
        intermediate_size=6,
        sliding_window=7,
        num_local_experts=4,
        num_experts_per_tok=2,
        swiglu_limit=1.5,
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=500.0,
            factor=4.0,
            beta_fast=0.7,
            beta_slow=0.1,
            truncate=False,
            original_max_position_embeddings=32,
        ),
        **NO_PAD,
    ),
    # Half of a head rotates.
    "minimax_m2": dict(
        BASE_5, **WIDE, intermediate_size=6, num_local_experts=5, num_experts_per_tok=2, rotary_dim=4, **NO_PAD
    ),
    "qwen3_5_text": DELTA_5,
    # The same with experts in one tensor.
    "qwen3_5_moe_text": dict(
        DELTA_5, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=6, shared_expert_intermediate_size=8
    ),
    # A sliding layer, and full layers with and without rotary embeddings.
    "muse_glimmer_text": dict(
        BASE_5,
        head_dim=4,
        num_hidden_layers=3,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        layer_rope_theta=[500.0, 500.0, 0],
        rope_parameters=dict(rope_type="default", rope_theta=500.0),
        sliding_window=7,
        attention_bias=True,
        qk_scale_factor=1.7,
        output_multiplier=0.7,
        final_logit_softcapping=1.5,
        post_norm_eps=1e-2,
    ),
}
FAMILIES = FAMILIES_4 if transformers.__version__ == "4.57.6" else FAMILIES_5

# What the multimodal class of Muse Glimmer needs beside the text: never run.
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
# Classes whose norms multiply by one more than their weight; of Muse Glimmer those inside layers, of Qwen 3.5 all but those of delta nets.
NORMS_OF_ONE_MORE = ("gemma", "gemma2", "gemma3_text", "nemotron", "vaultgemma")
# Found by trying: draws of weights with which no gradient is as small as fp32's errors by chance, and, for a mixture of experts, a
# token's last choice and the next expert are 1e-3 apart in their scores.
SEEDS = {
    "cohere2": SEED + 2,
    "deepseek_v2": SEED + 17,
    "deepseek_v3": SEED + 381,
    "dots1": SEED + 14,
    "ernie4_5_moe": SEED + 21,
    "ernie4_5": SEED + 1,
    "gemma4_text": SEED + 1,
    # Of sixty seeds none has more than 5.3e-4.
    "gemma4_text_moe": SEED + 59,
    "glm4_moe": SEED + 16,
    "glm4_moe_lite": SEED + 59,
    "gpt_oss": SEED + 10,
    "granitemoe": SEED + 7,
    "hunyuan_v1_moe": SEED + 25,
    "minimax_m2": SEED + 14,
    "mistral4": SEED + 20,
    "mixtral": SEED + 24,
    "olmo": SEED + 1,
    "olmoe": SEED + 6,
    "phi3": SEED + 4,
    "qwen2_moe": SEED + 23,
    # Of forty seeds none has more than 2.5e-4.
    "qwen3_5_moe_text": SEED,
    "qwen3_moe": SEED + 7,
    # Of sixty seeds none has more than 6.8e-4.
    "qwen3_next": SEED + 51,
    "stablelm": SEED + 1,
}


class Decoder:
    """A model of transformers, with the names that its tensors have in a checkpoint of its text alone."""

    def __init__(self, config, dtype):
        self.infix = ""
        make, whole = AutoModelForCausalLM, config
        if config.model_type == "muse_glimmer_text":
            # It has no class for text alone.
            make, self.infix = AutoModelForImageTextToText, "language_model."
            whole = AutoConfig.for_model(
                "muse_glimmer",
                text_config=config,
                vision_config=MUSE_VISION,
                out_hidden_size=64,
                projector_hidden_size=16,
                attn_implementation=config._attn_implementation,
            )
        self.config = config
        # Loaders know it inside of its multimodal class only.
        new = Mistral4ForCausalLM._from_config if config.model_type == "mistral4" else make.from_config
        self.model = new(whole, dtype=dtype, attn_implementation="eager").eval()
        if hasattr(self.model, "set_experts_implementation"):
            # Grouped products need wider rows on a CPU.
            self.model.set_experts_implementation("eager")
        for name, buffer in self.model.named_buffers():
            # Those of Apertus are made in bf16, and are read from the checkpoint.
            assert not buffer.is_floating_point() or buffer.dtype == dtype or ".act_fn." in name, (name, buffer.dtype)
        self.model.to(dtype)

    def _named(self, tensors):
        for name, value in tensors:
            if name.startswith(("lm_head.", "model." + self.infix)):
                yield (name.replace(self.infix, "", 1) if self.infix else name), value

    def params(self):
        return {name: param for name, param in self._named(self.model.named_parameters()) if param.requires_grad}

    def tensors(self):
        """Parameters, and what else a checkpoint holds."""
        in_checkpoint = self.model.state_dict().keys()
        others = [*self.model.named_buffers(), *((n, p) for n, p in self.model.named_parameters() if not p.requires_grad)]
        others = dict(self._named((name, value) for name, value in others if name in in_checkpoint))
        return self._in_checkpoint(self.params() | others)

    def trained(self):
        """Parameters, by the names of a checkpoint."""
        return self._in_checkpoint(self.params())

    def _in_checkpoint(self, tensors):
        return as_in_checkpoint({name: value.data for name, value in tensors.items()}, self.config.model_type)

    def load(self, tensors):
        own = self.tensors()
        assert own.keys() == tensors.keys(), own.keys() ^ tensors.keys()
        for name, value in own.items():
            value.copy_(tensors[name])

    def logits(self, input_ids, **kwargs):
        return self.model(input_ids=input_ids, use_cache=False, **kwargs).logits

    def balance(self, input_ids):
        """The auxiliary loss, times its coefficient."""
        out = self.model(input_ids=input_ids, use_cache=False, output_router_logits=True)
        num_experts, top_k = self.model.num_experts, self.model.num_experts_per_tok
        return ROUTER_AUX_LOSS_COEF * load_balancing_loss_func(out.router_logits, num_experts, top_k)

    def is_balanced(self):
        """Whether its class has the auxiliary loss."""
        return hasattr(self.model, "router_aux_loss_coef")


class Choices(TorchFunctionMode):
    """What routers choose, and how far apart, at the least, a chosen and another score are."""

    def __init__(self):
        super().__init__()
        self.choices, self.gaps = [], []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.topk, torch.Tensor.topk):
            k = out.values.shape[-1]
            self.choices.append(out.indices.sort().values)
            best = args[0].detach().sort(descending=True).values
            if k < best.shape[-1]:
                self.gaps.append((best[..., k - 1] - best[..., k]).min().item())
        return out


def random_weights(decoder, generator):
    """Weights large enough that every path matters, and exact in bf16, so that they are stored in half the space."""
    model_type = decoder.config.model_type
    weights = {}
    for name, value in decoder.tensors().items():
        noise = torch.randn(value.shape, generator=generator)
        has_one_more = (
            model_type in NORMS_OF_ONE_MORE
            or (model_type == "muse_glimmer_text" and ".layers." in name)
            or (model_type in ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next") and ".linear_attn." not in name)
        )
        if "norm" in name and name.endswith(".weight"):
            drawn = (0 if has_one_more else 1) + 0.2 * noise
        elif name.endswith(("act_fn.alpha_p", "act_fn.alpha_n")):
            # Near to where its class begins.
            drawn = value.data + 0.2 * noise
        elif name.endswith("A_log"):
            # Some heads remember for a token, some for many.
            drawn = noise - 1.5
        elif name.endswith("conv1d.weight"):
            drawn = 0.5 * noise
        elif name.endswith(("act_fn.beta", "act_fn.eps")):
            # Constants.
            drawn = value.data
        elif name.endswith("layer_scalar"):
            drawn = 0.7 + 0.2 * noise
        elif name.endswith("router.scale"):
            # What it multiplies is divided by the root of the hidden size.
            drawn = 6 + noise
        elif name.endswith("per_expert_scale"):
            drawn = 1 + 0.2 * noise
        else:
            drawn = 0.25 * noise
        weights[name] = drawn.to(torch.bfloat16).float()
    return weights


# ------------------------------------------------------------------------------------------------------------------------- training


def train(decoder, data, is_padded=False, is_balanced=False):
    """Losses, norms of gradients, changes of parameters; all chats in a forward of their own, or in one batch. For a mixture of
    experts also how far apart, at the least, the scores of a chosen and of another expert are, and all choices."""
    initial = {name: value.clone() for name, value in decoder.trained().items()}
    is_exempt = {name: any(part in name.lower() for part in NO_DECAY) for name in decoder.params()}
    groups = [
        dict(params=[p for name, p in decoder.params().items() if is_exempt[name] == exempt], weight_decay=weight_decay)
        for exempt, weight_decay in [(False, WEIGHT_DECAY), (True, 0.0)]
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=LR, betas=BETAS, eps=EPS)
    watched = Choices()
    num_labels = sum((labels != -100).sum().item() for _, labels in data)
    batches = [(ids[None], labels[None], {}) for ids, labels in data]
    if is_padded:
        longest = max(len(ids) for ids, _ in data)
        pad = lambda rows, value: torch.stack([torch.nn.functional.pad(x, (0, longest - len(x)), value=value) for x in rows])
        ids, labels = pad([ids for ids, _ in data], 2), pad([labels for _, labels in data], -100)
        mask = pad([torch.ones_like(ids) for ids, _ in data], 0)
        batches = [(ids, labels, dict(attention_mask=mask))]
    losses, norms = [], []
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = 0.0
        for ids, labels, kwargs in batches:
            with watched:
                logits = decoder.logits(ids, **kwargs)
            loss_sum = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum"
            )
            (loss_sum / num_labels).backward()
            loss += loss_sum.item() / num_labels
            if is_balanced:
                balance = decoder.balance(ids) * ((labels != -100).sum() / num_labels)
                balance.backward()
                loss += balance.item()
        grads = [param.grad for param in decoder.params().values()]
        assert all(grad is not None for grad in grads)
        losses.append(loss)
        norms.append(sum(grad.double().square().sum().item() for grad in grads) ** 0.5)
        optimizer.step()
    deltas = {name: value - initial[name] for name, value in decoder.trained().items()}
    return dict(losses=losses, grad_norms=norms, deltas=deltas, gap=min(watched.gaps, default=None), choices=watched.choices)


class InFp64(TorchDispatchMode):
    """Refuses what is computed in less."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                assert value.dtype == torch.float64, func
        return out


@contextlib.contextmanager
def fp32_means_fp64():
    """Transformers goes to fp32 by name, inside norms, softmax and rotary embeddings."""
    saved = torch.float32, torch.float, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = saved
        torch.set_default_dtype(FP32)


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def floats(tensor):
    """Its values, with the fewest digits that say them."""
    return [float(str(value)) for value in tensor.flatten().numpy().astype(np.float32)]


def last_logits(decoder, data):
    with torch.no_grad():
        return decoder.logits(data[0][0][None])[0, -2:]


def write_start(folder, config, weights):
    """The checkpoint, and whether transformers reads the same from it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.to_json_string())
    halves = {name: value.to(torch.bfloat16) for name, value in weights.items()}
    assert all(torch.equal(halves[name].float(), value) for name, value in weights.items())
    save_file({name: value.contiguous() for name, value in halves.items()}, folder / "model.safetensors", {"format": "pt"})


def reread(folder):
    config = AutoConfig.from_pretrained(folder)
    if config.model_type != "muse_glimmer_text":
        loader = Mistral4ForCausalLM if config.model_type == "mistral4" else AutoModelForCausalLM
        model, info = loader.from_pretrained(
            folder, dtype=FP32, attn_implementation="eager", output_loading_info=True
        )
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        # From_pretrained leaves the parameters of Apertus's activation in the bf16 that its class makes them in.
        model = model.eval().to(FP32)
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")
        return lambda ids: model(input_ids=ids, use_cache=False).logits
    decoder = Decoder(config, FP32)
    decoder.load({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
    return decoder.logits


def balanced_steps(config, weights, data):
    """What fp32 gets with the auxiliary loss, where fp64 chooses the same experts."""
    decoder = Decoder(config, FP32)
    decoder.load(weights)
    found = train(decoder, data, is_balanced=True)
    with fp32_means_fp64():
        exact = Decoder(config, torch.float64)
        exact.load(weights)
        truth = train(exact, data, is_balanced=True)
    assert all(torch.equal(*pair) for pair in zip(found["choices"], truth["choices"])), "another choice of experts"
    for key in ("losses", "grad_norms"):
        assert all(abs(a / b - 1) < 1e-5 for a, b in zip(found[key], truth[key])), key
    return dict(router_aux_loss_coef=ROUTER_AUX_LOSS_COEF, losses=found["losses"], grad_norms=found["grad_norms"])


def make(name, data):
    folder = OUT / name
    overrides = json.loads(json.dumps(FAMILIES[name]))
    config = AutoConfig.for_model(VARIANTS.get(name, name), **overrides, attn_implementation="eager")
    decoder = Decoder(config, FP32)
    weights = random_weights(decoder, torch.Generator().manual_seed(SEEDS.get(name, SEED)))
    decoder.load(weights)
    config.architectures = [type(decoder.model).__name__]
    config.dtype = "float32"
    write_start(folder, config, weights)
    with torch.no_grad():
        before = decoder.logits(data[1][0][None])
        assert torch.equal(reread(folder)(data[1][0][None]), before), "another model from the checkpoint"

    found = train(decoder, data)
    after = last_logits(decoder, data)
    buffers = decoder.tensors().keys() - decoder.trained().keys()
    assert all(torch.equal(decoder.tensors()[name], weights[name]) for name in buffers)

    # In fp32 too, with sums in another order.
    others = []
    for chats, is_padded in [(data[::-1], False), (data, True)]:
        again = Decoder(config, FP32)
        again.load(weights)
        others.append(train(again, chats, is_padded) | dict(logits=last_logits(again, data)))
    with fp32_means_fp64():
        exact = Decoder(config, torch.float64)
        exact.load(weights)
        with InFp64():
            truth = train(exact, data)
            exact_after = last_logits(exact, data)
    assert all(torch.equal(*pair) for pair in zip(found["choices"], truth["choices"])), "another choice of experts"
    balanced = balanced_steps(config, weights, data) if decoder.is_balanced() else None

    runs = [found | dict(logits=after), *others]
    delta_errors = {
        name: max(relative_error(run["deltas"][name], delta) for run in runs) for name, delta in truth["deltas"].items()
    }
    noisy = [name for name, error in delta_errors.items() if error > NOISE]
    worst = max((name for name in delta_errors if name not in noisy), key=delta_errors.get)
    error_of = lambda key: max(abs(a / b - 1) for run in runs for a, b in zip(run[key], truth[key]))
    record = dict(
        losses=found["losses"],
        grad_norms=found["grad_norms"],
        # Parameters whose change is not known to better than 5e-4: fp32 runs of transformers are that far from fp64.
        noisy=noisy,
        # How far fp32 runs of transformers are from fp64, relative; `delta` without the noisy ones.
        logits_check=dict(
            losses=error_of("losses"),
            grad_norms=error_of("grad_norms"),
            delta=delta_errors[worst],
            delta_of=worst,
            noisy={name: delta_errors[name] for name in noisy},
            logits_after=max(relative_error(run["logits"], exact_after) for run in runs),
        ),
        logits_after=floats(after),
    )
    if balanced:
        record["balanced"] = balanced
    text = json.dumps(record, indent=1)
    # A list of numbers on one line.
    text = text.replace(json.dumps(record["logits_after"], indent=1).replace("\n", "\n "), json.dumps(record["logits_after"]))
    (folder / "expected.json").write_text(text + "\n")
    save_file({name: delta.contiguous() for name, delta in found["deltas"].items()}, folder / "final.safetensors")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"{name}: {size} bytes, losses",
        " ".join(f"{loss:.6f}" for loss in found["losses"]),
        "norms",
        " ".join(f"{norm:.4f}" for norm in found["grad_norms"]),
        f"| errors: loss {error_of('losses'):.1e}, norm {error_of('grad_norms'):.1e}, logits",
        f"{record['logits_check']['logits_after']:.1e}, delta {delta_errors[worst]:.1e} {worst}",
        *([f"| gap {found['gap']:.1e}"] if found["gap"] is not None else []),
        "| noisy" if noisy else "",
        *(f"{name} {delta_errors[name]:.1e}" for name in noisy),
        flush=True,
    )
    return record | dict(gap=found["gap"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_data(OUT / "data")
    chats = read_data(OUT / "data")
    print("chats of", [len(ids) for ids, _ in chats], "tokens, labels", [(labels != -100).sum().item() for _, labels in chats])
    for family in sys.argv[1:] or FAMILIES:
        make(family, chats)
