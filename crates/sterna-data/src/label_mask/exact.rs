//! What the assistant wrote and what ends its turn.
//!
//! A reply cannot be found by looking for its text: the user may have said the same, the template may trim it, take its thoughts
//! out, or print it differently in the last turn. So the template is asked. The chat is rendered again with a marker in place of
//! every text that the assistant wrote ([`Hidden`]): what stands around the markers is the template's own text, and the original
//! rendering has to consist of exactly that text and of the texts behind the markers ([`align`]). If it does not, the sample is
//! refused, because any answer would be a guess.
//!
//! Calls of tools stay as they are in that second rendering. Where they end is what follows when the chat ends with them
//! ([`Chat::ending`]).

use std::cell::Cell;
use std::collections::HashSet;
use std::ops::Range;

use serde_json::{Map, Value};
use sterna_hf::{Conversation, Encoded, Message};

use super::{ASSISTANT, empty_think_len, is_space};
use crate::{
    error::{Result, Unaligned},
    messages::REASONING_KEYS,
};

const THINK: &str = "<think>";
const END_THINK: &str = "</think>";

/// Texts of a chat that no template rewrites.
const SHORT: &str = "sternaQuestion";
const SHORT_REPLY: &str = "sternaReply";
const SHORT_AGAIN: &str = "sternaAgain";

/// What the assistant wrote in one turn, in the rendered chat, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// Which message it is.
    pub(super) message: usize,
    /// From the first to the last thing written, calls of tools included.
    pub(super) written: Range<usize>,
    /// End of what the template prints to close the turn: text that would also be there if the chat ended with this turn.
    pub(super) closed: usize,
    /// Whether `closed` is all that the template prints to close a turn, whitespace at its end aside.
    pub(super) is_whole: bool,
    /// Whether nothing else of the message follows.
    pub(super) ends_turn: bool,
}

/// Renders a chat; `None` if the template fails on it.
type Render<'a> = dyn Fn(&Conversation) -> Option<String> + 'a;

/// Finds what the assistant wrote in `text`, which is the rendering of `conversation`.
///
/// `first` is [`Hidden::all_turns`] and its rendering, if somebody has made them already.
///
/// Costs one rendering besides the one that made `text`, a few of short chats for each turn that calls tools and one for all others,
/// and some for each turn that the template rewrites in a way that one rendering does not show.
///
/// A turn of which the template prints nothing (thoughts of an earlier turn, say) is not in the result.
///
/// # Errors
///
/// The index of the message that cannot be located, and why.
pub(super) fn locate_replies(
    text: &str,
    conversation: &Conversation,
    openers: &Openers,
    render: &Render<'_>,
    first: Option<(Hidden, Option<String>)>,
) -> Result<Vec<Reply>, (usize, Unaligned)> {
    let chat = Chat { text, conversation, openers, render, first: Cell::new(first) };
    let messages = &conversation.messages;
    let turns = turns_of(conversation);
    let mut names = HashSet::new();
    for &turn in &turns {
        let mut new = names_of_tools(&messages[turn]).filter(|name| names.insert(*name));
        if !new.all(|name| text.contains(name)) {
            return Err((turn, Unaligned::CallsNotPrinted));
        }
    }
    let mut usual_ending = None;
    let mut replies = Vec::new();
    for (&turn, printed) in turns.iter().zip(chat.printed(&turns)?) {
        // Some templates print the results of tools between the calls and the text of one message.
        let num_to_calls = printed.iter().position(|leaf| leaf.kind == LeafKind::Name);
        let num_to_calls = num_to_calls.map_or(0, |i| i + 1);
        let (to_calls, behind) = printed.split_at(num_to_calls);
        let num_before = replies.len();
        for leaves in [to_calls, behind] {
            let (Some(first), Some(last)) = (leaves.first(), leaves.last()) else { continue };
            let start = match first.kind {
                LeafKind::Reasoning => chat.opening(turn, first),
                LeafKind::Name => chat.opening_of_calls(turn, first)?,
                LeafKind::Thought | LeafKind::Answer => first.start,
            };
            let ends_with_calls =
                last.kind == LeafKind::Name || (num_to_calls == 0 && calls_tools(&messages[turn]));
            // Behind a thought without an answer stands what closes the thought.
            let goes_on = ends_with_calls || last.kind == LeafKind::Reasoning;
            let ending = if goes_on {
                chat.ending(turn, last)?
            } else {
                if usual_ending.is_none() {
                    usual_ending = Some(chat.usual_ending(turn)?);
                }
                usual_ending.clone().unwrap_or_default()
            };
            let common = common_prefix_len(&text[last.end..], &ending);
            let is_whole = common >= ending.trim_end_matches(is_space).len();
            let mut end = last.end;
            if goes_on {
                // Its end is what both have in common, but not half of a tag.
                let rest = text[last.end..last.end + common].trim_end_matches(is_space);
                end += if is_whole { rest.len() } else { len_without_open_tag(rest) };
            }
            replies.push(Reply {
                message: turn,
                written: start..end,
                closed: (last.end + common).max(end),
                is_whole,
                ends_turn: !ends_with_calls || behind.is_empty(),
            });
        }
        let says = |name: &str| {
            replies[num_before..].iter().any(|reply| text[reply.written.clone()].contains(name))
        };
        if !names_of_tools(&messages[turn]).all(says) {
            return Err((turn, Unaligned::CallsNotPrinted));
        }
        // A template that numbers the calls of a chat prints another number where they are asked for alone.
        let is_whole = replies[num_before..].iter().all(|reply| reply.is_whole);
        if !is_whole && !names_of_arguments(&messages[turn]).iter().all(|name| says(name)) {
            return Err((turn, Unaligned::ContextChanges));
        }
    }
    match replies.windows(2).find(|pair| pair[0].written.end > pair[1].written.start) {
        Some(pair) => Err((pair[1].message, Unaligned::OtherOrder)),
        None => Ok(replies),
    }
}

