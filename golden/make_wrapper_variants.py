"""From the folders of make_wrappers.py: the flat config of Qwen2.5-VL as on the hub, and the names that newer checkpoints use. Run under 4.57.6."""
import json, shutil
from pathlib import Path
from safetensors.torch import load_file, save_file
OUT = Path(__file__).resolve().parent.parent / "crates/sterna-model/tests/fixtures/wrappers"
def copy(source, target, config=lambda c: c, rename=lambda n: n):
    a, b = OUT / source, OUT / target
    shutil.rmtree(b, ignore_errors=True); b.mkdir()
    (b / "config.json").write_text(json.dumps(config(json.loads((a / "config.json").read_text())), indent=2, sort_keys=True) + "\n")
    save_file({rename(n): v for n, v in load_file(a / "model.safetensors").items()}, b / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(a / "generation_config.json", b)
    shutil.copy(OUT / f"{source}.golden.safetensors", OUT / f"{target}.golden.safetensors")
def flat(c):
    t = c.pop("text_config")
    for k in ("layer_types", "model_type", "dtype", "tie_word_embeddings"): t.pop(k, None)
    c = {**t, **c, "tie_word_embeddings": True, "torch_dtype": c.pop("dtype"), "transformers_version": "4.41.2"}
    c["rope_scaling"] = {"type": "mrope", "mrope_section": c["rope_scaling"]["mrope_section"]}
    c["vision_config"] = {k: v for k, v in c["vision_config"].items() if k not in ("dtype",)}
    return c
def prefixed(n):
    for old, new in (("language_model.lm_head", "lm_head"), ("language_model.model.", "model.language_model."), ("vision_tower.", "model.vision_tower."), ("multi_modal_projector.", "model.multi_modal_projector.")):
        if n.startswith(old): return new + n[len(old):]
    return n
def qwen(n):
    return "model.language_model." + n[6:] if n.startswith("model.") else ("model." + n if n.startswith("visual.") else n)
copy("qwen2_5_vl_v4", "qwen2_5_vl_hub", config=flat)
copy("qwen2_5_vl_v4", "qwen2_5_vl_v4_renamed", rename=qwen)
for name in ("mistral3", "gemma3", "llava"):
    copy(f"{name}_v4", f"{name}_v4_renamed", rename=prefixed)
