//! What the assistant wrote and the special tokens that end its turn.
//!
//! A reply cannot be found by looking for its text: the user may have said the same, the template may trim it, split a
//! `<think>` part off, or print it differently in the last turn. So the template is asked instead. The chat is rendered again with
//! a placeholder in place of the reply, and what is printed before and after the placeholder is the template's own text; the
//! original rendering must begin and end with exactly that text, and what lies between is the reply as printed. If it does not,
//! the sample is refused, because any answer would be a guess.

use std::ops::Range;

use sterna_hf::{Encoded, Message};

use super::{ASSISTANT, empty_think_len, is_space};
use crate::error::{Result, Unaligned};

const THINK: &str = "<think>";
const END_THINK: &str = "</think>";

/// A reply in the rendered chat, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// What the assistant wrote, as printed.
    written: Range<usize>,
    /// End of what the template prints to close the turn: text that would also be there if the chat ended with this turn.
    closed: usize,
}

/// Renders a chat.
type Render<'a, E> = dyn Fn(&[Message]) -> Result<String, E> + 'a;

/// Finds every reply of `messages` in `text`, which is their rendering.
///
/// Costs one rendering besides the one that made `text`, one more if the chat does not end with a reply, and one or two for each
/// reply if the template rewrites any of them.
///
/// # Errors
///
/// Those of `render`, and `unaligned` with the index of the message that cannot be located.
pub(super) fn locate_replies<E>(
    text: &str,
    messages: &[Message],
    render: &Render<'_, E>,
    unaligned: &dyn Fn(usize, Unaligned) -> E,
) -> Result<Vec<Reply>, E> {
    let turns: Vec<usize> =
        (0..messages.len()).filter(|&i| messages[i].role == ASSISTANT).collect();
    let Some(&last_turn) = turns.last() else { return Ok(Vec::new()) };
    let written = locate_written(text, messages, &turns, render, unaligned)?;

    // What closes a turn is what follows the last reply when nothing comes after it; no other turn can have begun there.
    let last_end = written.last().expect("one for each turn").end;
    let closer = if last_turn + 1 == messages.len() {
        text[last_end..].to_owned()
    } else {
        let ended = &messages[..=last_turn];
        let ended_text = render(ended)?;
        let written = locate_written(&ended_text, ended, &[last_turn], render, unaligned)?;
        ended_text[written[0].end..].to_owned()
    };
    let reply = |written: Range<usize>| {
        let closed = written.end + common_prefix_len(&text[written.end..], &closer);
        Reply { written, closed }
    };
    Ok(written.into_iter().map(reply).collect())
}

fn common_prefix_len(a: &str, b: &str) -> usize {
    a.char_indices()
        .zip(b.chars())
        .find(|((_, a), b)| a != b)
        .map_or(a.len().min(b.len()), |((i, _), _)| i)
}

fn locate_written<E>(
    text: &str,
    messages: &[Message],
    turns: &[usize],
    render: &Render<'_, E>,
    unaligned: &dyn Fn(usize, Unaligned) -> E,
) -> Result<Vec<Range<usize>>, E> {
    let placeholders = Placeholders::absent_from(text);
    let mut hidden = messages.to_vec();
    for (i, &turn) in turns.iter().enumerate() {
        hidden[turn].content = placeholders.of(i);
    }
    let skeleton = render(&hidden)?;
    if let Some(written) = walk(text, &skeleton, messages, turns, &placeholders) {
        return Ok(written);
    }
    turns
        .iter()
        .map(|&turn| locate_one(text, messages, turn, &placeholders, render, unaligned))
        .collect()
}

/// Names that the rendered chat does not contain, of letters and digits only so that no template rewrites them.
struct Placeholders {
    stem: String,
}

impl Placeholders {
    fn absent_from(text: &str) -> Self {
        let stems = (0..).map(|i| format!("sternaPlaceholder{i}x"));
        Self {
            stem: stems.into_iter().find(|stem| !text.contains(stem)).expect("a text is finite"),
        }
    }

    fn of(&self, index: usize) -> String {
        format!("{}{index}y", self.stem)
    }
}

/// The usual case, all replies at once: the template prints them as they are, or trimmed. `None` if any step does not fit.
fn walk(
    text: &str,
    skeleton: &str,
    messages: &[Message],
    turns: &[usize],
    placeholders: &Placeholders,
) -> Option<Vec<Range<usize>>> {
    let mut rest = skeleton;
    let mut fixed = Vec::with_capacity(turns.len() + 1);
    for i in 0..turns.len() {
        let (before, after) = rest.split_once(&placeholders.of(i))?;
        fixed.push(before);
        rest = after;
    }
    fixed.push(rest);
    if fixed.iter().any(|part| part.contains(&placeholders.stem)) {
        return None;
    }
    let mut at = text.starts_with(fixed[0]).then_some(fixed[0].len())?;
    let mut written = Vec::with_capacity(turns.len());
    for (&turn, &after) in turns.iter().zip(&fixed[1..]) {
        let content = messages[turn].content.as_str();
        let fits = |printed: &&str| {
            text[at..].strip_prefix(printed).is_some_and(|tail| tail.starts_with(after))
        };
        let printed = [content, content.trim_matches(is_space)].into_iter().find(fits)?;
        written.push(at..at + printed.len());
        at += printed.len() + after.len();
    }
    (at == text.len()).then_some(written)
}