/// The replies of a template that says itself what the assistant wrote (`{% generation %}`), ends of turns included.
///
/// Which reply a part is of matters where only some are trained on: `located` then finds the replies, as [`locate_replies`] does.
///
/// # Errors
///
/// [`Unaligned::OtherGenerations`] if a part is of no reply, or of several that are not all trained on; errors of `located`.
pub(super) fn generated(
    spans: Vec<Range<usize>>,
    conversation: &Conversation,
    is_trained: &[bool],
    located: impl FnOnce() -> Result<Vec<Reply>, (usize, Unaligned)>,
) -> Result<Vec<Reply>, (usize, Unaligned)> {
    let mut turns = turns_of(conversation).into_iter();
    let Some(first_turn) = turns.next() else { return Ok(Vec::new()) };
    let reply = |message: usize, written: Range<usize>| Reply {
        message,
        closed: written.end,
        written,
        is_whole: false,
        ends_turn: false,
    };
    if is_trained[first_turn] && turns.all(|turn| is_trained[turn]) {
        return Ok(spans.into_iter().map(|span| reply(first_turn, span)).collect());
    }
    let located = located()?;
    let of_span = |span: Range<usize>| {
        let mut of = located
            .iter()
            .filter(|reply| reply.written.start < span.end && span.start < reply.closed)
            .map(|reply| reply.message);
        let message = of.next().ok_or((first_turn, Unaligned::OtherGenerations))?;
        match of.find(|other| is_trained[*other] != is_trained[message]) {
            Some(other) => Err((other, Unaligned::OtherGenerations)),
            None => Ok(reply(message, span)),
        }
    };
    spans.into_iter().map(of_span).collect()
}

/// Which messages are the assistant's.
fn turns_of(conversation: &Conversation) -> Vec<usize> {
    let messages = conversation.messages.iter().enumerate();
    messages.filter(|(_, message)| message.role() == ASSISTANT).map(|(i, _)| i).collect()
}

fn calls_tools(message: &Message) -> bool {
    message.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty())
        || message.get("function_call").is_some()
}

/// What tools `message` calls, as objects with `name` and `arguments`.
fn calls_of(message: &Message) -> impl Iterator<Item = &Value> {
    let calls = message.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
    let calls = calls.map(|call| call.get("function").unwrap_or(call));
    calls.chain(message.get("function_call"))
}

/// The names of the tools that `message` calls.
fn names_of_tools(message: &Message) -> impl Iterator<Item = &str> {
    calls_of(message).filter_map(|call| call.get("name")?.as_str())
}

/// The names of the arguments of those calls, as far as every template prints them as they are.
fn names_of_arguments(message: &Message) -> Vec<String> {
    let names = calls_of(message).flat_map(|call| {
        let parsed = call.get("arguments").map(|arguments| match arguments {
            Value::String(text) => serde_json::from_str(text).unwrap_or_default(),
            other => other.clone(),
        });
        let arguments = parsed.and_then(|arguments| arguments.as_object().cloned());
        let given = arguments.unwrap_or_default().into_iter().filter(|(_, value)| !value.is_null());
        given.map(|(name, _)| name)
    });
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    names.filter(|name| name.chars().all(is_plain)).collect()
}

/// A text of the assistant as printed, and what is known about its edges.
#[derive(Clone, Debug)]
struct Printed {
    kind: LeafKind,
    start: usize,
    end: usize,
    /// Where the template's text before it starts.
    before: usize,
    /// Bytes that the template prints after a text but not after none, before calls of tools.
    skipped: usize,
}

/// How the place of calls of tools is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Calls {
    /// By the name of the first.
    Name,
    /// By the text of their message, or the place of one.
    Text,
}

/// A rendered chat and what renders it.
struct Chat<'a> {
    text: &'a str,
    conversation: &'a Conversation,
    openers: &'a Openers,
    render: &'a Render<'a>,
    /// What is asked first, of all turns at once, if that was done before.
    first: Cell<Option<(Hidden, Option<String>)>>,
}

