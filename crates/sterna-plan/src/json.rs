//! Plans as JSON.

use serde_json::{Value, json};
use sterna_mesh::Axis;

use crate::{Plan, UnitPlan};

pub(crate) fn plan(plan: &Plan) -> Value {
    let Plan {
        model,
        mesh,
        device,
        heads,
        zero,
        batch,
        tiles,
        keep,
        attention,
        steps,
        memory,
        notes,
        recipe,
    } = plan;
    json!({
        "model": {
            "name": model.name,
            "family": model.family.model_type(),
            "num_parameters": model.num_parameters,
            "num_trained": model.num_trained,
            "num_hidden_layers": model.num_hidden_layers,
            "hidden_size": model.hidden_size,
            "num_attention_heads": model.num_attention_heads,
            "num_key_value_heads": model.num_key_value_heads,
            "head_dim": model.head_dim,
            "vocab_size": model.vocab_size,
            "dtype": model.dtype.torch_name(),
            "has_random_weights": model.has_random_weights,
        },
        "mesh": {
            "world_size": mesh.world_size(),
            "sp_size": mesh.size(Axis::Sp),
            "dp_size": mesh.size(Axis::Dp),
        },
        "device": device.name(),
        "heads": heads.iter().map(|split| json!({
            "q": [split.q.start, split.q.end],
            "kv": [split.kv.start, split.kv.end],
        })).collect::<Vec<_>>(),
        "zero": {
            "stage": zero.stage.number(),
            "shards_params": zero.shards_params,
            "shards_gradients": zero.shards_gradients,
            "shards_optimizer": zero.shards_optimizer,
            "offload_param": zero.offload_param,
            "optimizer_on": zero.optimizer_on.name(),
            "gradients_on": zero.gradients_on.name(),
            "moments_dtype": zero.moments_dtype.torch_name(),
            "reduce_dtype": zero.reduce_dtype.torch_name(),
            "grad_accum_dtype": zero.grad_accum_dtype.torch_name(),
            "units": zero.units.iter().map(unit).collect::<Vec<_>>(),
            "gathered_len": zero.gathered_len,
            "reduced_len": zero.reduced_len,
        },
        "batch": {
            "micro_batch_size": batch.micro_batch_size,
            "max_length": batch.max_length,
            "padded_length": batch.padded_length,
            "local_tokens": batch.local_tokens,
            "micro_batches_per_step": batch.micro_batches_per_step,
            "max_tokens_per_step": batch.max_tokens_per_step,
        },
        "tiles": { "qkv": tiles.qkv, "mlp": tiles.mlp, "head": tiles.head },
        "keep": {
            "graph": keep.graph,
            "inputs_every": keep.inputs_every,
            "attention": keep.attention,
            "inputs_on": keep.inputs_on.name(),
            "attention_on": keep.attention_on.name(),
        },
        "attention": { "head_groups": attention.head_groups, "query_tile": attention.query_tile },
        "steps": {
            "epochs": steps.epochs,
            "train_iters": steps.train_iters,
            "min_iterations": steps.min_iterations,
            "exit_iteration": steps.exit_iteration,
            "gradient_accumulation_steps": steps.gradient_accumulation_steps,
        },
        "memory": {
            "rows": memory.rows.iter().map(|row| json!({
                "kind": row.kind.name(),
                "device_bytes": row.device_bytes,
                "host_bytes": row.host_bytes,
                "disk_bytes": row.disk_bytes,
            })).collect::<Vec<_>>(),
            "device_bytes": memory.device_bytes(),
            "host_bytes": memory.host_bytes(),
            "disk_bytes": memory.disk_bytes(),
            "kept_attention_bytes": memory.kept_attention_bytes,
        },
        "recipe": recipe,
        "notes": notes.iter().map(|note| json!({ "key": note.key_path, "text": note.text })).collect::<Vec<_>>(),
    })
}

fn unit(unit: &UnitPlan) -> Value {
    json!({
        "name": unit.name,
        "count": unit.count,
        "num_parameters": unit.num_parameters,
        "padded_len": unit.padded_len,
        "shard_len": unit.shard_len,
        "trained_len": unit.trained_len,
    })
}
