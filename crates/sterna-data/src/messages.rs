//! One row to one chat, by the recipe's `role_mapping`.
//!
//! The reference collects the messages of each role by themselves and zips the lists: a lone system message cuts the chat to one
//! turn, a question without an answer is lost, and one empty message shifts the pairing of every later turn. With
//! `data.label_mask: reference` the same happens here. Otherwise (`exact`) messages keep the order that they have in the row, and
//! roles that live in separate lists must have equally many messages.

use serde_json::{Map, Value};
use sterna_hf::Message;
use sterna_recipe::{LabelMask, RolePath, Source};

use crate::{
    error::{Error, Result, RowId},
    source::kind,
};

/// Fields that hold a message's text when the recipe does not say, in order of preference.
const CONTENT_KEYS: [&str; 4] = ["content", "text", "message", "value"];

/// A data set whose last reply stands in a column of its own.
const ACE_MATH: &str = "nvidia/AceMath-Instruct-Training-Data";

/// The messages of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    /// In the order in which they are rendered; never empty.
    pub messages: Vec<Message>,
    /// Messages of the row's lists that no entry of the role mapping selects, or that have no text.
    pub num_left_out: usize,
}

/// Columns that are read besides those of the role mapping.
pub(crate) fn extra_columns(source: &Source) -> &'static [&'static str] {
    if source.name_or_path == ACE_MATH { &["answer"] } else { &[] }
}

/// Reads the messages out of `row`.
///
/// # Errors
///
/// [`Error::NoMessages`], [`Error::NotText`], and [`Error::UnequalTurns`] unless `label_mask` is `reference`. `row_id` names the row.
///
/// # Source
///
/// ArcticTraining `hf_instruct_source.py` (`_extract_messages_from_paths`) for `reference`.
pub fn extract_chat(
    source: &Source,
    label_mask: LabelMask,
    mut row: Map<String, Value>,
    row_id: impl Fn() -> RowId,
) -> Result<Chat> {
    if source.name_or_path == ACE_MATH
        && let Some(answer) = row.remove("answer")
        && let Some(Value::Array(messages)) = row.get_mut("messages")
    {
        messages.push(serde_json::json!({"role": "assistant", "content": answer}));
    }
    let reader = RowReader { source, row: &row, row_id: &row_id };
    let chat = match label_mask {
        LabelMask::Reference => reader.zipped_to_shortest()?,
        LabelMask::Exact => reader.in_order()?,
    };
    if chat.messages.is_empty() {
        return Err(Error::NoMessages {
            row: Box::new(row_id()),
            role_mapping: mapping_text(&source.role_mapping),
            available: available_keys(&row),
        });
    }
    Ok(chat)
}

struct RowReader<'a> {
    source: &'a Source,
    row: &'a Map<String, Value>,
    row_id: &'a dyn Fn() -> RowId,
}