impl Chat<'_> {
    /// What is printed of each of `turns`, all from one rendering if that works, else from one for each half, and so on: a few turns
    /// that the template rewrites cost a few renderings.
    fn printed(&self, turns: &[usize]) -> Result<Vec<Vec<Printed>>, (usize, Unaligned)> {
        match *turns {
            [] => return Ok(Vec::new()),
            [turn] => return Ok(vec![self.printed_of(turn).map_err(|why| (turn, why))?]),
            _ => {}
        }
        let all = [Calls::Name, Calls::Text]
            .into_iter()
            .find_map(|calls| self.aligned(turns, calls).and_then(Result::ok));
        if let Some(printed) = all {
            return Ok(printed);
        }
        let (first, second) = turns.split_at(turns.len() / 2);
        let mut printed = self.printed(first)?;
        printed.extend(self.printed(second)?);
        Ok(printed)
    }

    /// `None` if the template refuses the chat with markers.
    fn aligned(
        &self,
        turns: &[usize],
        calls: Calls,
    ) -> Option<Result<Vec<Vec<Printed>>, Unaligned>> {
        let (hidden, skeleton) = self.first.take().unwrap_or_else(|| {
            let hidden = Hidden::new(self.conversation, turns, self.text, calls);
            let skeleton = (self.render)(&hidden.conversation);
            (hidden, skeleton)
        });
        Some(align(self.text, &skeleton?, &hidden))
    }

    /// What is printed of one turn, all other turns as they are.
    fn printed_of(&self, turn: usize) -> Result<Vec<Printed>, Unaligned> {
        let mut why = Unaligned::ContextChanges;
        for calls in [Calls::Name, Calls::Text] {
            match self.aligned(&[turn], calls) {
                Some(Ok(mut printed)) => return Ok(printed.remove(0)),
                Some(Err(reason)) => why = reason,
                None => {}
            }
        }
        // What is left between the template's texts before and after the whole reply.
        let whole = Hidden::whole(self.conversation, turn, self.text);
        let skeleton = (self.render)(&whole.conversation).ok_or(why)?;
        let marker = whole.marker(0);
        let (before, after) = skeleton.split_once(&marker).ok_or(Unaligned::NotPrinted)?;
        if after.contains(&marker) {
            return Err(Unaligned::PrintedTwice);
        }
        let fits = self.text.len() >= before.len() + after.len()
            && self.text.starts_with(before)
            && self.text.ends_with(after);
        if !fits {
            return Err(why);
        }
        let (start, end) = (before.len(), self.text.len() - after.len());
        Ok(vec![Printed { kind: LeafKind::Answer, start, end, before: 0, skipped: 0 }])
    }

    /// Where a turn starts whose first text is of a key such as `reasoning_content`: at what the model has to write to begin it.
    fn opening(&self, turn: usize, first: &Printed) -> usize {
        let before = &self.text[first.before..first.start];
        let header = &*self.openers.header;
        // A prompt that ends with `<think>` leaves only the thought to the model.
        if header.trim_end_matches(is_space).ends_with(THINK) {
            return first.start;
        }
        let after_header = (!header.is_empty())
            .then(|| before.rfind(header).map(|at| first.before + at + header.len()))
            .flatten();
        after_header.unwrap_or_else(|| {
            let tag = start_with_tags(before, &[THINK]);
            if tag < before.len() {
                return first.before + tag;
            }
            let message = &self.conversation.messages[turn];
            let mut thinks = Message::new(ASSISTANT, SHORT_REPLY);
            for key in REASONING_KEYS.iter().filter(|key| !message.text_of(key).is_empty()) {
                thinks.set(key, SHORT_REPLY);
            }
            let opening = self.opening_beside_text(thinks, Calls::Text);
            let opening = opening.filter(|opening| before.ends_with(&**opening));
            first.start - opening.map_or(0, |opening| opening.len())
        })
    }

    /// Where calls start that are found by the name of a tool: at what the template prints before it but not before a text.
    fn opening_of_calls(&self, turn: usize, name: &Printed) -> Result<usize, (usize, Unaligned)> {
        let message = only_calls(&self.conversation.messages[turn]);
        self.opening_beside_text(message, Calls::Name)
            .filter(|opening| self.text[..name.start].ends_with(&**opening))
            .map(|opening| name.start - opening.len())
            .ok_or((turn, Unaligned::ContextChanges))
    }

    /// What the template prints before the first text or name of `message` but not before a mere text.
    fn opening_beside_text(&self, message: Message, calls: Calls) -> Option<String> {
        let before = |message: Message| {
            let (hidden, skeleton) = Self::short_chats().into_iter().find_map(|mut messages| {
                let last = messages.len();
                messages.push(message.clone());
                let hidden = Hidden::new(&self.short_chat(messages), &[last], "", calls);
                let skeleton = (self.render)(&hidden.conversation)?;
                Some((hidden, skeleton))
            })?;
            let (marker, _) = hidden.markers_in(&skeleton).next()?;
            Some(skeleton[..marker.start].split_once(SHORT)?.1.to_owned())
        };
        let of_message = before(message)?;
        let of_text = before(Message::new(ASSISTANT, SHORT_REPLY))?;
        Some(of_message[common_prefix_len(&of_message, &of_text)..].to_owned())
    }

    /// What the template prints after `last` of `turn` when the chat ends there: calls of tools, or what closes a thought, and the end of
    /// the turn.
    fn ending(&self, turn: usize, last: &Printed) -> Result<String, (usize, Unaligned)> {
        let message = &self.conversation.messages[turn];
        let ending = match last.kind {
            LeafKind::Name => self.ending_of(turn, &only_calls(message), Calls::Name),
            _ => self.ending_of(turn, message, Calls::Text),
        };
        ending.map(|ending| ending.get(last.skipped..).unwrap_or_default().to_owned())
    }

    /// The same for a turn that ends with text.
    fn usual_ending(&self, turn: usize) -> Result<String, (usize, Unaligned)> {
        let Conversation { tools, template_kwargs, .. } = self.conversation;
        if let Some(ending) = &self.openers.ending
            && tools.is_null()
            && *template_kwargs == self.openers.template_kwargs
        {
            return Ok(ending.clone());
        }
        let mut message = self.conversation.messages[turn].clone();
        message.remove("tool_calls");
        self.ending_of(turn, &message, Calls::Text)
    }

    fn ending_of(
        &self,
        turn: usize,
        message: &Message,
        calls: Calls,
    ) -> Result<String, (usize, Unaligned)> {
        let before = &self.conversation.messages[..turn];
        let ending = |mut messages: Vec<Message>| {
            let last = messages.len();
            messages.push(message.clone());
            let chat = self.short_chat(messages);
            let hidden = Hidden::new(&chat, &[last], "", calls);
            let skeleton = (self.render)(&hidden.conversation)?;
            let kind_of = |leaf: usize| hidden.leaves.get(leaf).map(|leaf| leaf.kind);
            let mut markers = hidden.markers_in(&skeleton);
            let (marker, leaf) = match calls {
                Calls::Name => markers.find(|&(_, leaf)| kind_of(leaf) == Some(LeafKind::Name)),
                Calls::Text => markers.last(),
            }?;
            let ending = &skeleton[marker.end..];
            let leaf_of = hidden.leaves.get(leaf)?;
            let ending = &ending[len_of_tags(ending, &leaf_of.tags_behind)..];
            let ending = self.openers.strip_from(ending);
            // Some templates print a name more than once.
            Some(ending.replace(&hidden.marker(leaf), &leaf_of.text))
        };
        // Usually a short chat shows the same as the whole one up to here.
        match Self::short_chats().into_iter().find_map(&ending) {
            Some(ending) if ending.contains(SHORT) => Err((turn, Unaligned::OtherOrder)),
            Some(ending) => Ok(ending),
            None => ending(before.to_vec()).ok_or((turn, Unaligned::ContextChanges)),
        }
    }

    /// What may stand before a message: some templates ask for a system message.
    fn short_chats() -> [Vec<Message>; 2] {
        let user = Message::new("user", SHORT);
        [vec![user.clone()], vec![Message::new("system", SHORT_AGAIN), user]]
    }

    /// `messages` with the tools and variables of the chat.
    fn short_chat(&self, messages: Vec<Message>) -> Conversation {
        let Conversation { tools, template_kwargs, .. } = self.conversation;
        let (tools, template_kwargs) = (tools.clone(), template_kwargs.clone());
        Conversation { messages, tools, template_kwargs }
    }
}

