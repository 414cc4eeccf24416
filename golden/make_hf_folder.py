"""Writes a tiny random Llama as transformers saves it, in several files: what `sterna export` must give back byte for byte.

Usage: python golden/make_hf_folder.py crates/sterna-hf/tests/fixtures/saved
Made with transformers 4.57.6, torch 2.11.0, seed 0.
"""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
    dtype=torch.bfloat16,
)
model = LlamaForCausalLM(config).to(torch.bfloat16)
model.save_pretrained(sys.argv[1], max_shard_size="12KB")
