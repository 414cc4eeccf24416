//! Labels what `golden/check_chat_templates.py` rendered, and checks it by what the labels must and must not touch.
//!
//! ```text
//! cargo run -p sterna-data --example label_chats rendered.json MODEL_FOLDER
//! ```
//!
//! Every text of a conversation is replaced by a word of its own: `user3word`, `assistant4word`. Whatever the template does, a labelled
//! token must not touch a word that the assistant did not write, and must touch each one that it wrote and that is printed. A
//! conversation that is refused is counted and its reason printed.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value};
use sterna_data::error::RowId;
use sterna_data::label_mask::{ChatTokenizer, MaskRule};
use sterna_hf::{Conversation, Message, Tokenizer};
use sterna_recipe::{ControlTokens, LabelMask};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: label_chats FILE MODEL_FOLDER";
    let (path, model) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    let file: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let mut out = std::io::stdout().lock();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, template) in file["templates"].as_object().ok_or("the file has no templates")? {
        let Ok(tokenizer) = with_template(Path::new(&model), template) else { continue };
        for (shape, context) in file["shapes"].as_object().ok_or("the file has no shapes")? {
            let mut conversation = conversation(context);
            // Rows with images are refused before.
            let has_images = context.to_string().contains("\"image\"");
            let is_written = |message: &Message| message.role() == "assistant";
            if conversation.messages.iter().any(is_written) && !has_images {
                let words = put_words(&mut conversation);
                let (outcome, what) = check(&tokenizer, &conversation, &words);
                *counts.entry(outcome).or_default() += 1;
                if !what.is_empty() {
                    writeln!(out, "{name}, {shape}: {outcome}: {what}")?;
                }
            }
        }
    }
    writeln!(out, "{counts:?}")?;
    Ok(())
}

fn with_template(model: &Path, template: &Value) -> Result<Tokenizer, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    std::fs::copy(model.join("tokenizer.json"), folder.path().join("tokenizer.json"))?;
    let config = std::fs::read(model.join("tokenizer_config.json"))?;
    let mut config: Value = serde_json::from_slice(&config)?;
    config["chat_template"] = template.clone();
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string())?;
    Ok(Tokenizer::from_dir(folder.path())?)
}

fn conversation(context: &Value) -> Conversation {
    let mut kwargs = context.as_object().cloned().unwrap_or_default();
    let messages = kwargs.shift_remove("messages").unwrap_or_default();
    let tools = kwargs.shift_remove("tools").unwrap_or_default();
    for name in ["documents", "add_generation_prompt", "bos_token", "eos_token"] {
        kwargs.shift_remove(name);
    }
    let messages = messages.as_array().into_iter().flatten();
    Conversation {
        messages: messages.filter_map(Value::as_object).cloned().map(Message::from).collect(),
        tools,
        template_kwargs: kwargs,
    }
}

/// Words of a chat and whether the assistant wrote them.
type Words = Vec<(String, bool)>;

fn put_words(conversation: &mut Conversation) -> Words {
    let mut words = Words::new();
    for (i, message) in conversation.messages.iter_mut().enumerate() {
        let is_written = message.role() == "assistant";
        let role = message.role().to_owned();
        let mut word = |what: &str| {
            words.push((format!("{role}{what}{i}word"), is_written));
            words.last().map(|(word, _)| word.clone()).unwrap_or_default()
        };
        if let Some(Value::String(content)) = message.get("content") {
            let replaced = match content.rsplit_once("</think>") {
                Some((thought, answer)) if !answer.trim().is_empty() => {
                    let open = if thought.contains("<think>") { "<think>\n" } else { "" };
                    format!("{open}{}\n</think>\n\n{}", word("thought"), word("answer"))
                }
                _ if content.trim().is_empty() => content.clone(),
                _ => word("says"),
            };
            message.set("content", replaced);
        }
        for key in ["reasoning_content", "thinking", "reasoning"] {
            if !message.text_of(key).is_empty() {
                let replaced = word(key.split('_').next().unwrap_or_default());
                message.set(key, replaced);
            }
        }
        if let Some(Value::Array(calls)) = message.get("tool_calls") {
            let mut calls = calls.clone();
            for (k, call) in calls.iter_mut().enumerate() {
                let function =
                    if call.get("function").is_some() { &mut call["function"] } else { call };
                let arguments = &mut function["arguments"];
                if let Some(arguments) = arguments.as_object_mut().filter(|args| !args.is_empty()) {
                    *arguments = Map::from_iter([(
                        word(&format!("key{k}")),
                        word(&format!("value{k}")).into(),
                    )]);
                }
            }
            message.set("tool_calls", calls);
        }
    }
    words
}

fn check(
    tokenizer: &Tokenizer,
    conversation: &Conversation,
    words: &Words,
) -> (&'static str, String) {
    let rule = MaskRule {
        mask_inputs: true,
        label_mask: LabelMask::Exact,
        ignore_empty_think: false,
        chat_template_kwargs: Map::new(),
        control_tokens: ControlTokens::Warn,
    };
    let is_trained: Vec<bool> =
        conversation.messages.iter().map(|message| message.role() == "assistant").collect();
    let row_id =
        || RowId { source_name: String::new(), row: 0, path: "rendered.json".into(), line: None };
    let Ok(text) = tokenizer.render_chat(conversation, false) else {
        return ("the template refuses", String::new());
    };
    let chats = ChatTokenizer::new(tokenizer, rule);
    let (tokens, remarks) = match chats.tokenize(conversation, &is_trained, row_id) {
        Ok(tokenized) => tokenized,
        Err(error) => return ("refused", format!("{error}: {text:?}")),
    };
    let Ok(encoded) = tokenizer.encode(&text) else { return ("not encoded", String::new()) };
    let chars: Vec<char> = text.chars().collect();
    let mut is_labelled = vec![false; chars.len()];
    for (&(from, to), _) in encoded.offsets.iter().zip(&tokens.is_label).filter(|(_, is)| **is) {
        is_labelled[from..to].fill(true);
    }
    // The first token never is one.
    let past_first = encoded.offsets.first().map_or(0, |&(_, to)| to);
    for (word, is_written) in words {
        for (byte, _) in text.match_indices(word.as_str()) {
            let from = text[..byte].chars().count();
            let span = &is_labelled[from.max(past_first)..from + word.chars().count()];
            if *is_written && span.contains(&false) {
                return ("wrong", format!("`{word}` is no label: {}", shown(&chars, &is_labelled)));
            }
            if !is_written && span.contains(&true) {
                return ("wrong", format!("`{word}` is a label: {}", shown(&chars, &is_labelled)));
            }
        }
    }
    if remarks.num_unclosed > 0 {
        ("right, not closed", String::new())
    } else {
        ("right", String::new())
    }
}

/// The text with the labelled parts in brackets.
fn shown(chars: &[char], is_labelled: &[bool]) -> String {
    let mut text = String::new();
    let mut was = false;
    for (&c, &is) in chars.iter().zip(is_labelled) {
        if is != was {
            text.push(if is { '⟦' } else { '⟧' });
        }
        text.push(c);
        was = is;
    }
    format!("{text:?}")
}