/// A message that only calls what `message` calls.
fn only_calls(message: &Message) -> Message {
    let mut message = message.clone();
    for key in REASONING_KEYS {
        message.remove(key);
    }
    message.set("content", "");
    message
}

/// What a template prints to open a turn of the assistant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Openers {
    /// What it prints because of `add_generation_prompt`.
    header: String,
    /// What it prints before that, even if no turn follows.
    always: String,
    /// What it prints behind a reply that ends a chat without tools; `None` if it refuses the short chat.
    ending: Option<String>,
    /// The variables of the template that this holds for.
    template_kwargs: Map<String, Value>,
}

impl Openers {
    /// Asks the template, with a chat of a word each.
    pub(super) fn of(
        template_kwargs: &Map<String, Value>,
        render: &dyn Fn(&Conversation, bool) -> Option<String>,
    ) -> Openers {
        let user = |content: &str| Message::new("user", content);
        let reply = || Message::new(ASSISTANT, SHORT_REPLY);
        let print = |messages: Vec<Message>, prompt| {
            let template_kwargs = template_kwargs.clone();
            render(&Conversation { messages, template_kwargs, ..Conversation::default() }, prompt)
        };
        let header = || {
            let open = print(vec![user(SHORT)], true)?;
            Some(open.strip_prefix(&print(vec![user(SHORT)], false)?)?.to_owned())
        };
        let header = header().unwrap_or_default();
        let ended = print(vec![user(SHORT), reply()], false);
        let always = || {
            let ended = ended.as_deref()?;
            let goes_on = print(vec![user(SHORT), reply(), user(SHORT_AGAIN)], false)?;
            let (before_user, _) = ended.split_once(SHORT)?;
            let (before_reply, ending) = ended.split_once(SHORT_REPLY)?;
            let (_, between) = goes_on.split_once(SHORT_REPLY)?;
            let (between, _) = between.split_once(SHORT_AGAIN)?;
            // The end of the reply's turn and what opens the user's.
            let opener_len = common_suffix_len(before_user, between);
            let always = ending.strip_prefix(&between[..between.len() - opener_len])?;
            let opens = format!("{always}{header}");
            // A default system message may end as the reply does, and then nothing tells the two apart.
            let is_known = opener_len < between.len();
            (is_known && !always.trim_matches(is_space).is_empty())
                .then(|| before_reply.ends_with(&opens).then(|| always.to_owned()))
                .flatten()
        };
        let mut openers = Openers {
            always: always().unwrap_or_default(),
            header,
            ending: None,
            template_kwargs: template_kwargs.clone(),
        };
        openers.ending = ended.and_then(|ended| {
            let ending = openers.strip_from(ended.split_once(SHORT_REPLY)?.1);
            // Not if messages are printed in another order.
            (!ending.contains(SHORT)).then(|| ending.to_owned())
        });
        openers
    }