impl RowReader<'_> {
    /// The reference's rule: the lists of all roles that have any message, zipped and flattened.
    fn zipped_to_shortest(&self) -> Result<Chat> {
        let mut by_role = self.by_role()?;
        for (_, contents) in &mut by_role {
            contents.retain(|content| !content.is_empty());
        }
        by_role.retain(|(_, contents)| !contents.is_empty());
        let turns = by_role.iter().map(|(_, contents)| contents.len()).min().unwrap_or(0);
        let total: usize = by_role.iter().map(|(_, contents)| contents.len()).sum();
        let messages = zip(&by_role, turns);
        Ok(Chat { num_left_out: total - messages.len(), messages })
    }

    /// The order of the row itself, if one list holds all turns; else the zip of lists of equal length.
    fn in_order(&self) -> Result<Chat> {
        let mut arrays = self.source.role_mapping.iter().filter_map(|(_, path)| match path {
            RolePath::Items { array, .. } => Some(array),
            RolePath::Column(_) => None,
        });
        match arrays.next() {
            Some(array) if arrays.all(|other| other == array) => self.in_list_order(array),
            _ => self.zipped_evenly(),
        }
    }

    /// The items of `array` in their order; columns stand before or after them as the mapping lists them.
    fn in_list_order(&self, array: &str) -> Result<Chat> {
        let mapping = &self.source.role_mapping;
        let first_items =
            mapping.iter().position(|(_, path)| matches!(path, RolePath::Items { .. }));
        let mut chat = Chat { messages: Vec::new(), num_left_out: 0 };
        let mut after = Vec::new();
        for (i, (role, path)) in mapping.iter().enumerate() {
            if let RolePath::Column(column) = path {
                let target = if Some(i) < first_items { &mut chat.messages } else { &mut after };
                let contents =
                    self.column(column)?.into_iter().filter(|content| !content.is_empty());
                target.extend(contents.map(|content| Message::new(role, content)));
            }
        }
        for item in self.items(array) {
            let role = mapping.iter().find(|(_, path)| selects(path, item)).map(|(role, _)| role);
            let content = role.map_or(Ok(None), |_| self.content(array, item))?;
            match (role, content) {
                // An empty system message means that there is none; an empty reply is a reply.
                (Some(role), Some(content)) if !(role == "system" && content.is_empty()) => {
                    chat.messages.push(Message::new(role, content));
                }
                _ => chat.num_left_out += 1,
            }
        }
        chat.messages.append(&mut after);
        Ok(chat)
    }

    /// Roles in separate columns or lists: the same number of messages each. A single system message leads.
    fn zipped_evenly(&self) -> Result<Chat> {
        let mut by_role = self.by_role()?;
        for (_, contents) in &mut by_role {
            if contents.iter().all(String::is_empty) {
                contents.clear();
            }
        }
        by_role.retain(|(_, contents)| !contents.is_empty());
        let is_leading_system =
            |(role, contents): &(&str, Vec<String>)| *role == "system" && contents.len() == 1;
        let (system, turns): (Vec<_>, Vec<_>) = by_role.into_iter().partition(is_leading_system);
        let num_turns = turns.first().map_or(0, |(_, contents)| contents.len());
        if turns.iter().any(|(_, contents)| contents.len() != num_turns) {
            let counts =
                turns.iter().map(|(role, contents)| ((*role).to_owned(), contents.len())).collect();
            return Err(Error::UnequalTurns { row: Box::new((self.row_id)()), counts });
        }
        let mut messages = zip(&system, 1);
        messages.extend(zip(&turns, num_turns));
        Ok(Chat { messages, num_left_out: 0 })
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
                            contents.extend(self.content(array, item)?);
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

    /// The text of one item of `array`, if it has any.
    fn content(&self, array: &str, item: &Value) -> Result<Option<String>> {
        let present = |key: &str| {
            item.get(key).filter(|value| !value.is_null()).map(|value| (key.to_owned(), value))
        };
        let found = match &self.source.content_key {
            Some(key) => present(key),
            None => CONTENT_KEYS.into_iter().find_map(present),
        };
        found.map(|(key, value)| self.text(value, || format!("{array}[].{key}"))).transpose()
    }

    /// Text as it is, numbers and booleans as Python prints them. The reference prints lists and objects too, which trains on
    /// Python syntax; they are refused.
    fn text(&self, value: &Value, path: impl Fn() -> String) -> Result<String> {
        match value {
            Value::String(text) => Ok(text.clone()),
            Value::Bool(true) => Ok("True".to_owned()),
            Value::Bool(false) => Ok("False".to_owned()),
            Value::Number(number) => Ok(number.to_string()),
            other => Err(Error::NotText {
                row: Box::new((self.row_id)()),
                path: path(),
                found: kind(other),
            }),
        }
    }
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
fn available_keys(row: &Map<String, Value>) -> Vec<String> {
    let mut keys = Vec::new();
    for (key, value) in row {
        match value.get(0).and_then(Value::as_object) {
            Some(item) => keys.extend(item.keys().map(|field| format!("{key}[].{field}"))),
            None => keys.push(key.clone()),
        }
    }
    keys
}
