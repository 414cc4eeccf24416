//! One row to one chat: its messages as they are, or by the recipe's `role_mapping`.
//!
//! The reference collects the messages of each role by themselves and zips the lists: a lone system message cuts the chat to one
//! turn, a question without an answer is lost, and one empty message shifts the pairing of every later turn. With
//! `data.label_mask: reference` the same happens here. Otherwise (`exact`) messages keep the order and all the keys that they have in
//! the row, and roles that live in separate lists must have equally many messages.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::{Map, Value};
use sterna_hf::{Conversation, Message};
use sterna_recipe::{LabelMask, RolePath, Source, TrainOn, UnmappedRoles};

use crate::{
    error::{Error, Result, RowId},
    label_mask::ASSISTANT,
    source::kind,
};

/// Fields that hold a message's text when the recipe does not say, in order of preference.
const CONTENT_KEYS: [&str; 4] = ["content", "text", "message", "value"];

/// Fields that hold what the assistant thought.
pub(crate) const REASONING_KEYS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Fields that hold what a message's tools or the assistant's thoughts say beside its text.
pub(crate) const OTHER_TEXTS: [&str; 5] =
    ["tool_calls", "function_call", REASONING_KEYS[0], REASONING_KEYS[1], REASONING_KEYS[2]];

/// Roles of messages that templates know, by the names that data sets have for them.
const ROLES: [(&str, &str); 22] = [
    ("system", "system"),
    ("developer", "developer"),
    ("user", "user"),
    ("human", "user"),
    ("prompter", "user"),
    ("assistant", "assistant"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("model", "assistant"),
    ("bot", "assistant"),
    ("ai", "assistant"),
    ("tool", "tool"),
    ("tool_response", "tool"),
    ("tool_result", "tool"),
    ("observation", "tool"),
    ("function_response", "tool"),
    ("function", "function"),
    ("ipython", "ipython"),
    ("function_call", "assistant"),
    ("tool_call", "assistant"),
];

/// Roles whose messages are calls written as text.
const CALLS: [&str; 2] = ["function_call", "tool_call"];

/// Roles of messages that a tool wrote.
const TOOLS: [&str; 7] = [
    "tool",
    "function",
    "ipython",
    "observation",
    "tool_response",
    "tool_result",
    "function_response",
];

/// Flags of a message that say whether it is trained on.
const FLAGS: [&str; 3] = ["train", "weight", "loss"];

/// A data set whose last reply stands in a column of its own.
const ACE_MATH: &str = "nvidia/AceMath-Instruct-Training-Data";

/// What of a row is not in its sample, and how often.
pub type LeftOut = BTreeMap<String, usize>;

/// A row as a chat.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    /// What the template prints; without messages if the row has no text for it, as `left_out` says.
    pub conversation: Conversation,
    /// Which messages may have labels, `[messages]`.
    pub is_trained: Vec<bool>,
    /// Messages of the row that are not in it.
    pub left_out: LeftOut,
}

impl Chat {
    /// Whether a message with labels says anything.
    pub(crate) fn teaches(&self) -> bool {
        let messages = self.conversation.messages.iter().zip(&self.is_trained);
        messages.filter(|(_, is_trained)| **is_trained).any(|(message, _)| {
            OTHER_TEXTS.iter().any(|key| says_something(message.get(key)))
                || says_something(message.get("content"))
        })
    }
}

fn says_something(value: Option<&Value>) -> bool {
    match value {
        None => false,
        Some(Value::String(text)) => !text.trim().is_empty(),
        Some(Value::Array(items)) => items.iter().any(|item| match item.get("text") {
            Some(text) => says_something(Some(text)),
            None => true,
        }),
        Some(_) => true,
    }
}

/// Columns that are read besides those of the role mapping.
pub(crate) fn extra_columns(source: &Source) -> &'static [&'static str] {
    if source.name_or_path == ACE_MATH { &["answer"] } else { &[] }
}

