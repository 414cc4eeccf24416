//! Tokenizers and chat templates.

use std::path::Path;

use serde_json::{Map, json};
use sterna_hf::{ChatTemplate, Conversation, Message, Tokenizer};

use super::{Target, answer, crates, files, read, text, write};

pub(super) const TOKENIZER: Target = Target {
    name: "tokenizer",
    dictionary: &[
        "\"added_tokens\"",
        "\"normalizer\"",
        "\"pre_tokenizer\"",
        "\"model\"",
        "\"decoder\"",
        "\"post_processor\"",
        "\"vocab\"",
        "\"merges\"",
        "\"BPE\"",
        "\"WordPiece\"",
        "\"Unigram\"",
        "\"WordLevel\"",
        "\"ByteLevel\"",
        "\"Split\"",
        "\"Sequence\"",
        "\"Regex\"",
        "\"pattern\"",
        "\"(a+)+$\"",
        "\"(?:(?:a*)*)*b\"",
        "\"Replace\"",
        "\"NFC\"",
        "\"Strip\"",
        "\"Precompiled\"",
        "\"precompiled_charsmap\"",
        "\"AAAA\"",
        "\"Metaspace\"",
        "\"Digits\"",
        "\"Truncate\"",
        "\"truncation\"",
        "\"padding\"",
        "\"max_length\"",
        "\"stride\"",
        "\"unk_token\"",
        "\"unk_id\"",
        "\"byte_fallback\"",
        "\"dropout\"",
        "\"fuse_unk\"",
        "\"special\"",
        "\"content\"",
        "\"id\"",
        "\"type\"",
        "\"TemplateProcessing\"",
    ],
    memory: 3,
    seeds: || {
        ["gpt2", "llama", "qwen2"]
            .map(|name| {
                read(
                    &crates()
                        .join("sterna-hf/tests/fixtures/tokenizers")
                        .join(name)
                        .join("tokenizer.json"),
                )
            })
            .to_vec()
    },
    run: run_tokenizer,
};

pub(super) const TEMPLATE: Target = Target {
    name: "template",
    dictionary: &[
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "-%}",
        "{%-",
        "{% if ",
        "{% endif %}",
        "{% for x in messages %}",
        "{% endfor %}",
        "{% set x = ",
        "{% set ns = namespace(x=1) %}",
        "{% set ns.x = ",
        "{% macro m(a) %}",
        "{% endmacro %}",
        "{{ m(1) }}",
        "{% generation %}",
        "{% endgeneration %}",
        "{% raw %}",
        "{% endraw %}",
        "{% with %}",
        "{% break %}",
        "{% continue %}",
        "{% filter upper %}",
        "{% endfilter %}",
        "{% set x %}",
        "{% endset %}",
        "{% call m() %}",
        "recursive",
        "loop(x)",
        "loop.index",
        "range(99999)",
        "messages",
        "message['content']",
        "add_generation_prompt",
        "bos_token",
        "|tojson",
        "|tojson(indent=4)",
        "|trim",
        "|length",
        "|list",
        "|join(',')",
        "|replace('a', 'bb')",
        "|indent(4)",
        "|format(1)",
        "|batch(2)",
        "|slice(2)",
        "|sort",
        "|unique",
        "|map('upper')",
        "|selectattr('role')",
        "|groupby('role')",
        ".split('a')",
        ".strip()",
        ".replace('i', 'iiii')",
        ".startswith('a')",
        ".items()",
        ".format(1)",
        ".title()",
        ".join(['a'])",
        ".count('a')",
        ".zfill(9)",
        ".splitlines(True)",
        "~",
        "*",
        "**",
        "//",
        "+",
        "is defined",
        "is sequence",
        "is mapping",
        "in",
        "not",
        "[::-1]",
        "[-1]",
        "[0:99999]",
        "raise_exception('no')",
        "strftime_now('%Y')",
        "strftime_now('%')",
        "dict(a=1)",
        "lipsum()",
        "cycler('a')",
        "joiner()",
        "'%9999d' % 1",
        "'a' * 100000",
        "[1] * 100000",
        "x ~ x",
        "{'a': 1}",
        "(1, 2)",
        "1.5",
        "1e400",
        "9223372036854775808",
    ],
    // The watch over templates sees what is used, not what is reserved.
    memory: 12,
    seeds: || files("sterna-hf/tests/fixtures/chat", ".jinja"),
    run: run_template,
};

fn conversation() -> Conversation {
    let messages: Vec<Message> = ["system", "user", "assistant", "user", "assistant"]
        .into_iter()
        .enumerate()
        .map(|(i, role)| Message::new(role, format!("{i}: hi \u{e9}\n\n<think>a</think> b ")))
        .collect();
    messages.into()
}

fn run_tokenizer(input: &[u8], folder: &Path) -> String {
    write(&folder.join("tokenizer.json"), input);
    let config = json!({
        "eos_token": "<|endoftext|>",
        "chat_template": "{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}",
    });
    write(&folder.join("tokenizer_config.json"), config.to_string().as_bytes());
    let tokenizer = match Tokenizer::from_dir(folder) {
        Ok(tokenizer) => tokenizer,
        Err(err) => return answer(&err),
    };
    let text = match tokenizer.render_chat(&conversation(), true) {
        Ok(text) => text + &"aaaa aaab 12345 \u{1f600} ".repeat(20),
        Err(err) => return answer(&err),
    };
    let encoded = match tokenizer.encode(&text) {
        Ok(encoded) => encoded,
        Err(err) => return answer(&err),
    };
    match tokenizer.decode(&encoded.ids) {
        Ok(decoded) => format!("{} tokens, the same text: {}", encoded.ids.len(), decoded == text),
        Err(err) => answer(&err),
    }
}

fn run_template(input: &[u8], folder: &Path) -> String {
    let template = match ChatTemplate::compile(&text(input), &folder.join("chat_template.jinja")) {
        Ok(template) => template,
        Err(err) => return answer(&err),
    };
    let mut tokens = Map::new();
    for role in ["bos_token", "eos_token"] {
        tokens.insert(role.to_owned(), json!(format!("<{role}>")));
    }
    match template.render(&conversation(), true, &tokens) {
        Ok(text) => format!("{} characters", text.len()),
        // These refuse conversations, and seeds of other roles are fine.
        Err(sterna_hf::Error::TemplateRefused { .. }) => "raised an exception".to_owned(),
        Err(err) => answer(&err),
    }
}
