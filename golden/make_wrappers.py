"""Tiny checkpoint folders of multimodal wrapper classes as transformers saves them, and the logits of a text-only input.

    python golden/make_wrappers.py    # 4.57.6: <name>_v4
    python golden/make_wrappers.py    # 5.24.0: <name>_v5, and the classes that 4.57 lacks

Weights are stored in bf16 and exact in it; the logits are fp32 of the same values, eager attention. <folder>.golden.safetensors
holds input_ids [s] and logits [s, v].
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig

V5 = transformers.__version__.startswith("5.")
TAG = "v5" if V5 else "v4"
OUT = Path(__file__).resolve().parent.parent / "crates/sterna-model/tests/fixtures/wrappers"
SEED = 20261121

TEXT = dict(
    hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    vocab_size=64, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
PIXTRAL = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, head_dim=8, patch_size=4, image_size=16)
SIGLIP = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, patch_size=4, image_size=16)
ROPE_YARN = dict(
    type="yarn", rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=8, max_position_embeddings=32,
    beta_fast=32.0, beta_slow=1.0, mscale_all_dim=1.0, mscale=1.0, llama_4_scaling_beta=0.1,
)  # fmt: skip

# name -> (wrapper class, model_type, config)
CASES = {
    "mistral3": (
        "Mistral3ForConditionalGeneration", "mistral3",
        dict(text_config=dict(TEXT, model_type="mistral", sliding_window=None, rms_norm_eps=1e-5, tie_word_embeddings=False),
             vision_config=dict(PIXTRAL, model_type="pixtral"), image_token_index=63, spatial_merge_size=2, vision_feature_layer=-1),
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration", "gemma3",
        dict(text_config=dict(TEXT, model_type="gemma3_text", sliding_window=4, query_pre_attn_scalar=6, rope_theta=100000.0,
                              rope_local_base_freq=1000.0, rope_scaling=dict(rope_type="linear", factor=8.0),
                              layer_types=["sliding_attention", "full_attention"]),
             vision_config=dict(SIGLIP, model_type="siglip_vision_model"), image_token_index=63, boi_token_index=61, eoi_token_index=62,
             mm_tokens_per_image=4),
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl",
        dict(text_config=dict({k: v for k, v in TEXT.items() if k != "head_dim"}, tie_word_embeddings=True, rms_norm_eps=1e-6,
                              rope_theta=100000.0, rope_scaling=dict(type="mrope", mrope_section=[2, 1, 1])),
             vision_config=dict(hidden_size=16, intermediate_size=24, depth=1, num_heads=2, patch_size=4, out_hidden_size=32,
                                window_size=16, fullatt_block_indexes=[0]),
             image_token_id=60, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63),
    ),
    "llava": (
        "LlavaForConditionalGeneration", "llava",
        dict(text_config=dict(TEXT, model_type="llama", rms_norm_eps=1e-5),
             vision_config=dict(SIGLIP, model_type="clip_vision_model", projection_dim=16), image_token_index=63, image_seq_length=16,
             vision_feature_layer=-1),
    ),
}  # fmt: skip
if V5:
    CASES |= {
        "mistral3_ministral3": (
            "Mistral3ForConditionalGeneration", "mistral3",
            dict(text_config=dict(TEXT, model_type="ministral3", rope_parameters=dict(ROPE_YARN), tie_word_embeddings=False),
                 tie_word_embeddings=False, vision_config=dict(PIXTRAL, model_type="pixtral"), image_token_index=63, spatial_merge_size=2,
                 vision_feature_layer=-1),
        ),
        "gemma4": (
            "Gemma4ForConditionalGeneration", "gemma4",
            dict(text_config=dict(TEXT, model_type="gemma4_text", global_head_dim=16, num_global_key_value_heads=1, attention_k_eq_v=True,
                                  hidden_size_per_layer_input=0, sliding_window=4, final_logit_softcapping=2.5,
                                  use_bidirectional_attention="vision", layer_types=["sliding_attention", "full_attention"]),
                 vision_config=dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                                    num_key_value_heads=2, head_dim=8, patch_size=4, position_embedding_size=8),
                 audio_config=None, image_token_id=60, video_token_id=61, audio_token_id=59, boi_token_id=62, eoi_token_id=63,
                 boa_token_id=58, eoa_token_index=57),
        ),
        "qwen3_5": (
            "Qwen3_5ForConditionalGeneration", "qwen3_5",
            dict(text_config=dict(TEXT, layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2, linear_num_value_heads=4,
                                  linear_key_head_dim=6, linear_value_head_dim=5,
                                  rope_parameters=dict(rope_type="default", rope_theta=1000.0, partial_rotary_factor=0.5,
                                                       mrope_interleaved=True, mrope_section=[1, 1, 0])),
                 vision_config=dict(depth=1, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, out_hidden_size=32,
                                    num_position_embeddings=16),
                 image_token_id=60, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63),
        ),
        "muse_glimmer": (
            "MuseGlimmerForConditionalGeneration", "muse_glimmer",
            dict(text_config=dict(TEXT, sliding_window=4, final_logit_softcapping=1.5, output_multiplier=0.4),
                 vision_config=dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, patch_size=4,
                                    pos_emb_height=4, pos_emb_width=4, max_position_embeddings=16),
                 out_hidden_size=64, projector_hidden_size=16, image_token_id=63, video_token_id=62),
        ),
    }  # fmt: skip


def randomize(model, generator):
    for name, param in [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n.endswith("layer_scalar"))]:
        noise = torch.randn(param.shape, generator=generator)
        value = 1 + 0.2 * noise if "norm" in name and name.endswith("weight") or name.endswith("layer_scalar") else 0.25 * noise
        param.data.copy_(value.to(torch.bfloat16).float())


def tensors_of(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in sorted(file.keys())}


def logits_of(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids[None], attention_mask=torch.ones_like(input_ids)[None], use_cache=False).logits[0].float()


def make(name, class_name, model_type, overrides):
    folder = OUT / f"{name}_{TAG}"
    shutil.rmtree(folder, ignore_errors=True)
    cls = getattr(transformers, class_name)
    config = AutoConfig.for_model(model_type, **json.loads(json.dumps(overrides)), attn_implementation="eager")
    torch.manual_seed(0)
    model = cls(config).float().eval()
    generator = torch.Generator().manual_seed(SEED)
    randomize(model, generator)
    model.tie_weights()
    input_ids = torch.randint(3, 56, (14,), generator=generator)
    logits = logits_of(model, input_ids)
    model.to(torch.bfloat16).save_pretrained(folder)
    save_file(dict(input_ids=input_ids, logits=logits), str(OUT / f"{folder.name}.golden.safetensors"))
    again = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"== {folder.name} {size} bytes; reload difference {(logits_of(again, input_ids) - logits).norm() / logits.norm():.1e}", sorted(f.name for f in folder.iterdir()))
    text = [k for k in tensors_of(folder) if "vis" not in k and "multi_modal" not in k]
    print("   ", [k for k in text if ".0." in k][:3], [k for k in text if "layers." not in k])


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    OUT.mkdir(exist_ok=True)
    for case, args in CASES.items():
        if sys.argv[1:] and case not in sys.argv[1:]:
            continue
        make(case, *args)
