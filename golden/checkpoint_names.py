"""Names and shapes of checkpoints for the tensors of transformers 5, which fuses the experts of a layer in memory only."""

# Classes that the golden files have: the folder of experts in a checkpoint, and gate, up and down of one.
EXPERTS = {
    "deepseek_v2": ("mlp", "gate_proj", "up_proj", "down_proj"),
    "glm4_moe_lite": ("mlp", "gate_proj", "up_proj", "down_proj"),
    "minimax_m2": ("block_sparse_moe", "w1", "w3", "w2"),
    "qwen3_next": ("mlp", "gate_proj", "up_proj", "down_proj"),
}


def as_in_checkpoint(tensors, model_type):
    """The same tensors, or views of them, with one for each projection of an expert."""
    if model_type not in EXPERTS:
        return dict(tensors)
    folder, gate, up, down = EXPERTS[model_type]
    found = {}
    for name, value in tensors.items():
        name = name.replace(".mlp.", f".{folder}.")
        prefix, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            for index, expert in enumerate(value):
                found |= {f"{prefix}.{index}.{key}.weight": part for key, part in zip((gate, up), expert.chunk(2))}
        elif last == "down_proj":
            found |= {f"{prefix}.{index}.{down}.weight": expert for index, expert in enumerate(value)}
        else:
            found[name] = value
    return found
