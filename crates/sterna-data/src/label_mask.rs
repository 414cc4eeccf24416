//! Which tokens of a chat are trained on.
//!
//! The module `reference` labels what the reference labels, text search and all, so that loss curves can be laid over each other. `exact`
//! labels what the assistant wrote and what ends its turn, in every turn, whatever else the text contains.

mod exact;
mod reference;

use std::borrow::Cow;
use std::ops::Range;

use serde_json::{Map, Value};
use sterna_hf::{Conversation, Encoded, Rendered, Tokenizer};
use sterna_recipe::{ControlTokens, DataOptions, LabelMask};

use self::exact::{Hidden, Openers};
use crate::{
    error::{Error, Result, RowId},
    messages::OTHER_TEXTS,
};

/// The role whose messages are trained on.
pub(crate) const ASSISTANT: &str = "assistant";

/// The recipe's masking keys.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskRule {
    /// Label only what the assistant said; otherwise every token.
    pub mask_inputs: bool,
    /// How that is found.
    pub label_mask: LabelMask,
    /// Leave `<think></think>` without content at the start of a reply out.
    pub ignore_empty_think: bool,
    /// Variables of the template.
    pub chat_template_kwargs: Map<String, Value>,
    /// What the names of special tokens in a row's texts become.
    pub control_tokens: ControlTokens,
}

impl MaskRule {
    /// Takes the masking keys out of `data`.
    pub fn new(data: &DataOptions) -> Self {
        Self {
            mask_inputs: data.mask_inputs,
            label_mask: data.label_mask,
            ignore_empty_think: data.ignore_empty_think,
            chat_template_kwargs: data.chat_template_kwargs.clone(),
            control_tokens: data.control_tokens,
        }
    }
}

/// A sample as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, `[s]`.
    pub ids: Vec<u32>,
    /// Which of them are labels, `[s]`.
    pub is_label: Vec<bool>,
}

/// What is worth a warning about the tokens of a chat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remarks {
    /// Replies with labels.
    pub num_replies: usize,
    /// Those of which no end of turn is a label.
    pub num_unclosed: usize,
    /// Whether a text that the assistant did not write spells a special token.
    pub has_control_tokens: bool,
}

impl Remarks {
    /// Of both.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            num_replies: self.num_replies + other.num_replies,
            num_unclosed: self.num_unclosed + other.num_unclosed,
            has_control_tokens: self.has_control_tokens || other.has_control_tokens,
        }
    }
}

/// A chat before it is tokenized.
pub(crate) struct Untokenized<'a> {
    pub(crate) conversation: &'a Conversation,
    /// Which messages may have labels, `[messages]`.
    pub(crate) is_trained: &'a [bool],
    /// Names the row.
    pub(crate) row_id: &'a dyn Fn() -> RowId,
}

/// What the template is given of a chat.
struct Read<'a> {
    conversation: Cow<'a, Conversation>,
    stand_ins: StandIns,
    has_control_tokens: bool,
}

/// A chat with tokens and without labels.
struct EncodedChat {
    text: String,
    tokens: Encoded,
    /// What the template says that the assistant wrote, if it says so.
    generated: Option<Vec<Range<usize>>>,
    /// Else the chat that finds it, and its rendering if the template renders it.
    hidden: Option<Hidden>,
    skeleton: Option<String>,
}

/// What turns the chats of a source into tokens.
pub struct ChatTokenizer<'a> {
    tokenizer: &'a Tokenizer,
    rule: MaskRule,
    openers: Openers,
}

impl<'a> ChatTokenizer<'a> {
    /// Asks the chat template how it opens turns.
    pub fn new(tokenizer: &'a Tokenizer, rule: MaskRule) -> Self {
        let openers = Openers::of(&rule.chat_template_kwargs, &|conversation, prompt| {
            tokenizer.render_chat(conversation, prompt).ok()
        });
        Self { tokenizer, rule, openers }
    }

    /// Renders, tokenizes and masks a chat; `is_trained` says which messages may have labels, `[messages]`. Nothing is truncated.
    ///
    /// # Errors
    ///
    /// [`Error::Template`], [`Error::Tokenize`], [`Error::ReplyUnaligned`]. `row_id` names the row.
    pub fn tokenize(
        &self,
        conversation: &Conversation,
        is_trained: &[bool],
        row_id: impl Fn() -> RowId,
    ) -> Result<(Tokens, Remarks)> {
        let chat = Untokenized { conversation, is_trained, row_id: &row_id };
        only(self.tokenize_all(&[chat]))
    }