    /// `ending` without what opens the next turn.
    fn strip_from<'a>(&self, ending: &'a str) -> &'a str {
        let all = format!("{}{}", self.always, self.header);
        let opened = [&*all, self.header.trim_end_matches(is_space), &self.always];
        opened
            .into_iter()
            .filter(|opened| !opened.is_empty())
            .find_map(|opened| ending.strip_suffix(opened))
            .unwrap_or(ending)
    }
}

/// A text of the assistant behind a marker.
#[derive(Debug)]
struct Leaf {
    /// Which of the hidden turns wrote it.
    turn_idx: usize,
    text: String,
    kind: LeafKind,
    /// The tags of thoughts that the content has before it.
    tags: Vec<&'static str>,
    /// Those that it has behind it.
    tags_behind: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeafKind {
    /// Of a key such as `reasoning_content`.
    Reasoning,
    /// Of the content, before `</think>`.
    Thought,
    /// Of the content.
    Answer,
    /// Of the first tool that is called.
    Name,
}

impl Leaf {
    /// How templates print it, as it is first.
    fn printed(&self) -> impl Iterator<Item = &str> {
        let text = &*self.text;
        [
            text,
            text.trim_matches(is_space),
            text.trim_start_matches(is_space),
            text.trim_end_matches(is_space),
            text.trim_matches('\n'),
            text.trim_start_matches('\n'),
            text.trim_end_matches('\n'),
        ]
        .into_iter()
    }
}

/// A chat with markers in place of what the assistant wrote in some turns.
#[derive(Debug)]
pub(super) struct Hidden {
    conversation: Conversation,
    /// For each hidden turn, whether it calls tools.
    calls: Vec<bool>,
    leaves: Vec<Leaf>,
    /// What every marker starts with: letters and digits only, so that no template rewrites it, and not in the rendered chat.
    stem: String,
}

impl Hidden {
    fn empty(conversation: &Conversation, turns: &[usize], text: &str) -> Hidden {
        let mut stems = (0..).map(|i| format!("sternaPlaceholder{i}x"));
        Hidden {
            conversation: conversation.clone(),
            calls: turns.iter().map(|&turn| calls_tools(&conversation.messages[turn])).collect(),
            leaves: Vec::new(),
            stem: stems.find(|stem| !text.contains(stem)).expect("a text is finite"),
        }
    }

    /// Hides every text of `turns`, and the name of the first tool that each calls if that is how calls are found.
    fn new(conversation: &Conversation, turns: &[usize], text: &str, calls: Calls) -> Hidden {
        let mut hidden = Hidden::empty(conversation, turns, text);
        for (turn_idx, &turn) in turns.iter().enumerate() {
            // Taken out, because a copy is a text more to copy.
            let hole = Message::from(Map::new());
            let mut message = std::mem::replace(&mut hidden.conversation.messages[turn], hole);
            let has_name = calls == Calls::Name && hidden.hide_name(turn_idx, &mut message);
            hidden.hide(turn_idx, &mut message, has_name);
            hidden.conversation.messages[turn] = message;
        }
        hidden
    }

    /// Hides every turn of the assistant: what a template is asked first about a chat.
    pub(super) fn all_turns(conversation: &Conversation, text: &str) -> Hidden {
        Hidden::new(conversation, &turns_of(conversation), text, Calls::Name)
    }

    /// The chat with its markers.
    pub(super) fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// Puts one marker in place of all the texts of `turn`.
    fn whole(conversation: &Conversation, turn: usize, text: &str) -> Hidden {
        let mut hidden = Hidden::empty(conversation, &[turn], text);
        let marker = hidden.marker(0);
        let message = &mut hidden.conversation.messages[turn];
        for key in REASONING_KEYS {
            message.remove(key);
        }
        message.set("content", marker);
        hidden
    }

    fn marker(&self, leaf: usize) -> String {
        format!("{}{leaf}y", self.stem)
    }

    /// Hides the name of the first tool that is called, if one is.
    fn hide_name(&mut self, turn_idx: usize, message: &mut Message) -> bool {
        let Some(mut calls) = message.get("tool_calls").cloned() else { return false };
        let Some(call) = calls.get_mut(0) else { return false };
        let call = if call.get("function").is_some() { &mut call["function"] } else { call };
        let Some(name) = call.get("name").and_then(Value::as_str) else { return false };
        call["name"] = self.hide_text(turn_idx, name, LeafKind::Name, Vec::new()).into();
        message.set("tool_calls", calls);
        true
    }

