//! Source to messages to tokens to packed samples to micro-batches to sequence shards. No torch.