    /// [`Self::tokenize`] of several chats, which takes less time than one by one. What follows a chat whose rendering had to be given
    /// up has no result.
    pub(crate) fn tokenize_all(&self, chats: &[Untokenized<'_>]) -> Vec<Result<(Tokens, Remarks)>> {
        let read: Vec<_> = chats.iter().map(|chat| self.read(chat.conversation)).collect();
        let rendered = self.render_all(read.iter().map(|read| &*read.conversation));
        let mut results: Vec<_> = chats
            .iter()
            .zip(&read)
            .zip(rendered)
            .map(|((chat, read), rendered)| self.encode_rendered(chat, read, rendered))
            .collect();
        // The second rendering of each, all in one go too.
        let mut asked: Vec<_> =
            results.iter_mut().filter_map(|result| result.as_mut().ok()).collect();
        asked.retain(|encoded| encoded.hidden.is_some());
        let hidden = asked.iter().filter_map(|encoded| encoded.hidden.as_ref());
        let skeletons = self.render_all(hidden.map(Hidden::conversation));
        for (encoded, skeleton) in asked.into_iter().zip(skeletons) {
            encoded.skeleton = skeleton.ok().map(|rendered| rendered.text);
        }
        let all = chats.iter().zip(&read).zip(results);
        all.map(|((chat, read), encoded)| self.label(chat, read, encoded?)).collect()
    }

    fn render_all<'b>(
        &self,
        conversations: impl Iterator<Item = &'b Conversation>,
    ) -> Vec<Result<Rendered, sterna_hf::Error>> {
        let conversations: Vec<_> =
            conversations.map(|conversation| (conversation, false)).collect();
        if conversations.is_empty() {
            return Vec::new();
        }
        // Without a template none is rendered.
        self.tokenizer.render_all(&conversations).unwrap_or_else(|error| vec![Err(error)])
    }