/// Reads the messages out of `row` by the role mapping.
///
/// # Errors
///
/// [`Error::NoMessages`] if the mapping selects nothing of what is there; [`Error::NotText`], [`Error::BadMessage`];
/// [`Error::UnequalTurns`] and [`Error::LosesTools`] unless `label_mask` is `reference`. `row_id` names the row.
///
/// # Source
///
/// ArcticTraining `hf_instruct_source.py` (`_extract_messages_from_paths`) for `reference`.
pub fn extract_chat(
    source: &Source,
    label_mask: LabelMask,
    mut row: Map<String, Value>,
    row_id: &dyn Fn() -> RowId,
) -> Result<Chat> {
    if source.name_or_path == ACE_MATH
        && let Some(answer) = row.remove("answer")
        && let Some(Value::Array(messages)) = row.get_mut("messages")
    {
        messages.push(serde_json::json!({"role": "assistant", "content": answer}));
    }
    if label_mask == LabelMask::Exact {
        for (_, path) in &source.role_mapping {
            let RolePath::Items { array, .. } = path else { continue };
            let Some(value) = row.get_mut(array).filter(|value| !value.is_array()) else {
                continue;
            };
            if !value.is_null() {
                *value = Value::Array(list_of(array, value, row_id)?.into_owned());
            }
        }
    }
    let reader = RowReader { source, row: &row, row_id };
    let (messages, left_out) = match label_mask {
        LabelMask::Reference => reader.zipped_to_shortest()?,
        LabelMask::Exact => reader.in_order()?,
    };
    if messages.is_empty() && left_out.is_empty() {
        return Err(reader.no_messages());
    }
    let is_trained = messages.iter().map(|message| message.role() == ASSISTANT).collect();
    Ok(Chat { conversation: messages.into(), is_trained, left_out })
}

/// How the items of a list of messages are read when there is no role mapping.
#[derive(Clone, Copy)]
pub(crate) struct ListRule<'a> {
    /// The field of their text, if the recipe says so.
    pub(crate) content_key: Option<&'a str>,
    /// What is done about roles that no template knows.
    pub(crate) unmapped_roles: UnmappedRoles,
}

/// The messages of a list as they are, `column` of a row. Roles and keys of `ShareGPT` become those of templates.
///
/// # Errors
///
/// [`Error::BadMessage`] with the message.
pub(crate) fn messages_of(
    column: &str,
    value: &Value,
    rule: ListRule<'_>,
    row_id: &dyn Fn() -> RowId,
) -> Result<(Vec<Message>, LeftOut)> {
    let (mut messages, mut left_out) = (Vec::new(), LeftOut::new());
    for (i, item) in list_of(column, value, row_id)?.iter().enumerate() {
        let path = format!("{column}[{i}]");
        let bad = |key: &str, found: String, required| Error::BadMessage {
            row: Box::new(row_id()),
            path: if key.is_empty() { path.clone() } else { format!("{path}.{key}") },
            found,
            required,
        };
        let Value::Object(keys) = item else {
            return Err(bad("", kind(item).to_owned(), "an object with `role` and `content`"));
        };
        let is_there = |key: &&str| keys.get(*key).is_some_and(|value| !value.is_null());
        let role_key = ["role", "from"].into_iter().find(is_there).unwrap_or("role");
        let Some(role) = keys.get(role_key).and_then(Value::as_str) else {
            let found = keys.get(role_key).map_or("missing", kind).to_owned();
            return Err(bad(role_key, found, "text"));
        };
        let Some((_, known)) = ROLES.iter().find(|(name, _)| *name == role) else {
            if rule.unmapped_roles == UnmappedRoles::Drop {
                *left_out.entry(format!("role `{role}`")).or_default() += 1;
                continue;
            }
            return Err(Error::UnknownRole {
                row: Box::new(row_id()),
                path: format!("{path}.{role_key}"),
                role: role.to_owned(),
            });
        };
        let mut message = as_written(keys, role_key, rule.content_key, known, &path, row_id)?;
        if CALLS.contains(&role) {
            let calls = message.get("content").and_then(calls_of).ok_or_else(|| {
                bad(
                    "",
                    "a call that is not JSON".to_owned(),
                    "an object with `name` and `arguments`",
                )
            })?;
            message.set("content", Value::Null);
            message.set("tool_calls", calls);
        }
        messages.push(message);
    }
    Ok((messages, left_out))
}