/// One reply by itself, all others as they are.
fn locate_one<E>(
    text: &str,
    messages: &[Message],
    turn: usize,
    placeholders: &Placeholders,
    render: &Render<'_, E>,
    unaligned: &dyn Fn(usize, Unaligned) -> E,
) -> Result<Range<usize>, E> {
    let render_with = |content: String| {
        let mut hidden = messages.to_vec();
        hidden[turn].content = content;
        render(&hidden)
    };
    let answer = placeholders.of(0);
    let content = messages[turn].content.as_str();
    if let Some((thought, _)) = content.split_once(END_THINK) {
        // Templates of reasoning models take the reply apart at `</think>` and print the parts, or only the answer.
        let is_opened = thought.trim_start_matches(is_space).starts_with(THINK);
        let opening = if is_opened { "<think>\n" } else { "" };
        let reasoning = placeholders.of(1);
        let skeleton = render_with(format!("{opening}{reasoning}\n{END_THINK}\n\n{answer}"))?;
        if let Some(written) = align_thought(text, &skeleton, &reasoning, &answer, is_opened) {
            return Ok(written);
        }
    }
    let skeleton = render_with(answer.clone())?;
    let (before, after) =
        skeleton.split_once(&answer).ok_or_else(|| unaligned(turn, Unaligned::NotPrinted))?;
    if after.contains(&answer) {
        return Err(unaligned(turn, Unaligned::PrintedTwice));
    }
    between(text, before, after).ok_or_else(|| unaligned(turn, Unaligned::ContextChanges))
}

/// The reply from its `<think>` (or from the first word of its reasoning, if the template opens the thought itself) to its end.
/// `None` if the template does not print the reasoning.
fn align_thought(
    text: &str,
    skeleton: &str,
    reasoning: &str,
    answer: &str,
    is_opened: bool,
) -> Option<Range<usize>> {
    let (before, rest) = skeleton.split_once(reasoning)?;
    let (_, after) = rest.split_once(answer)?;
    if !is_opened {
        return between(text, before, after);
    }
    // The template may print its own whitespace after `<think>`.
    let before = before.trim_end_matches(is_space);
    let outside = before.strip_suffix(THINK)?;
    between(text, before, after).map(|written| outside.len()..written.end)
}

/// What is left of `text` without the prefix `before` and the suffix `after`.
fn between(text: &str, before: &str, after: &str) -> Option<Range<usize>> {
    let fits = text.len() >= before.len() + after.len()
        && text.starts_with(before)
        && text.ends_with(after);
    fits.then(|| before.len()..text.len() - after.len())
}

/// Marks the tokens that touch a reply, and after each reply the special tokens that close the turn, with whitespace between.
///
/// A token that straddles the edge of a reply is labelled, as in transformers' `return_assistant_tokens_mask`: the model has to
/// produce it in order to produce the reply.
pub(super) fn labels(
    text: &str,
    encoded: &Encoded,
    replies: &[Reply],
    ignore_empty_think: bool,
    is_special: impl Fn(u32) -> bool,
) -> Vec<bool> {
    let mut is_label = vec![false; encoded.ids.len()];
    let mut chars = CharIndex::new(text);
    let mut token = 0;
    for reply in replies {
        let skipped =
            if ignore_empty_think { empty_think_len(&text[reply.written.clone()]) } else { 0 };
        let start = chars.at(reply.written.start + skipped);
        let end = chars.at(reply.written.end);
        let closing: Vec<char> = text[reply.written.end..reply.closed].chars().collect();
        let closed = chars.at(reply.closed);

        // Offsets never decrease, and neither do replies.
        while token < encoded.offsets.len() && encoded.offsets[token].1 <= start {
            token += 1;
        }
        // Nothing straddles a reply of no characters.
        while start < end && token < encoded.offsets.len() && encoded.offsets[token].0 < end {
            is_label[token] = true;
            token += 1;
        }
        let mut past_special = token;
        for i in token..encoded.ids.len() {
            let (from, to) = encoded.offsets[i];
            if from < end || to > closed {
                break;
            }
            if is_special(encoded.ids[i]) {
                past_special = i + 1;
            } else if !closing[from - end..to - end].iter().copied().all(is_space) {
                break;
            }
        }
        is_label[token..past_special].fill(true);
        token = past_special;
    }
    is_label
}

/// Byte positions to character positions, for positions that mostly rise.
struct CharIndex<'a> {
    text: &'a str,
    byte: usize,
    char: usize,
}

impl<'a> CharIndex<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, byte: 0, char: 0 }
    }

    fn at(&mut self, byte: usize) -> usize {
        if byte < self.byte {
            (self.byte, self.char) = (0, 0);
        }
        self.char += self.text[self.byte..byte].chars().count();
        self.byte = byte;
        self.char
    }
}