    /// What of a chat the template is given.
    fn read<'b>(&self, conversation: &'b Conversation) -> Read<'b> {
        let rule = &self.rule;
        let mut conversation = self.as_the_template_reads_it(conversation);
        let mut has_control_tokens = false;
        let mut stand_ins = StandIns::default();
        if rule.label_mask == LabelMask::Exact {
            has_control_tokens = self.spells_special_tokens(&conversation);
            if has_control_tokens && rule.control_tokens == ControlTokens::PlainText {
                stand_ins = self.stand_in_for_special_tokens(conversation.to_mut());
            }
        }
        Read { conversation, stand_ins, has_control_tokens }
    }

    fn encode_rendered(
        &self,
        chat: &Untokenized<'_>,
        read: &Read<'_>,
        rendered: Result<Rendered, sterna_hf::Error>,
    ) -> Result<EncodedChat> {
        let row = || Box::new((chat.row_id)());
        let Rendered { text, generated } =
            rendered.map_err(|source| Error::Template { row: row(), source: Box::new(source) })?;
        let tokens = self
            .encode(&text, &read.stand_ins)
            .map_err(|source| Error::Tokenize { row: row(), source: Box::new(source) })?;
        let generated = generated.filter(|spans| !spans.is_empty());
        let is_asked = self.rule.mask_inputs
            && self.rule.label_mask == LabelMask::Exact
            && generated.is_none();
        let hidden = is_asked.then(|| Hidden::all_turns(&read.conversation, &text));
        Ok(EncodedChat { text, tokens, generated, hidden, skeleton: None })
    }

    fn label(
        &self,
        chat: &Untokenized<'_>,
        read: &Read<'_>,
        encoded: EncodedChat,
    ) -> Result<(Tokens, Remarks)> {
        let (tokenizer, rule, conversation) = (self.tokenizer, &self.rule, &*read.conversation);
        let mut remarks =
            Remarks { has_control_tokens: read.has_control_tokens, ..Remarks::default() };
        let EncodedChat { text, tokens: encoded, generated, hidden, skeleton } = encoded;
        let mut is_label = match (rule.mask_inputs, rule.label_mask) {
            (false, _) => vec![true; encoded.ids.len()],
            (true, LabelMask::Reference) => reference::labels(
                &text,
                &encoded.offsets,
                &conversation.messages,
                rule.ignore_empty_think,
            ),
            (true, LabelMask::Exact) => {
                let is_trained = chat.is_trained;
                let render = |chat: &Conversation| tokenizer.render_chat(chat, false).ok();
                let first = hidden.map(|hidden| (hidden, skeleton));
                let located =
                    || exact::locate_replies(&text, conversation, &self.openers, &render, first);
                let replies = match generated {
                    Some(spans) => exact::generated(spans, conversation, is_trained, located),
                    None => located(),
                };
                let mut replies = replies.map_err(|(turn, why)| Error::ReplyUnaligned {
                    row: Box::new((chat.row_id)()),
                    turn,
                    why,
                })?;
                replies.retain(|reply| is_trained[reply.message]);
                let is_special = |id: u32| {
                    Some(id) == tokenizer.eos_token_id()
                        || tokenizer.special_token_ids().binary_search(&id).is_ok()
                };
                let (is_label, num_unclosed) =
                    exact::labels(&text, &encoded, &replies, rule.ignore_empty_think, is_special);
                remarks.num_replies = replies.len();
                remarks.num_unclosed = num_unclosed;
                is_label
            }
        };
        // In a pack, the token before a chat's first one belongs to another chat and has no business predicting it. (The
        // reference trains on that; with masked inputs the first token is the template's and never a label.)
        if let (LabelMask::Exact, Some(first)) = (rule.label_mask, is_label.first_mut()) {
            *first = false;
        }
        Ok((Tokens { ids: encoded.ids, is_label }, remarks))
    }

    /// Tokenizes text as transformers does, special tokens around it included, and puts the end-of-text token behind it. What is not of
    /// `prompt` has labels; a token of both is one.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenize`].
    pub fn tokenize_text(
        &self,
        prompt: &str,
        completion: &str,
        row_id: impl Fn() -> RowId,
    ) -> Result<Tokens> {
        let text = format!("{prompt}{completion}");
        let encoded = self.tokenizer.encode_with_special_tokens(&text);
        let Encoded { mut ids, offsets } = encoded.map_err(|source| Error::Tokenize {
            row: Box::new(row_id()),
            source: Box::new(source),
        })?;
        let num_prompt = prompt.chars().count();
        let mut is_label: Vec<bool> =
            offsets.iter().map(|&(_, to)| !self.rule.mask_inputs || to > num_prompt).collect();
        match self.tokenizer.eos_token_id() {
            Some(eos) if ids.last() == Some(&eos) => {
                is_label[ids.len() - 1] = true;
            }
            Some(eos) => {
                ids.push(eos);
                is_label.push(true);
            }
            None => {}
        }
        // Nothing in its own sample predicts it.
        if let Some(first) = is_label.first_mut() {
            *first = false;
        }
        Ok(Tokens { ids, is_label })
    }

    /// Tokenizes a text to continue: the tokens of the text between the tokens that begin and end one, as far as the tokenizer has them.
    /// All have labels, but the first one only if labels are the reference's.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenize`].
    ///
    /// # Source
    ///
    /// ArcticTraining `causal_factory.py` (`tokenize_text`).
    pub fn tokenize_document(&self, text: &str, row_id: impl Fn() -> RowId) -> Result<Tokens> {
        let encoded = self.tokenizer.encode(text).map_err(|source| Error::Tokenize {
            row: Box::new(row_id()),
            source: Box::new(source),
        })?;
        let bos = self.tokenizer.bos_token_id().into_iter();
        let ids: Vec<u32> = bos.chain(encoded.ids).chain(self.tokenizer.eos_token_id()).collect();
        let mut is_label = vec![true; ids.len()];
        if let (LabelMask::Exact, Some(first)) = (self.rule.label_mask, is_label.first_mut()) {
            *first = false;
        }
        Ok(Tokens { ids, is_label })
    }

    fn spells_special_tokens(&self, conversation: &Conversation) -> bool {
        let mut texts = Vec::new();
        texts_in(&conversation.tools, &mut texts);
        for message in conversation.messages.iter().filter(|message| message.role() != ASSISTANT) {
            if let Some(content) = message.get("content") {
                texts_in(content, &mut texts);
            }
        }
        texts.into_iter().any(|text| self.tokenizer.special_tokens_in(text).next().is_some())
    }

    /// Replaces special tokens that texts spell by names that no text has.
    fn stand_in_for_special_tokens(&self, conversation: &mut Conversation) -> StandIns {
        let stem = {
            let mut texts = Vec::new();
            texts_in(&conversation.tools, &mut texts);
            for message in &conversation.messages {
                let said =
                    OTHER_TEXTS.iter().chain(&["content"]).filter_map(|key| message.get(key));
                said.for_each(|value| texts_in(value, &mut texts));
            }
            let mut stems = (0..).map(|i| format!("sternaControl{i}x"));
            stems
                .find(|stem| !texts.iter().any(|text| text.contains(stem)))
                .expect("texts are finite")
        };
        let mut stand_ins = StandIns { stem, tokens: Vec::new() };
        let mut replace = |text: &mut String| {
            let mut replaced = String::with_capacity(text.len());
            let mut copied = 0;
            for found in self.tokenizer.special_tokens_in(text) {
                replaced += &text[copied..found.start];
                replaced += &stand_ins.name_of(&text[found.clone()]);
                copied = found.end;
            }
            replaced += &text[copied..];
            *text = replaced;
        };
        for_each_text(&mut conversation.tools, &mut replace);
        let others = conversation.messages.iter_mut().filter(|message| message.role() != ASSISTANT);
        for message in others {
            let Some(mut content) = message.get("content").cloned() else { continue };
            for_each_text(&mut content, &mut replace);
            message.set("content", content);
        }
        stand_ins
    }

    /// The tokens of `text`, in which each stand-in is the letters of what it stands for; offsets are those of `text`.
    fn encode(&self, text: &str, stand_ins: &StandIns) -> Result<Encoded, sterna_hf::Error> {
        if stand_ins.tokens.is_empty() {
            return self.tokenizer.encode(text);
        }
        let mut encoded = Encoded { ids: Vec::new(), offsets: Vec::new() };
        let (mut at, mut at_char) = (0, 0);
        for (start, token, name_len) in stand_ins.find_in(text) {
            let piece = &text[at..start];
            append(&mut encoded, self.tokenizer.encode(piece)?, at_char);
            at_char += piece.chars().count();
            let letters = self.tokenizer.encode_as_plain_text(token)?;
            let offsets = (at_char, at_char + name_len);
            encoded.offsets.extend(letters.ids.iter().map(|_| offsets));
            encoded.ids.extend(letters.ids);
            (at, at_char) = (start + name_len, offsets.1);
        }
        append(&mut encoded, self.tokenizer.encode(&text[at..])?, at_char);
        Ok(encoded)
    }

    /// With the recipe's variables, and lists of texts as one text if the template prints only text.
    fn as_the_template_reads_it<'b>(
        &self,
        conversation: &'b Conversation,
    ) -> Cow<'b, Conversation> {
        let mut conversation = Cow::Borrowed(conversation);
        for (name, value) in &self.rule.chat_template_kwargs {
            if !conversation.template_kwargs.contains_key(name) {
                conversation.to_mut().template_kwargs.insert(name.clone(), value.clone());
            }
        }
        for i in 0..conversation.messages.len() {
            if let Some(Value::Array(parts)) = conversation.messages[i].get("content")
                && !self.tokenizer.reads_content_parts()
            {
                let texts = parts.iter().filter_map(|part| part.get("text")?.as_str());
                let text: String = texts.collect();
                conversation.to_mut().messages[i].set("content", text);
            }
        }
        conversation
    }
}