/// Whether a message says nothing at all: templates print `None` for it.
pub(crate) fn is_silent(message: &Message) -> bool {
    message.get("content").is_none()
        && !OTHER_TEXTS.iter().any(|key| says_something(message.get(key)))
}

/// The items of a list, which some data sets keep as JSON text so that every row has the same columns.
pub(crate) fn list_of<'a>(
    column: &str,
    value: &'a Value,
    row_id: &dyn Fn() -> RowId,
) -> Result<Cow<'a, [Value]>> {
    let found = match value {
        Value::Array(items) => return Ok(items.into()),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(Value::Array(items)) => return Ok(items.into()),
            Ok(other) => format!("{} as JSON text", kind(&other)),
            Err(_) => "text that is not JSON".to_owned(),
        },
        other => kind(other).to_owned(),
    };
    let path = column.to_owned();
    let required = "a list, or one as JSON text";
    Err(Error::BadMessage { row: Box::new(row_id()), path, found, required })
}

/// A message with all the keys that it has in the row; `role` and `content` by these names.
fn as_written(
    keys: &Map<String, Value>,
    role_key: &str,
    content_key: Option<&str>,
    role: &str,
    path: &str,
    row_id: &dyn Fn() -> RowId,
) -> Result<Message> {
    let mut message = Message::from(Map::new());
    let has = |key: &&str| keys.get(*key).is_some_and(|value| !value.is_null());
    let content_key = match content_key {
        Some(key) => key,
        None => CONTENT_KEYS.iter().find(|key| has(key)).copied().unwrap_or("content"),
    };
    for (key, value) in keys {
        let path = || format!("{path}.{key}");
        if key == role_key {
            message.set("role", role);
        } else if key == content_key {
            message.set("content", content(value, &path, row_id)?);
        } else if key == "tool_calls" {
            message.set(key, tool_calls(value, &path, row_id)?);
        } else if key != "role" && key != "content" {
            message.set(key, value.clone());
        }
    }
    // OpenAI's earlier name, which no template prints.
    if message.get("tool_calls").is_none()
        && says_something(message.get("function_call"))
        && let Some(call) = message.remove("function_call")
    {
        let calls = calls_of(&call).ok_or_else(|| Error::BadMessage {
            row: Box::new(row_id()),
            path: format!("{path}.function_call"),
            found: "a call that is not JSON".to_owned(),
            required: "an object with `name` and `arguments`",
        })?;
        message.set("tool_calls", calls);
    }
    Ok(message)
}

/// Text as it is, numbers and booleans as Python prints them, null, or a list of texts.
fn content(value: &Value, path: &dyn Fn() -> String, row_id: &dyn Fn() -> RowId) -> Result<Value> {
    match value {
        Value::Null => Ok(Value::Null),
        Value::Array(parts) => {
            let part = |(i, part): (usize, &Value)| match part {
                Value::String(text) => Ok(serde_json::json!({"type": "text", "text": text})),
                Value::Object(keys) if keys.get("text").is_some_and(Value::is_string) => {
                    Ok(part.clone())
                }
                other => {
                    let (row, path) = (Box::new(row_id()), format!("{}[{i}]", path()));
                    Err(match other.get("type").and_then(Value::as_str) {
                        Some(kind) => Error::NotTextPart { row, path, kind: kind.to_owned() },
                        None => Error::NotText { row, path, found: kind(other) },
                    })
                }
            };
            parts.iter().enumerate().map(part).collect::<Result<Vec<_>>>().map(Value::Array)
        }
        other => text(other, path, row_id).map(Value::String),
    }
}

