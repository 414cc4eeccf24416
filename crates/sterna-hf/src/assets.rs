//! The small files of a model folder, beside its weights.

/// What the model is and how it generates.
pub const MODEL_FILES: [&str; 2] = ["config.json", "generation_config.json"];

/// What makes up a tokenizer, its chat template included; slow tokenizers' files too, so that a
/// copy is as good as the original.
pub const TOKENIZER_FILES: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tekken.json",
];

/// All of them.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    MODEL_FILES.into_iter().chain(TOKENIZER_FILES)
}