    fn hide(&mut self, turn_idx: usize, message: &mut Message, has_name: bool) {
        let num_before = self.leaves.len();
        for key in REASONING_KEYS {
            let text = message.text_of(key);
            if !text.trim_matches(is_space).is_empty() {
                let hidden = self.hide_text(turn_idx, text, LeafKind::Reasoning, Vec::new());
                message.set(key, hidden);
            }
        }
        match message.get("content") {
            Some(Value::String(content)) => {
                let hidden = self.hide_parts(turn_idx, content);
                message.set("content", hidden);
            }
            Some(Value::Array(parts)) => {
                let mut parts = parts.clone();
                for text in parts.iter_mut().filter_map(|part| part.get_mut("text")) {
                    if let Some(written) = text.as_str().filter(|text| !text.is_empty()) {
                        *text = self.hide_text(turn_idx, written, LeafKind::Answer, vec![]).into();
                    }
                }
                message.set("content", parts);
            }
            _ => {}
        }
        if self.leaves.len() == num_before && !has_name {
            // Nothing is written but calls, or nothing at all: a marker finds the place.
            let hidden = self.hide_text(turn_idx, message.content(), LeafKind::Answer, Vec::new());
            message.set("content", hidden);
        }
    }

    /// Hides the parts between tags of thoughts; the tags stay, because templates take the text apart at them.
    fn hide_parts(&mut self, turn_idx: usize, content: &str) -> String {
        let num_before = self.leaves.len();
        let mut hidden = String::with_capacity(content.len());
        let mut tags = Vec::new();
        let mut rest = content;
        loop {
            let tag = [THINK, END_THINK]
                .into_iter()
                .filter_map(|tag| rest.find(tag).map(|at| (at, tag)))
                .min();
            let (at, tag) = tag.unwrap_or((rest.len(), ""));
            let text = &rest[..at];
            // A marker behind the last tag finds a reply that is only a thought, also where the thought is not printed.
            let is_last = tag.is_empty() && !tags.is_empty();
            if text.trim_matches(is_space).is_empty() && !is_last {
                hidden += text;
            } else {
                let kind = if tag == END_THINK { LeafKind::Thought } else { LeafKind::Answer };
                hidden += &self.hide_text(turn_idx, text, kind, tags.clone());
            }
            rest = &rest[at + tag.len()..];
            if tag.is_empty() {
                return hidden;
            }
            hidden += tag;
            tags.push(tag);
            let of_turn = self.leaves[num_before..].iter_mut();
            of_turn.for_each(|leaf| leaf.tags_behind.push(tag));
        }
    }

    fn hide_text(
        &mut self,
        turn_idx: usize,
        text: &str,
        kind: LeafKind,
        tags: Vec<&'static str>,
    ) -> String {
        let marker = self.marker(self.leaves.len());
        let text = text.to_owned();
        self.leaves.push(Leaf { turn_idx, text, kind, tags, tags_behind: Vec::new() });
        marker
    }

    /// The markers in `skeleton`, in their order there, with the leaves behind them.
    fn markers_in<'a>(
        &self,
        skeleton: &'a str,
    ) -> impl Iterator<Item = (Range<usize>, usize)> + 'a {
        let stem_len = self.stem.len();
        let found: Vec<usize> = skeleton.match_indices(&self.stem).map(|(at, _)| at).collect();
        found.into_iter().filter_map(move |at| {
            let digits = skeleton[at + stem_len..].split_once('y')?.0;
            let leaf = digits.parse().ok()?;
            Some((at..at + stem_len + digits.len() + 1, leaf))
        })
    }
}

