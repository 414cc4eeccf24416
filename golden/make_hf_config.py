"""Makes crates/sterna-arch/tests/fixtures/configs: what real transformers models have inside.

Each case builds the model and notes its parameters by name and shape, and the sliding window of
each layer. Those of more_cases note more: the frequencies of each layer that rotates, the caps and
multipliers that have an effect. No randomness. Run with transformers 4.57 and torch 2.11:

    python golden/make_hf_config.py
"""

import json
import pathlib

import numpy
import torch
import transformers
from transformers.modeling_utils import no_init_weights

OUT = pathlib.Path(__file__).parents[1] / "crates/sterna-arch/tests/fixtures/configs"
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

GEMMAS = ("gemma", "gemma2", "gemma3_text", "vaultgemma")
# Their own pad_token_id is beyond these few rows.
PHI3 = {"model_type": "phi3", "pad_token_id": None}
GLM = {"model_type": "glm", "pad_token_id": None}
GLM4 = {"model_type": "glm4", "pad_token_id": None}
# Three of the eight pairs of a head stay as they are.
LONGROPE = {
    "partial_rotary_factor": 0.625,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 256,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.5, 2.5, 4.0],
        "long_factor": [1.0, 2.0, 5.0, 17.0, 40.5],
    },
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
# Hidden size over heads is what its projection back requires.
HELIUM = {"model_type": "helium", "head_dim": 16}
# The class does not replace a missing head_dim.
HUNYUAN = {"model_type": "hunyuan_v1_dense", "head_dim": 16}
QWEN3_MOE = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
OLMOE = {"model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 2}
QWEN2_MOE = {**QWEN3_MOE, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 40}
GLM4_MOE = {"model_type": "glm4_moe", "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# Few heads, and experts in the second and third layer.
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "first_k_dense_replace": 1}
DEEPSEEK_V3 = {**GLM4_MOE, **LATENT, "model_type": "deepseek_v3", "q_lora_rank": 24, "n_group": 4, "topk_group": 2}
DEEPSEEK_V2 = {**GLM4_MOE, **LATENT, "model_type": "deepseek_v2"}
DOTS1 = {**GLM4_MOE, "model_type": "dots1", "n_shared_experts": 1}
ERNIE4_5_MOE = {"model_type": "ernie4_5_moe", "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24}
HUNYUAN_V1_MOE = {"model_type": "hunyuan_v1_moe", "head_dim": 16}
GPT_OSS = {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
# Two gated delta nets before the full layer.
QWEN3_NEXT = {**QWEN2_MOE, "model_type": "qwen3_next", "full_attention_interval": 3}
MIXTRAL = {"model_type": "mixtral", "num_local_experts": 3}
SLIDING, FULL = "sliding_attention", "full_attention"
MIXED = {"layer_types": [FULL, SLIDING, FULL], "sliding_window": 6}
MORE_CASES = [
    ("gemma", {"model_type": "gemma"}),
    ("gemma, biases, untied", {"model_type": "gemma", "attention_bias": True, "tie_word_embeddings": False}),
    ("gemma, a width whose root is not whole", {"model_type": "gemma", "hidden_size": 80, "head_dim": 24}),
    ("gemma, the activation of its old key", {"model_type": "gemma", "head_dim": 16, "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}),
    ("gemma, rope scaling", {"model_type": "gemma", "head_dim": 16, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    ("gemma2", {"model_type": "gemma2"}),
    ("gemma2, no caps", {"model_type": "gemma2", "head_dim": 16, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("gemma2, caps", {"model_type": "gemma2", "head_dim": 16, "attn_logit_softcapping": 20.5, "final_logit_softcapping": 12.5}),
    ("gemma2, biases, untied", {"model_type": "gemma2", "head_dim": 16, "attention_bias": True, "tie_word_embeddings": False}),
    ("gemma2, layer types", {"model_type": "gemma2", "head_dim": 16, **MIXED}),
    ("gemma2, a scale of its own", {"model_type": "gemma2", "hidden_size": 80, "head_dim": 24, "query_pre_attn_scalar": 144}),
    ("gemma2, an activation that it does not read", {"model_type": "gemma2", "head_dim": 16, "hidden_act": "silu"}),
    ("gemma3_text", {"model_type": "gemma3_text"}),
    ("gemma3_text, pattern", {"model_type": "gemma3_text", "head_dim": 16, "sliding_window_pattern": 2, "sliding_window": 6}),
    ("gemma3_text, layer types", {"model_type": "gemma3_text", "head_dim": 16, **MIXED}),
    (
        "gemma3_text, scaling of the full layers only",
        {"model_type": "gemma3_text", "head_dim": 16, **MIXED, "rope_theta": 50000.0, "rope_local_base_freq": 2000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    ("gemma3_text, a cap that it ignores and one that it applies", {"model_type": "gemma3_text", "head_dim": 16, "attn_logit_softcapping": 20.5, "final_logit_softcapping": 12.5}),
    ("gemma3_text, biases, untied", {"model_type": "gemma3_text", "head_dim": 16, "attention_bias": True, "tie_word_embeddings": False, "query_pre_attn_scalar": 144}),
    ("vaultgemma", {"model_type": "vaultgemma"}),
    ("vaultgemma, no caps", {"model_type": "vaultgemma", "head_dim": 16, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("vaultgemma, caps", {"model_type": "vaultgemma", "head_dim": 16, "attn_logit_softcapping": 20.5, "final_logit_softcapping": 12.5}),
    ("vaultgemma, biases, untied", {"model_type": "vaultgemma", "head_dim": 16, "attention_bias": True, "tie_word_embeddings": False}),
    ("vaultgemma, layer types", {"model_type": "vaultgemma", "head_dim": 16, **MIXED}),
    ("vaultgemma, a scale of its own", {"model_type": "vaultgemma", "hidden_size": 80, "head_dim": 24, "query_pre_attn_scalar": 144}),
    ("vaultgemma, an activation that it does not read", {"model_type": "vaultgemma", "head_dim": 16, "hidden_act": "silu"}),
    ("vaultgemma, rope scaling", {"model_type": "vaultgemma", "head_dim": 16, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    ("olmo", {"model_type": "olmo"}),
    ("olmo, clipped", {"model_type": "olmo", "clip_qkv": 8.0}),
    ("olmo, biases, tied", {"model_type": "olmo", "attention_bias": True, "tie_word_embeddings": True}),
    ("olmo, null heads", {"model_type": "olmo", "num_key_value_heads": None}),
    ("olmo2", {"model_type": "olmo2"}),
    ("olmo2, biases, tied", {"model_type": "olmo2", "attention_bias": True, "tie_word_embeddings": True}),
    ("olmo2, null heads, head_dim", {"model_type": "olmo2", "num_key_value_heads": None, "head_dim": 24}),
    ("olmo2, rope scaling", {"model_type": "olmo2", "rope_scaling": {"type": "linear", "factor": 4.0}}),
    ("olmo3", {"model_type": "olmo3"}),
    ("olmo3, four layers", {"model_type": "olmo3", "num_hidden_layers": 4}),
    ("olmo3, scaling of the full layers only", {"model_type": "olmo3", **MIXED, "rope_scaling": YARN}),
    ("olmo3, biases, tied, null heads", {"model_type": "olmo3", "attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": None}),
    ("phi3", PHI3),
    ("phi3, window, tied", {**PHI3, "sliding_window": 6, "tie_word_embeddings": True}),
    ("phi3, part of a head", {**PHI3, "partial_rotary_factor": 0.75}),
    ("phi3, null heads, head_dim", {**PHI3, "num_key_value_heads": None, "head_dim": 24}),
    ("phi3, longrope", {**PHI3, **LONGROPE}),
    ("phi3, longrope by an old name", {**PHI3, **LONGROPE, "rope_scaling": {**LONGROPE["rope_scaling"], "type": "su"}}),
    ("phi3, longrope without growth", {**PHI3, **LONGROPE, "max_position_embeddings": 256}),
    ("cohere", {"model_type": "cohere"}),
    ("cohere, norms of queries and keys", {"model_type": "cohere", "use_qk_norm": True, "logit_scale": 0.8}),
    ("cohere, biases, untied", {"model_type": "cohere", "attention_bias": True, "tie_word_embeddings": False}),
    ("cohere, null heads, head_dim", {"model_type": "cohere", "num_key_value_heads": None, "head_dim": 24, "use_qk_norm": True}),
    ("cohere2", {"model_type": "cohere2"}),
    ("cohere2, four layers", {"model_type": "cohere2", "num_hidden_layers": 4, "sliding_window": 6}),
    ("cohere2, pattern", {"model_type": "cohere2", "sliding_window_pattern": 2, "logit_scale": 0.25}),
    ("cohere2, layer types", {"model_type": "cohere2", **MIXED}),
    ("cohere2, biases, untied, null heads", {"model_type": "cohere2", "attention_bias": True, "tie_word_embeddings": False, "num_key_value_heads": None}),
    ("cohere2, head_dim", {"model_type": "cohere2", "head_dim": 24}),
    ("glm", GLM),
    ("glm, no biases, tied", {**GLM, "attention_bias": False, "tie_word_embeddings": True}),
    ("glm, head_dim, another part of it", {**GLM, "head_dim": 24, "partial_rotary_factor": 0.25, "eos_token_id": 5}),
    ("glm4", GLM4),
    ("glm4, no biases, tied", {**GLM4, "attention_bias": False, "tie_word_embeddings": True, "head_dim": 24}),
    ("exaone4", {"model_type": "exaone4"}),
    ("exaone4, four layers, tied", {"model_type": "exaone4", "num_hidden_layers": 4, "tie_word_embeddings": True}),
    ("exaone4, pattern", {"model_type": "exaone4", "sliding_window_pattern": 2, "sliding_window": 6}),
    ("exaone4, layer types", {"model_type": "exaone4", "sliding_window_pattern": "LLG", **MIXED}),
    ("exaone4, no window", {"model_type": "exaone4", "sliding_window": None, "layer_types": [FULL] * 3}),
    ("exaone4, head_dim, rope scaling", {"model_type": "exaone4", "head_dim": 24, **MIXED, "rope_scaling": LLAMA3}),
    ("starcoder2", {"model_type": "starcoder2"}),
    ("starcoder2, no biases, untied", {"model_type": "starcoder2", "use_bias": False, "tie_word_embeddings": False}),
    ("starcoder2, window", {"model_type": "starcoder2", "sliding_window": 6}),
    ("starcoder2, null head_dim, rope scaling", {"model_type": "starcoder2", "head_dim": None, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    ("starcoder2, head_dim", {"model_type": "starcoder2", "head_dim": 24, "norm_epsilon": 1e-6}),
    ("nemotron", {"model_type": "nemotron"}),
    ("nemotron, biases, tied", {"model_type": "nemotron", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("nemotron, head_dim, another part of it", {"model_type": "nemotron", "head_dim": 24, "partial_rotary_factor": 0.25}),
    ("nemotron, whole heads", {"model_type": "nemotron", "partial_rotary_factor": 1.0}),
    ("stablelm", {"model_type": "stablelm"}),
    ("stablelm, biases, tied", {"model_type": "stablelm", "use_qkv_bias": True, "tie_word_embeddings": True}),
    ("stablelm, norms of queries and keys", {"model_type": "stablelm", "qk_layernorm": True, "partial_rotary_factor": 0.5}),
    ("stablelm, branches side by side", {"model_type": "stablelm", "use_parallel_residual": True}),
    ("stablelm, everything", {"model_type": "stablelm", "use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    ("arcee", {"model_type": "arcee"}),
    ("arcee, biases, tied", {"model_type": "arcee", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("arcee, null heads, head_dim", {"model_type": "arcee", "num_key_value_heads": None, "head_dim": 24}),
    ("arcee, yarn", {"model_type": "arcee", "rope_scaling": YARN, "hidden_act": "silu"}),
    ("apertus", {"model_type": "apertus"}),
    ("apertus, no scaling, tied", {"model_type": "apertus", "rope_scaling": None, "tie_word_embeddings": True}),
    ("apertus, biases, null heads", {"model_type": "apertus", "attention_bias": True, "num_key_value_heads": None}),
    ("apertus, head_dim, an activation without parameters", {"model_type": "apertus", "head_dim": 24, "hidden_act": "silu"}),
    ("ernie4_5", {"model_type": "ernie4_5"}),
    ("ernie4_5, biases, untied", {"model_type": "ernie4_5", "use_bias": True, "tie_word_embeddings": False, "head_dim": 24}),
    ("ernie4_5, null heads and head_dim", {"model_type": "ernie4_5", "num_key_value_heads": None, "head_dim": None}),
    ("helium", HELIUM),
    ("helium, biases, tied", {**HELIUM, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("hunyuan_v1_dense", HUNYUAN),
    ("hunyuan_v1_dense, biases, tied, null heads", {**HUNYUAN, "attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": None, "head_dim": 24}),
    (
        "hunyuan_v1_dense, alpha",
        {**HUNYUAN, "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    ("hunyuan_v1_dense, no alpha", {**HUNYUAN, "rope_scaling": {"type": "dynamic", "alpha": None, "factor": 4.0}}),
    # A single layer, for it has as many experts as its class has.
    ("qwen3_moe", {"model_type": "qwen3_moe", "num_hidden_layers": 1}),
    ("qwen3_moe, some layers dense by name", {**QWEN3_MOE, "mlp_only_layers": [1]}),
    ("qwen3_moe, every second", {**QWEN3_MOE, "decoder_sparse_step": 2}),
    ("qwen3_moe, every second, and one of them dense", {**QWEN3_MOE, "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    ("qwen3_moe, no experts", {**QWEN3_MOE, "num_experts": 0}),
    ("qwen3_moe, biases, head_dim, tied", {**QWEN3_MOE, "attention_bias": True, "head_dim": 24, "tie_word_embeddings": True}),
    ("qwen3_moe, balanced and normed", {**QWEN3_MOE, "output_router_logits": True, "router_aux_loss_coef": 0.02, "norm_topk_prob": True}),
    ("qwen3_moe, balanced by default", {**QWEN3_MOE, "output_router_logits": True}),
    ("qwen3_moe, window off", {**QWEN3_MOE, "sliding_window": 6}),
    ("qwen3_moe, window on", {**QWEN3_MOE, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    ("olmoe", {"model_type": "olmoe", "num_hidden_layers": 1}),
    ("olmoe, normed, biases, tied", {**OLMOE, "norm_topk_prob": True, "attention_bias": True, "tie_word_embeddings": True}),
    ("olmoe, balanced by default, null heads", {**OLMOE, "output_router_logits": True, "num_key_value_heads": None}),
    ("olmoe, rope scaling", {**OLMOE, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    ("qwen2_moe", {"model_type": "qwen2_moe", "num_hidden_layers": 1, "num_key_value_heads": 4}),
    ("qwen2_moe, every second, and one of them dense", {**QWEN2_MOE, "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    ("qwen2_moe, no experts", {**QWEN2_MOE, "num_experts": 0}),
    ("qwen2_moe, no biases, tied", {**QWEN2_MOE, "qkv_bias": False, "tie_word_embeddings": True}),
    ("qwen2_moe, balanced and normed", {**QWEN2_MOE, "output_router_logits": True, "router_aux_loss_coef": 0.02, "norm_topk_prob": True}),
    # A single full layer, for it has as many experts as its class has.
    ("qwen3_next", {"model_type": "qwen3_next", "num_hidden_layers": 1, "layer_types": [FULL]}),
    ("qwen3_next, delta nets", QWEN3_NEXT),
    ("qwen3_next, every fourth layer full, every second sparse, one of them dense", {**QWEN3_NEXT, "full_attention_interval": 4, "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    (
        "qwen3_next, other heads, biases, tied, not normed, balanced",
        {**QWEN3_NEXT, "layer_types": ["linear_attention", FULL, FULL], "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 12, "linear_value_head_dim": 20, "linear_conv_kernel_dim": 3, "attention_bias": True, "tie_word_embeddings": True, "norm_topk_prob": False, "output_router_logits": True, "head_dim": 24, "partial_rotary_factor": 0.5},
    ),
    ("glm4_moe", {"model_type": "glm4_moe", "num_hidden_layers": 2}),
    ("glm4_moe, norms of queries and keys, biases, tied", {**GLM4_MOE, "use_qk_norm": True, "attention_bias": True, "head_dim": 24, "tie_word_embeddings": True}),
    ("glm4_moe, groups, a factor, no norm", {**GLM4_MOE, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": False, "num_experts_per_tok": 3}),
    ("glm4_moe, two shared experts, no layer without", {**GLM4_MOE, "n_shared_experts": 2, "first_k_dense_replace": 0, "partial_rotary_factor": 1.0}),
    # Two layers with fewer experts than the class has.
    ("deepseek_v2", {"model_type": "deepseek_v2", "num_key_value_heads": None, "num_hidden_layers": 2, "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}),
    ("deepseek_v2, groups, biases", {**DEEPSEEK_V2, "q_lora_rank": 24, "attention_bias": True, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0}),
    ("deepseek_v2, groups that it does not ask for, no latent of queries, yarn", {**DEEPSEEK_V2, "q_lora_rank": None, "n_group": 4, "topk_group": 2, "n_shared_experts": 1, "tie_word_embeddings": True, "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}}),
    ("deepseek_v3", {"model_type": "deepseek_v3", "num_hidden_layers": 1, "num_attention_heads": 128, "num_key_value_heads": 128}),
    ("deepseek_v3, small, biases", {**DEEPSEEK_V3, "attention_bias": True}),
    ("deepseek_v3, queries without a latent, null heads, tied", {**DEEPSEEK_V3, "q_lora_rank": None, "num_key_value_heads": None, "tie_word_embeddings": True, "rope_interleave": False}),
    ("deepseek_v3, yarn with a magnitude", {**DEEPSEEK_V3, "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.7}}),
    ("deepseek_v3, linear with a magnitude, one group", {**DEEPSEEK_V3, "n_group": 1, "topk_group": 1, "rope_scaling": {"rope_type": "linear", "factor": 4.0, "mscale_all_dim": 1.0}}),
    ("dots1", DOTS1),
    ("dots1, biases, normed, null heads", {**DOTS1, "attention_bias": True, "norm_topk_prob": True, "num_key_value_heads": None, "first_k_dense_replace": 2}),
    ("dots1, groups, a factor", {**DOTS1, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5, "head_dim": 24}),
    ("dots1, a window from a layer on", {**DOTS1, "sliding_window": 6, "max_window_layers": 1}),
    ("dots1, no window", {**DOTS1, "sliding_window": None, "max_window_layers": 1}),
    ("ernie4_5_moe", {"model_type": "ernie4_5_moe", "num_hidden_layers": 2}),
    ("ernie4_5_moe, every second from the third to the fifth, untied", {**ERNIE4_5_MOE, "num_hidden_layers": 8, "moe_layer_start_index": 2, "moe_layer_end_index": 5, "moe_layer_interval": 2, "tie_word_embeddings": False}),
    ("ernie4_5_moe, no shared experts, balanced", {**ERNIE4_5_MOE, "moe_num_shared_experts": 0, "output_router_logits": True}),
    ("hunyuan_v1_moe", {**HUNYUAN_V1_MOE, "num_hidden_layers": 1}),
    ("hunyuan_v1_moe, lists, biases, tied, alpha", {**HUNYUAN_V1_MOE, "num_experts": [4, 4, 4], "moe_topk": [2, 2, 2], "attention_bias": True, "tie_word_embeddings": True, "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}}),
    ("granitemoe", {"model_type": "granitemoe"}),
    (
        "granitemoe, multipliers, biases, tied, balanced",
        {"model_type": "granitemoe", "num_local_experts": 3, "num_experts_per_tok": 1, "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.0078125, "logits_scaling": 8.0, "attention_bias": True, "tie_word_embeddings": True, "output_router_logits": True},
    ),
    # A single layer, for it has as many experts as its class has.
    ("gpt_oss", {"model_type": "gpt_oss", "num_hidden_layers": 1}),
    ("gpt_oss, no biases, tied, balanced by default", {**GPT_OSS, "attention_bias": False, "tie_word_embeddings": True, "output_router_logits": True}),
    ("gpt_oss, layer types, null heads, no scaling", {**GPT_OSS, **MIXED, "num_key_value_heads": None, "rope_scaling": None}),
    ("gpt_oss, an activation that it does not read, another scaling", {**GPT_OSS, "sliding_window": 6, "hidden_act": "gelu", "rope_theta": 5000.0, "rope_scaling": YARN}),
    ("mixtral", {"model_type": "mixtral"}),
    ("mixtral, window", {**MIXTRAL, "sliding_window": 6}),
    ("mixtral, head_dim, tied", {**MIXTRAL, "head_dim": 24, "tie_word_embeddings": True, "num_experts_per_tok": 1}),
    ("mixtral, balanced, null heads", {**MIXTRAL, "output_router_logits": True, "router_aux_loss_coef": 0.02, "num_key_value_heads": None}),
    ("mixtral, balanced by default", {**MIXTRAL, "output_router_logits": True}),
    ("mixtral, a coefficient that is not used", {**MIXTRAL, "router_aux_loss_coef": 0.02}),
    # Yarn fails at the head_dim of its class, which is null.
    ("mixtral, yarn, biases that it ignores", {**MIXTRAL, "attention_bias": True, "mlp_bias": True, "head_dim": 16, "rope_scaling": YARN}),
]


def window(config, attention):
    if config.model_type in ("mistral", "mixtral", "phi3", "starcoder2"):
        return config.sliding_window
    if config.model_type == "exaone4" and not attention.is_sliding:
        return None
    return getattr(attention, "sliding_window", None)


def embedding_multiplier(config):
    if config.model_type in GEMMAS:
        # Written in their forward, and rounded there to the type of the weights.
        return config.hidden_size**0.5
    return getattr(config, "embedding_multiplier", 1.0)


def build(given):
    config = transformers.AutoConfig.for_model(**json.loads(json.dumps(given)))
    # Not on the meta device, which has no frequencies. Values of parameters are not noted.
    with no_init_weights():
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return config, model


def facts(name, given, config, model):
    layers = model.model.layers
    attentions = [getattr(layer, "self_attn", None) for layer in layers]
    attention = next(attention for attention in attentions if attention is not None)
    # Two classes divide by the root of head_dim, without a name for it.
    scaling = attention.scaling if hasattr(attention, "scaling") else attention.head_dim**-0.5
    return {
        "name": name,
        "config": given,
        # A tied head is not a parameter of its own.
        "parameters": [[key, list(value.shape)] for key, value in model.named_parameters() if value.requires_grad],
        "sliding_window": [window(config, attention) for attention in attentions],
        "is_rotated": [bool(getattr(attention, "use_rope", True)) for attention in attentions],
        "multipliers": [
            embedding_multiplier(config),
            getattr(config, "residual_multiplier", 1.0),
            scaling,
            getattr(config, "logits_scaling", 1.0),
        ],
        "tie_word_embeddings": config.tie_word_embeddings,
        "head_dim": getattr(attention, "qk_head_dim", None) or attention.head_dim,
        "rms_norm_eps": getattr(config, "rms_norm_eps", None),
        "max_position_embeddings": config.max_position_embeddings,
        "initializer_range": config.initializer_range,
        "rope_theta": config.rope_theta,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "num_parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
    }


def rotary_of(config, model, index):
    """The module that gives a layer its angles, or None where queries and keys stay as they are."""
    is_sliding = getattr(config, "layer_types", None) is not None and config.layer_types[index] == SLIDING
    match config.model_type:
        case "qwen3_next" if config.layer_types[index] == "linear_attention":
            return None
        case "gemma3_text" if is_sliding:
            return model.model.rotary_emb_local
        case "olmo3":
            return model.model.rotary_embs[config.layer_types[index]]
        case "cohere2" if not is_sliding:
            return None
        case "exaone4" if not is_sliding and config.sliding_window is not None:
            return None
    return model.model.rotary_emb


def as_list(frequencies):
    """The shortest decimals that give the same single-precision numbers."""
    return [float(str(value)) for value in frequencies.numpy().astype(numpy.float32)]


def rope_of(rotary):
    if rotary is None:
        return None
    rope = {"inv_freq": as_list(rotary.inv_freq), "attention_scaling": rotary.attention_scaling}
    if rotary.rope_type == "longrope":
        longer = rotary.config.original_max_position_embeddings + 1
        rope["long_inv_freq"] = as_list(rotary.rope_init_fn(rotary.config, "cpu", seq_len=longer)[0])
    return rope


def norm_eps(norm):
    if type(norm).__name__ == "OlmoLayerNorm":
        # Written in its forward.
        return 1e-5
    return getattr(norm, "variance_epsilon", None) or norm.eps


def more_facts(config, model):
    """What only some classes have, absent where there is none."""
    layers = model.model.layers
    rope = [rope_of(rotary_of(config, model, index)) for index in range(len(layers))]
    mlps = [getattr(layer, "block_sparse_moe", None) or layer.mlp for layer in layers]
    sparse = [mlp for mlp in mlps if hasattr(mlp, "experts") or hasattr(mlp, "input_linear")]
    found = {
        "is_rotated": [each is not None for each in rope],
        "rope": rope,
        "norm_eps": norm_eps(model.model.norm),
        # What the class looks up: some have another key for it.
        "hidden_act": config.hidden_activation if config.model_type in GEMMAS[1:] else config.hidden_act,
        "pad_token_id": config.pad_token_id,
    }
    if config.model_type in GEMMAS:
        found["embedding_multiplier"] = embedding_multiplier(config)
    if hasattr(model, "logit_scale"):
        found["logit_multiplier"] = model.logit_scale
    # Gemma3 has the key too, and leaves the scores as they are.
    if config.model_type in ("gemma2", "vaultgemma") and config.attn_logit_softcapping is not None:
        found["attn_logit_softcapping"] = config.attn_logit_softcapping
    if getattr(config, "final_logit_softcapping", None) is not None:
        found["final_logit_softcapping"] = config.final_logit_softcapping
    if config.model_type == "gpt_oss":
        found["hidden_act"] = "clamped_swiglu"
        found["clamp"] = [sparse[0].experts.alpha, sparse[0].experts.limit]
    if getattr(config, "clip_qkv", None) is not None:
        found["clip_qkv"] = config.clip_qkv
    if sparse:
        found["is_sparse"] = [mlp in sparse for mlp in mlps]
        router = getattr(sparse[0], "router", None) or sparse[0].gate
        router = router if hasattr(router, "top_k") else sparse[0]
        is_stacked = config.model_type in ("gpt_oss", "granitemoe")
        found["num_experts"] = router.num_experts if is_stacked else len(sparse[0].experts)
        found["num_experts_per_tok"] = router.top_k
        # Mixtral always divides by the sum.
        found["norm_topk_prob"] = getattr(router, "norm_topk_prob", True)
        if getattr(config, "output_router_logits", False):
            found["router_aux_loss_coef"] = model.router_aux_loss_coef
        if hasattr(router, "routed_scaling_factor"):
            found["routed_scaling_factor"] = router.routed_scaling_factor
        if getattr(router, "topk_method", None) == "group_limited_greedy":
            found["expert_groups"] = [router.num_group, router.topk_group]
        elif getattr(router, "n_group", 1) != getattr(router, "topk_group", 1) and hasattr(router, "n_group"):
            found["expert_groups"] = [router.n_group, router.topk_group]
    # Tensors of a checkpoint that are not trained.
    state = model.state_dict()
    buffers = [[key, list(value.shape)] for key, value in model.named_buffers() if key in state]
    buffers += [[key, list(value.shape)] for key, value in model.named_parameters() if not value.requires_grad]
    if buffers:
        found["buffers"] = buffers
    return found


def main():
    cases = {}
    for name, keys in CASES:
        given = {**SIZES, **keys}
        cases.setdefault(given["model_type"], []).append(facts(name, given, *build(given)))
    for name, keys in MORE_CASES:
        given = {**SIZES, **keys}
        config, model = build(given)
        case = facts(name, given, config, model) | more_facts(config, model)
        cases.setdefault(given["model_type"], []).append(case)
    OUT.mkdir(exist_ok=True)
    for model_type, of_family in cases.items():
        out = {"transformers": transformers.__version__, "cases": of_family}
        text = json.dumps(out, separators=(",", ":")).replace('{"name"', '\n{"name"')
        (OUT / f"{model_type}.json").write_text(text + "\n")


main()