/// A list of calls; a list or a call that is JSON as text is read.
fn tool_calls(
    value: &Value,
    path: &dyn Fn() -> String,
    row_id: &dyn Fn() -> RowId,
) -> Result<Value> {
    let bad = |found: &str| Error::BadMessage {
        row: Box::new(row_id()),
        path: path(),
        found: found.to_owned(),
        required: "a list of calls, or one as JSON text",
    };
    let read = |text: &str| -> Result<Value> {
        serde_json::from_str(text).map_err(|_| bad("text that is not JSON"))
    };
    let calls = match value {
        Value::Null => return Ok(Value::Null),
        Value::String(text) if text.trim().is_empty() => return Ok(Value::Null),
        Value::String(text) => read(text)?,
        other => other.clone(),
    };
    let Value::Array(mut calls) = calls else { return Err(bad(kind(&calls))) };
    for call in &mut calls {
        if let Value::String(text) = call {
            *call = read(text)?;
        }
        if !call.is_object() {
            return Err(bad(&format!("a list with {}", kind(call))));
        }
    }
    Ok(Value::Array(calls))
}

/// A list of calls from one or several, which may be JSON text: `{"name": .., "arguments": ..}`.
fn calls_of(value: &Value) -> Option<Vec<Value>> {
    let value: Value = match value {
        Value::String(text) => serde_json::from_str(text).ok()?,
        other => other.clone(),
    };
    let calls = match value {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    let call = |call: Value| {
        if call.get("name").is_some() {
            return Some(serde_json::json!({"type": "function", "function": call}));
        }
        call.get("function")?.get("name")?;
        Some(call)
    };
    calls.into_iter().map(call).collect()
}

/// Which of `messages` have labels.
///
/// # Errors
///
/// [`Error::BadRow`] for a flag that is neither a boolean nor 0 or 1, for flags that contradict each other, and with `marked` for one
/// that asks for labels on what the assistant did not write.
pub(crate) fn trained(
    messages: &[Message],
    train_on: TrainOn,
    row_id: &dyn Fn() -> RowId,
) -> Result<Vec<bool>> {
    let last = messages.iter().rposition(|message| message.role() == ASSISTANT);
    let is_trained = |(i, message): (usize, &Message)| {
        let flag = flag(message, i, row_id)?;
        if message.role() != ASSISTANT {
            return match (train_on, flag) {
                (TrainOn::Marked, Some(true)) => Err(Error::BadRow {
                    row: Box::new(row_id()),
                    found: format!("message `{i}` of role `{}` is marked", message.role()),
                    required: "marks on what the assistant wrote",
                }),
                _ => Ok(false),
            };
        }
        Ok(match train_on {
            TrainOn::All => flag != Some(false),
            TrainOn::Last => Some(i) == last && flag != Some(false),
            TrainOn::Marked => flag == Some(true),
        })
    };
    messages.iter().enumerate().map(is_trained).collect()
}

fn flag(message: &Message, index: usize, row_id: &dyn Fn() -> RowId) -> Result<Option<bool>> {
    let bad = |found, required| Error::BadRow { row: Box::new(row_id()), found, required };
    let mut said = None;
    for key in FLAGS {
        let Some(value) = message.get(key) else { continue };
        let flag = value.as_bool().or_else(|| match value.as_f64() {
            Some(0.0) => Some(false),
            Some(1.0) => Some(true),
            _ => None,
        });
        let flag = flag.ok_or_else(|| {
            bad(format!("message `{index}` has `{key}` of `{value}`"), "true, false, 0 or 1")
        })?;
        match said {
            Some((other, said)) if said != flag => {
                let found = format!("message `{index}` has `{other}` and `{key}` that differ");
                return Err(bad(found, "one of them"));
            }
            _ => said = Some((key, flag)),
        }
    }
    Ok(said.map(|(_, flag)| flag))
}

/// Text as it is, numbers and booleans as Python prints them. The reference prints lists and objects too, which trains on
/// Python syntax; they are refused.
pub(crate) fn text(
    value: &Value,
    path: &dyn Fn() -> String,
    row_id: &dyn Fn() -> RowId,
) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(true) => Ok("True".to_owned()),
        Value::Bool(false) => Ok("False".to_owned()),
        // Integers of more than 64 bits have lost digits when they come here, and look like other numbers.
        Value::Number(number) if number.is_f64() && number.as_f64().is_some_and(is_huge) => {
            Err(Error::LongNumber { row: Box::new(row_id()), path: path() })
        }
        Value::Number(number) => Ok(python_number(number)),
        other => Err(Error::NotText { row: Box::new(row_id()), path: path(), found: kind(other) }),
    }
}