/// Lays `skeleton` over `text`: for each hidden turn, what of it was printed and where; nothing only of a turn of thoughts.
fn align(text: &str, skeleton: &str, hidden: &Hidden) -> Result<Vec<Vec<Printed>>, Unaligned> {
    let mut spans: Vec<Vec<Printed>> = vec![Vec::new(); hidden.calls.len()];
    let mut is_printed = vec![false; hidden.leaves.len()];
    let markers: Vec<_> = hidden.markers_in(skeleton).collect();
    let literal_after = |place: usize| {
        let end = markers.get(place + 1).map_or(skeleton.len(), |(next, _)| next.start);
        &skeleton[markers[place].0.end..end]
    };
    let Some((first, _)) = markers.first() else { return Err(Unaligned::NotPrinted) };
    let mut literal = &skeleton[..first.start];
    let mut at = 0;
    for (place, &(_, leaf_idx)) in markers.iter().enumerate() {
        let leaf = hidden.leaves.get(leaf_idx).ok_or(Unaligned::ContextChanges)?;
        let is_again = std::mem::replace(&mut is_printed[leaf_idx], true);
        // The result of a tool may say its name too.
        if is_again && leaf.kind != LeafKind::Name {
            return Err(Unaligned::PrintedTwice);
        }
        let before = at;
        let after = literal_after(place);
        let next = markers.get(place + 1).map(|&(_, next)| hidden.leaves.get(next));
        let fits = |from: usize, after: &str| {
            let rest = text.get(from..).and_then(|rest| rest.strip_prefix(after));
            match next {
                Some(next) => rest.is_some_and(|rest| {
                    let next = next.map_or("", |leaf| leaf.text.trim_matches(is_space));
                    rest.trim_start_matches(is_space).starts_with(next)
                }),
                None => rest.is_some_and(str::is_empty),
            }
        };
        let printed = text[at..].strip_prefix(literal).and_then(|rest| {
            let start = at + literal.len();
            let fits =
                |printed: &&str| rest.starts_with(printed) && fits(start + printed.len(), after);
            Some((start, start + leaf.printed().find(fits)?.len(), 0))
        });
        let (start, end, skipped) = match printed {
            Some(found) => found,
            None if leaf.text.trim_matches(is_space).is_empty() => {
                place_of_nothing(text, at, literal, after, &fits)
                    .ok_or(Unaligned::ContextChanges)?
            }
            None => return Err(Unaligned::ContextChanges),
        };
        if !is_again {
            spans[leaf.turn_idx].push(Printed {
                kind: leaf.kind,
                start: start_with_tags(&text[before..start], &leaf.tags) + before,
                end: end + len_of_tags(&text[end..], &leaf.tags_behind),
                before,
                skipped,
            });
        }
        literal = &after[skipped..];
        at = end;
    }
    if text[at..] != *literal {
        return Err(Unaligned::ContextChanges);
    }
    // Only thoughts are left out of earlier turns, and no calls.
    let is_missing = |leaf: &Leaf| {
        let is_thought = matches!(leaf.kind, LeafKind::Thought | LeafKind::Reasoning);
        spans[leaf.turn_idx].is_empty() && (!is_thought || hidden.calls[leaf.turn_idx])
    };
    if hidden.leaves.iter().any(is_missing) {
        return Err(Unaligned::NotPrinted);
    }
    Ok(spans)
}

/// Where what `before` ends with starts, if those are the last of `tags`, with whitespace around them.
fn start_with_tags(before: &str, tags: &[&str]) -> usize {
    let mut start = before.len();
    let mut rest = before;
    for tag in tags.iter().rev() {
        let Some(outside) = rest.trim_end_matches(is_space).strip_suffix(tag) else { break };
        start = outside.len();
        rest = outside;
    }
    start
}

/// How much of `behind` is the first of `tags`, with whitespace between them.
fn len_of_tags(behind: &str, tags: &[&str]) -> usize {
    let mut rest = behind;
    for tag in tags {
        let Some(after) = rest.trim_start_matches(is_space).strip_prefix(tag) else { break };
        rest = after;
    }
    behind.len() - rest.len()
}

/// Bytes of `text` without the start of a tag at its end, which may be that of another tag.
fn len_without_open_tag(text: &str) -> usize {
    let is_name = |c: char| {
        c.is_alphanumeric() || matches!(c, '|' | '\u{ff5c}' | '/' | '_' | '\u{2581}' | '-')
    };
    match text.rfind(['<', '[']) {
        Some(at) if text[at + 1..].chars().all(is_name) => at,
        _ => text.len(),
    }
}

/// Where an empty reply stands in `text` from `at` on, between the template's texts `before` and `after`, and how much of `after` is
/// only printed behind a text. Templates often print less around no text, or other text instead of it.
fn place_of_nothing(
    text: &str,
    at: usize,
    before: &str,
    after: &str,
    fits: &dyn Fn(usize, &str) -> bool,
) -> Option<(usize, usize, usize)> {
    let start = at + common_prefix_len(&text[at..], before);
    if let Some(skipped) = after
        .char_indices()
        .map(|(skipped, _)| skipped)
        .chain(after.is_empty().then_some(0))
        .find(|&skipped| fits(start, &after[skipped..]))
    {
        return Some((start, start, skipped));
    }
    // Other text: the template's, so the reply is empty behind it.
    let filler = text[start..].find(after).map(|len| start + len)?;
    fits(filler, after).then_some((filler, filler, 0))
}

fn common_prefix_len(a: &str, b: &str) -> usize {
    a.char_indices()
        .zip(b.chars())
        .find(|((_, a), b)| a != b)
        .map_or(a.len().min(b.len()), |((i, _), _)| i)
}

fn common_suffix_len(a: &str, b: &str) -> usize {
    a.chars()
        .rev()
        .zip(b.chars().rev())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum()
}

