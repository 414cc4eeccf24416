#!/usr/bin/env python3
"""Write crates/sterna-data/tests/fixtures/rng.json: random orders as NumPy, PyTorch and Python give them.

Run with numpy, torch 2.11 and Python >= 3.10: python3 golden/make_data_rng.py
Random floats are given times 2^53, which makes them whole. Long orders are given by the SHA-256 of their values as little-endian u64, and their first eight values.
"""
import hashlib
import json
import os
import random
import struct

import numpy as np
import torch

OUT = os.path.join(os.path.dirname(__file__), "..", "crates", "sterna-data", "tests", "fixtures", "rng.json")
SEEDS = [0, 1, 42, 1234567, 2**32 - 1, 2**32, 2**40 + 17]
LENGTHS = [0, 1, 2, 10, 1000, 70001]


def order(seed, n, values):
    values = [int(v) for v in values]
    digest = hashlib.sha256(struct.pack(f"<{len(values)}Q", *values)).hexdigest()
    return {"seed": seed, "len": n, "head": values[:8], "sha256": digest}


def torch_order(seed, n):
    generator = torch.Generator()
    generator.manual_seed(seed)
    return torch.randperm(n, generator=generator).tolist()


def main():
    samples = [(10, 4), (5, 5), (21, 1), (22, 1), (100, 5), (100, 6), (100, 30), (2026, 100), (100000, 1000), (3, 0)]
    golden = {
        "numpy_permutation": [
            order(s, n, np.random.default_rng(s).permutation(n)) for s in SEEDS for n in LENGTHS
        ],
        "torch_randperm": [order(s, n, torch_order(s, n)) for s in SEEDS for n in LENGTHS],
        "python_sample": [
            order(s, n, random.Random(s).sample(range(n), k)) | {"count": k} for s in SEEDS for n, k in samples
        ],
        "python_random": [
            {"seed": s, "values": [int(r.random() * 2**53) for _ in range(5)]} for s in SEEDS for r in [random.Random(s)]
        ],
    }
    with open(OUT, "w", encoding="utf-8") as f:
        json.dump(golden, f, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    main()