fn is_huge(number: f64) -> bool {
    number.abs() >= 2_f64.powi(64)
}

/// `str(number)` of Python.
fn python_number(number: &serde_json::Number) -> String {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else {
        return number.to_string();
    };
    // Rust changes to an exponent at the same numbers, and writes it without sign and padding.
    let text = format!("{float:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
            format!("{digits}e{sign}{exponent:0>2}")
        }
    }
}

type Read = (Vec<Message>, LeftOut);

struct RowReader<'a> {
    source: &'a Source,
    row: &'a Map<String, Value>,
    row_id: &'a dyn Fn() -> RowId,
}

impl RowReader<'_> {
    /// The reference's rule: the lists of all roles that have any message, zipped and flattened.
    fn zipped_to_shortest(&self) -> Result<Read> {
        let mut by_role = self.by_role()?;
        for (_, contents) in &mut by_role {
            contents.retain(|content| !content.is_empty());
        }
        by_role.retain(|(_, contents)| !contents.is_empty());
        let turns = by_role.iter().map(|(_, contents)| contents.len()).min().unwrap_or(0);
        let total: usize = by_role.iter().map(|(_, contents)| contents.len()).sum();
        let messages = zip(&by_role, turns);
        let mut left_out = LeftOut::new();
        if total > messages.len() {
            left_out.insert("past the shortest role".to_owned(), total - messages.len());
        }
        Ok((messages, left_out))
    }

    /// The order of the row itself, if one list holds all turns; else the zip of lists of equal length.
    fn in_order(&self) -> Result<Read> {
        match self.arrays()[..] {
            [array] => self.in_list_order(array),
            _ => self.zipped_evenly(),
        }
    }

    /// The items of `array` in their order; columns stand before or after them as the mapping lists them.
    fn in_list_order(&self, array: &str) -> Result<Read> {
        let mapping = &self.source.role_mapping;
        let first_items =
            mapping.iter().position(|(_, path)| matches!(path, RolePath::Items { .. }));
        let (mut messages, mut left_out) = (Vec::new(), LeftOut::new());
        let mut after = Vec::new();
        for (i, (role, path)) in mapping.iter().enumerate() {
            if let RolePath::Column(column) = path {
                let target = if Some(i) < first_items { &mut messages } else { &mut after };
                let contents = self.column(column)?;
                let num_empty = contents.iter().filter(|content| content.is_empty()).count();
                if role != "system" && (num_empty > 0 || contents.is_empty()) {
                    *left_out.entry(no_text_of(role)).or_default() += num_empty.max(1);
                }
                let contents = contents.into_iter().filter(|content| !content.is_empty());
                target.extend(contents.map(|content| Message::new(role, content)));
            }
        }
        let items = self.items(array);
        if items.is_empty() {
            return Ok((Vec::new(), LeftOut::from([(format!("`{array}` is empty"), 1)])));
        }
        for (i, item) in items.iter().enumerate() {
            let selected = mapping.iter().find(|(_, path)| selects(path, item));
            let Some((role, RolePath::Items { field, .. })) = selected else {
                self.check_unmapped(array, item)?;
                let role = mapping.iter().find_map(|(_, path)| match path {
                    RolePath::Items { field, .. } => item.get(field)?.as_str(),
                    RolePath::Column(_) => None,
                });
                let why = role.map_or("without a role".to_owned(), |role| format!("role `{role}`"));
                *left_out.entry(why).or_default() += 1;
                continue;
            };
            let Value::Object(keys) = item else { continue };
            let content_key = self.source.content_key.as_deref();
            let path = format!("{array}[{i}]");
            let message = as_written(keys, field, content_key, role, &path, self.row_id)?;
            // An empty system message means that there is none; an empty reply is a reply.
            let is_empty =
                matches!(message.get("content"), Some(Value::String(text)) if text.is_empty());
            if is_silent(&message) || (role == "system" && is_empty) {
                *left_out.entry("without text".to_owned()).or_default() += 1;
                continue;
            }
            messages.push(message);
        }
        messages.append(&mut after);
        let selects_some = || items.iter().any(|item| self.selects_any(item));
        if messages.is_empty()
            && !selects_some()
            && self.source.unmapped_roles == UnmappedRoles::Refuse
        {
            return Err(self.no_messages());
        }
        Ok((messages, left_out))
    }

    fn selects_any(&self, item: &Value) -> bool {
        self.source.role_mapping.iter().any(|(_, path)| selects(path, item))
    }

    fn no_messages(&self) -> Error {
        Error::NoMessages {
            row: Box::new((self.row_id)()),
            role_mapping: mapping_text(&self.source.role_mapping),
            available: available_keys(self.row),
        }
    }

    /// A message that no role selects must not be a tool's, nor call one.
    fn check_unmapped(&self, array: &str, item: &Value) -> Result<()> {
        let role_key =
            ["role", "from"].into_iter().find(|key| item.get(key).is_some_and(Value::is_string));
        let role = role_key.and_then(|key| item[key].as_str()).unwrap_or_default();
        let is_tools = TOOLS.contains(&role) || CALLS.contains(&role);
        let calls = ["tool_calls", "function_call"].iter().any(|key| says_something(item.get(key)));
        if (is_tools || calls) && self.source.unmapped_roles == UnmappedRoles::Refuse {
            return Err(Error::LosesTools {
                row: Box::new((self.row_id)()),
                role: role.to_owned(),
                path: format!("{array}.{}.{role}", role_key.unwrap_or("role")),
            });
        }
        Ok(())
    }

    /// Roles in separate columns or lists: the same number of messages each. A single system message leads.
    fn zipped_evenly(&self) -> Result<Read> {
        let mut left_out = LeftOut::new();
        for array in self.arrays() {
            for item in self.items(array).iter().filter(|item| !self.selects_any(item)) {
                self.check_unmapped(array, item)?;
                *left_out.entry(format!("of no role in `{array}`")).or_default() += 1;
            }
        }
        let mut by_role = self.by_role()?;
        by_role.retain(|(role, contents)| {
            !(*role == "system" && contents.iter().all(String::is_empty))
        });
        let is_leading_system =
            |(role, contents): &(&str, Vec<String>)| *role == "system" && contents.len() == 1;
        let (system, turns): (Vec<_>, Vec<_>) = by_role.into_iter().partition(is_leading_system);
        let num_turns = turns.iter().map(|(_, contents)| contents.len()).max().unwrap_or(0);
        // A question without a reply teaches nothing, and a reply without its question the wrong thing.
        let lacks_text = |(role, contents): &&(&str, Vec<String>)| {
            contents.iter().all(String::is_empty)
                || (*role != ASSISTANT && contents.iter().any(String::is_empty))
        };
        if let Some((role, _)) = turns.iter().find(lacks_text) {
            return Ok((Vec::new(), LeftOut::from([(no_text_of(role), 1)])));
        }
        if turns.iter().any(|(_, contents)| contents.len() != num_turns) {
            let counts =
                turns.iter().map(|(role, contents)| ((*role).to_owned(), contents.len())).collect();
            return Err(Error::UnequalTurns { row: Box::new((self.row_id)()), counts });
        }
        let mut messages = zip(&system, 1);
        messages.extend(zip(&turns, num_turns));
        Ok((messages, left_out))
    }

    /// The lists that the mapping names, each once.
    fn arrays(&self) -> Vec<&str> {
        let mut arrays = Vec::new();
        for (_, path) in &self.source.role_mapping {
            if let RolePath::Items { array, .. } = path
                && !arrays.contains(&array.as_str())
            {
                arrays.push(array.as_str());
            }
        }
        arrays
    }

    /// The texts of each role, in mapping order.
    fn by_role(&self) -> Result<Vec<(&str, Vec<String>)>> {
        let mapping = self.source.role_mapping.iter();
        mapping
            .map(|(role, path)| {
                let contents = match path {
                    RolePath::Column(column) => self.column(column)?,
                    RolePath::Items { array, .. } => {
                        let mut contents = Vec::new();
                        for item in self.items(array).iter().filter(|item| selects(path, item)) {
                            contents.push(self.content(array, item)?);
                        }
                        contents
                    }
                };
                Ok((role.as_str(), contents))
            })
            .collect()
    }

    /// The texts of a column: one, none for null, or those of a list of texts.
    fn column(&self, column: &str) -> Result<Vec<String>> {
        match self.row.get(column) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                items.iter().map(|item| self.text(item, || format!("{column}[]"))).collect()
            }
            Some(value) => Ok(vec![self.text(value, || column.to_owned())?]),
        }
    }

    fn items(&self, array: &str) -> &[Value] {
        self.row.get(array).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The text of one item of `array`; empty if it has none.
    fn content(&self, array: &str, item: &Value) -> Result<String> {
        let present = |key: &str| {
            item.get(key).filter(|value| !value.is_null()).map(|value| (key.to_owned(), value))
        };
        let found = match &self.source.content_key {
            Some(key) => present(key),
            None => CONTENT_KEYS.into_iter().find_map(present),
        };
        let text = found.map(|(key, value)| self.text(value, || format!("{array}[].{key}")));
        Ok(text.transpose()?.unwrap_or_default())
    }

    fn text(&self, value: &Value, path: impl Fn() -> String) -> Result<String> {
        text(value, &path, self.row_id)
    }
}