/// The result of the one chat that was asked for.
fn only<T>(mut results: Vec<T>) -> T {
    results.pop().expect("the first has a result")
}

/// Names in place of special tokens that texts spell: `STEM0y`, `STEM1y` and so on, of which no text has the stem.
#[derive(Default)]
struct StandIns {
    stem: String,
    /// What each stands for.
    tokens: Vec<String>,
}

impl StandIns {
    /// The name for `token`, the same every time.
    fn name_of(&mut self, token: &str) -> String {
        let known = self.tokens.iter().position(|known| known == token);
        let index = known.unwrap_or_else(|| {
            self.tokens.push(token.to_owned());
            self.tokens.len() - 1
        });
        format!("{}{index}y", self.stem)
    }

    /// Where names are in `text`, in bytes, what they stand for, and how long they are. One pass, however many there are.
    fn find_in<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, &'a str, usize)> {
        text.match_indices(&self.stem).filter_map(|(start, stem)| {
            let (index, _) = text[start + stem.len()..].split_once('y')?;
            let token = self.tokens.get(index.parse::<usize>().ok()?)?;
            Some((start, token.as_str(), stem.len() + index.len() + 1))
        })
    }
}

/// Appends the tokens of a piece that starts at character `at_char`.
fn append(encoded: &mut Encoded, piece: Encoded, at_char: usize) {
    encoded.ids.extend(piece.ids);
    encoded.offsets.extend(piece.offsets.iter().map(|(from, to)| (from + at_char, to + at_char)));
}

/// Every text in `value`.
fn texts_in<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => out.push(text),
        Value::Array(items) => items.iter().for_each(|item| texts_in(item, out)),
        Value::Object(fields) => fields.values().for_each(|field| texts_in(field, out)),
        _ => {}
    }
}

fn for_each_text(value: &mut Value, change: &mut impl FnMut(&mut String)) {
    match value {
        Value::String(text) => change(text),
        Value::Array(items) => items.iter_mut().for_each(|item| for_each_text(item, change)),
        Value::Object(fields) => {
            fields.values_mut().for_each(|field| for_each_text(field, change));
        }
        _ => {}
    }
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