/// Marks the tokens that touch a reply, and after each reply what closes the turn.
///
/// A token that straddles the edge of a reply is labelled, as in transformers' `return_assistant_tokens_mask`: the model has to
/// produce it in order to produce the reply.
///
/// What closes a turn is, in this order: the special tokens in what the template prints behind the last turn, with whitespace
/// between; without any there, the special token that follows in the middle of the chat, unless it is the one that opens the
/// reply; without that, the text that the template prints behind each turn, with the special tokens behind it. The second result
/// counts replies that nothing closes.
pub(super) fn labels(
    text: &str,
    encoded: &Encoded,
    replies: &[Reply],
    ignore_empty_think: bool,
    is_special: impl Fn(u32) -> bool,
) -> (Vec<bool>, usize) {
    let mut is_label = vec![false; encoded.ids.len()];
    let mut num_unclosed = 0;
    let mut chars = CharIndex::new(text);
    let mut token = 0;
    let mut opener = None;
    for reply in replies {
        let skipped =
            if ignore_empty_think { empty_think_len(&text[reply.written.clone()]) } else { 0 };
        let start = chars.at(reply.written.start + skipped);
        let end = chars.at(reply.written.end);
        let closed = chars.at(reply.closed);

        // Offsets never decrease, and neither do replies.
        while token < encoded.offsets.len() && encoded.offsets[token].1 <= start {
            if is_special(encoded.ids[token]) {
                opener = Some(encoded.ids[token]);
            }
            token += 1;
        }
        // Nothing straddles a reply of no characters.
        let mut ends_special = false;
        while start < end && token < encoded.offsets.len() && encoded.offsets[token].0 < end {
            is_label[token] = true;
            ends_special = is_special(encoded.ids[token]);
            token += 1;
        }
        while token < encoded.offsets.len() && encoded.offsets[token].0 < end {
            token += 1;
        }
        let window = Window {
            chars: text[reply.written.end..].chars().take(closed - end + WINDOW).collect(),
            start: end,
            closed,
        };
        let closing = closing_tokens(&window, encoded, token, &is_special, |id| Some(id) == opener);
        let past = match closing {
            _ if !reply.ends_turn => token,
            Closing::Special(past) => past,
            // Calls of tools end with what closes them.
            _ if ends_special => token,
            Closing::Opening(past) => past,
            Closing::Text(past) if reply.is_whole && past > token => past,
            Closing::Text(_) => {
                num_unclosed += 1;
                token
            }
        };
        is_label[token..past].fill(true);
        token = past;
    }
    (is_label, num_unclosed)
}

/// What closes a turn, up to which token.
enum Closing {
    /// Special tokens of the template's end of a turn.
    Special(usize),
    /// The special token that opens the next turn.
    Opening(usize),
    /// Text, and special tokens behind it.
    Text(usize),
}

/// Characters behind the end of a turn in which a special token may follow.
const WINDOW: usize = 64;

/// What follows a reply.
struct Window {
    chars: Vec<char>,
    /// The character of the text that is the first here.
    start: usize,
    /// End of what the template prints to close the turn, as a character of the text.
    closed: usize,
}

impl Window {
    fn is_blank(&self, (from, to): (usize, usize)) -> bool {
        let chars = self.chars.get(from.saturating_sub(self.start)..to.saturating_sub(self.start));
        chars.is_some_and(|chars| chars.iter().copied().all(is_space))
    }
}

/// What closes the turn whose text ends before `token`.
fn closing_tokens(
    window: &Window,
    encoded: &Encoded,
    token: usize,
    is_special: &impl Fn(u32) -> bool,
    is_opener: impl Fn(u32) -> bool,
) -> Closing {
    let closed = window.closed;
    let is_blank = |offsets| window.is_blank(offsets);
    let mut past_special = token;
    let mut past_text = token;
    let mut has_text = false;
    for i in token..encoded.ids.len() {
        let (from, to) = encoded.offsets[i];
        if from >= closed {
            break;
        }
        // A special token may take the whitespace behind it.
        if is_special(encoded.ids[i]) && (to <= closed || is_blank((closed, to))) {
            if has_text {
                past_text = i + 1;
            } else {
                past_special = i + 1;
            }
        } else if to > closed {
            break;
        } else if !is_blank((from, to)) {
            has_text = true;
            past_text = i + 1;
        }
    }
    if past_special > token {
        return Closing::Special(past_special);
    }
    if has_text {
        return Closing::Text(past_text);
    }
    let next = (token..encoded.ids.len())
        .find(|&i| is_special(encoded.ids[i]) || !is_blank(encoded.offsets[i]));
    match next {
        Some(i) if is_special(encoded.ids[i]) && !is_opener(encoded.ids[i]) => {
            Closing::Opening(i + 1)
        }
        _ => Closing::Text(token),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// One of 512 replies: 9 halvings, each with two tries that fail and one that does not, beside a few that are asked once.
    #[test]
    fn a_reply_that_the_template_rewrites_costs_a_few_renderings() {
        let count = Cell::new(0);
        let render = |chat: &Conversation| {
            count.set(count.get() + 1);
            let print = |message: &Message| {
                format!("[{}]{}[end]", message.role(), message.content().replace("  ", " "))
            };
            Some(chat.messages.iter().map(print).collect::<String>())
        };
        let reply = |i| if i == 300 { "two  spaces".to_owned() } else { format!("reply {i}") };
        let turn = |i| [Message::new("user", "q"), Message::new(ASSISTANT, reply(i))];
        let chat = Conversation::from((0..512).flat_map(turn).collect::<Vec<_>>());
        let text = render(&chat).unwrap();
        let openers = Openers::of(&Map::new(), &|chat, _| render(chat));
        count.set(0);
        let replies = locate_replies(&text, &chat, &openers, &render, None).unwrap();
        let written = |i: usize| &text[replies[i].written.clone()];
        assert_eq!((replies.len(), written(300), written(511)), (512, "two spaces", "reply 511"));
        assert!(count.get() < 50, "{}", count.get());
    }
}