/// Why a message, or a row that needs it, is left out.
fn no_text_of(role: &str) -> String {
    format!("no text of role `{role}`")
}

fn selects(path: &RolePath, item: &Value) -> bool {
    match path {
        RolePath::Items { field, value, .. } => {
            item.get(field).and_then(Value::as_str) == Some(value)
        }
        RolePath::Column(_) => false,
    }
}

/// The first `turns` messages of every role, turn by turn.
fn zip(by_role: &[(&str, Vec<String>)], turns: usize) -> Vec<Message> {
    (0..turns)
        .flat_map(|turn| {
            by_role.iter().map(move |(role, contents)| Message::new(*role, contents[turn].clone()))
        })
        .collect()
}

fn mapping_text(mapping: &[(String, RolePath)]) -> String {
    mapping.iter().map(|(role, path)| format!("{role}: {path}")).collect::<Vec<_>>().join(", ")
}

/// The keys of a row; for a list of objects, also the keys of its first one.
pub(crate) fn available_keys(row: &Map<String, Value>) -> Vec<String> {
    let mut keys = Vec::new();
    for (key, value) in row {
        match value.get(0).and_then(Value::as_object) {
            Some(item) => keys.extend(item.keys().map(|field| format!("{key}[].{field}"))),
            None => keys.push(key.clone()),
        }
    }
    keys
}
