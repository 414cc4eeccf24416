//! Which tokens of a chat are trained on.
//!
//! The module `reference` labels what the reference labels, text search and all, so that loss curves can be laid over each other. `exact`
//! labels what the assistant wrote and the special tokens that end its turn, in every turn, whatever else the text contains.

mod exact;
mod reference;

use sterna_hf::{Message, Tokenizer};
use sterna_recipe::{DataOptions, LabelMask};

use crate::error::{Error, Result, RowId};

/// The role whose messages are trained on.
const ASSISTANT: &str = "assistant";

/// The recipe's masking keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskRule {
    /// Label only what the assistant said; otherwise every token.
    pub mask_inputs: bool,
    /// How that is found.
    pub label_mask: LabelMask,
    /// Leave `<think></think>` without content at the start of a reply out.
    pub ignore_empty_think: bool,
}

impl MaskRule {
    /// Takes the masking keys out of `data`.
    pub fn new(data: &DataOptions) -> Self {
        Self {
            mask_inputs: data.mask_inputs,
            label_mask: data.label_mask,
            ignore_empty_think: data.ignore_empty_think,
        }
    }
}

/// A chat as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, `[s]`.
    pub ids: Vec<u32>,
    /// Which of them are labels, `[s]`.
    pub is_label: Vec<bool>,
}

/// Renders, tokenizes and masks a chat. Nothing is truncated.
///
/// # Errors
///
/// [`Error::Template`], [`Error::Tokenize`], [`Error::ReplyUnaligned`]. `row_id` names the row.
pub fn tokenize_chat(
    tokenizer: &Tokenizer,
    messages: &[Message],
    rule: MaskRule,
    row_id: impl Fn() -> RowId,
) -> Result<Tokens> {
    let render = |messages: &[Message]| {
        tokenizer
            .render_chat(messages, false)
            .map_err(|source| Error::Template { row: Box::new(row_id()), source: Box::new(source) })
    };
    let text = render(messages)?;
    let encoded = tokenizer
        .encode(&text)
        .map_err(|source| Error::Tokenize { row: Box::new(row_id()), source: Box::new(source) })?;
    let mut is_label = match (rule.mask_inputs, rule.label_mask) {
        (false, _) => vec![true; encoded.ids.len()],
        (true, LabelMask::Reference) => {
            reference::labels(&text, &encoded.offsets, messages, rule.ignore_empty_think)
        }
        (true, LabelMask::Exact) => {
            let unaligned =
                |turn, why| Error::ReplyUnaligned { row: Box::new(row_id()), turn, why };
            let replies = exact::locate_replies(&text, messages, &render, &unaligned)?;
            let is_special = |id: u32| {
                Some(id) == tokenizer.eos_token_id() || tokenizer.special_token_ids().contains(&id)
            };
            exact::labels(&text, &encoded, &replies, rule.ignore_empty_think, is_special)
        }
    };
    // In a pack, the token before a chat's first one belongs to another chat and has no business predicting it. (The
    // reference trains on that; with masked inputs the first token is the template's and never a label.)
    if let (LabelMask::Exact, Some(first)) = (rule.label_mask, is_label.first_mut()) {
        *first = false;
    }
    Ok(Tokens { ids: encoded.ids, is_label })
}

/// How many bytes at the start of `text` are `<think></think>` with nothing but whitespace in and after it.
fn empty_think_len(text: &str) -> usize {
    let inside = text.strip_prefix("<think>").map(trim_start);
    inside
        .and_then(|rest| rest.strip_prefix("</think>"))
        .map_or(0, |rest| text.len() - trim_start(rest).len())
}

fn trim_start(text: &str) -> &str {
    text.trim_start_matches(is_space)
}

/// `str.isspace` of Python, which `\s` and `strip` use: Unicode whitespace and the four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}
