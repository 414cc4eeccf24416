"""Writes experts of four bits and what transformers widens them to, into crates/sterna-hf/tests/fixtures/mxfp4.

Every code is there with scales from the smallest to the largest finite one. Run with torch 2.11.0 and transformers 5.24.0 on a CPU:

    python golden/make_hf_mxfp4.py
"""

from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

assert transformers.__version__ == "5.24.0", transformers.__version__

OUT = Path(__file__).resolve().parent.parent / "crates/sterna-hf/tests/fixtures/mxfp4"

if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(20261121)
    blocks = torch.randint(0, 256, (2, 3, 2, 16), generator=generator, dtype=torch.uint8)
    blocks[0, 0, 0] = torch.arange(16) * 17
    scales = torch.tensor([127, 0, 1, 254, 120, 121, 122, 123, 124, 125, 126, 253], dtype=torch.uint8).view(2, 3, 2)
    widened = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16).contiguous()
    tensors = {"experts_blocks": blocks, "experts_scales": scales, "widened": widened}
    save_file(tensors, OUT / "model.safetensors", {"format": "pt"})
    print(widened.shape, (OUT / "model.safetensors").stat().st_size, "bytes")
