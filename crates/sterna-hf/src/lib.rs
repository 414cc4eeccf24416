//! Hugging Face assets as data: config.json, tokenizer, chat template, safetensors, hub. No torch.
