//! What the rows of a source are, recognised from its columns, and one row to what is tokenized.
//!
//! The names of columns are those that TRL, axolotl and LLaMA-Factory read. docs/guides/data.md has the table.

mod preference;

use serde_json::{Map, Value};
use sterna_hf::{Conversation, Message};
use sterna_recipe::{LabelMask, RolePath, RowFormat, Source, TrainOn};

pub use self::preference::Preference;
use crate::{
    error::{Error, Result, RowId},
    label_mask::{ASSISTANT, Tokens},
    messages::{self, Chat, extract_chat, messages_of},
    source::{Wanted, kind},
};

const MESSAGES_KEYS: [&str; 4] = ["messages", "conversations", "conversation", "dialog"];
const TOOLS_KEY: &str = "tools";
const TEXT_KEY: &str = "text";
const KWARGS_KEY: &str = "chat_template_kwargs";

/// Columns that say which tokens are labels.
const MASK_KEYS: [&str; 3] = ["labels", "completion_mask", "assistant_masks"];

/// What a row of a source is, with the names of its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// Messages by the recipe's role mapping.
    Roles,
    /// A list of messages.
    Messages {
        /// Its column.
        column: String,
    },
    /// `instruction`, `input`, `output`, and perhaps `system` and `history`.
    Alpaca,
    /// `prompt` and `completion`.
    PromptCompletion,
    /// Text without turns.
    Text {
        /// Its column.
        column: String,
    },
    /// Token ids.
    Tokens,
    /// `chosen` and `rejected`.
    Preference,
}

/// A row before it is tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Example {
    /// Printed by the chat template.
    Chat(Chat),
    /// Text, with labels on what follows the prompt.
    Text { prompt: String, completion: String },
    /// Tokens already.
    Tokens(Tokens),
    /// Why it is not trained on.
    Dropped(String),
}

/// How the rows of a source are read.
pub(crate) struct RowParser<'a> {
    pub(crate) source: &'a Source,
    pub(crate) format: Format,
    pub(crate) label_mask: LabelMask,
    pub(crate) train_on: TrainOn,
}

impl Format {
    /// What `columns` hold, unless the recipe says so.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownColumns`]; [`Error::Preferences`], which another trainer is for.
    pub(crate) fn of(source: &Source, label_mask: LabelMask, columns: &[String]) -> Result<Format> {
        let has = |name: &str| columns.iter().any(|column| column == name);
        let messages = || match &source.messages_key {
            Some(column) => Some(column.clone()),
            None => MESSAGES_KEYS.iter().find(|name| has(name)).map(|name| (*name).to_owned()),
        };
        let text =
            || source.text_key.clone().or_else(|| has(TEXT_KEY).then(|| TEXT_KEY.to_owned()));
        let named = |column: Option<String>, usual: &str| column.unwrap_or(usual.to_owned());
        let format = match source.format {
            _ if label_mask == LabelMask::Reference || !source.role_mapping.is_empty() => {
                Format::Roles
            }
            Some(RowFormat::Messages) => {
                Format::Messages { column: named(messages(), MESSAGES_KEYS[0]) }
            }
            Some(RowFormat::Alpaca) => Format::Alpaca,
            Some(RowFormat::PromptCompletion) => Format::PromptCompletion,
            Some(RowFormat::Text) => Format::Text { column: named(text(), TEXT_KEY) },
            Some(RowFormat::Tokens) => Format::Tokens,
            Some(RowFormat::Preference) => Format::Preference,
            None if source.text_key.is_some() => Format::Text { column: named(text(), TEXT_KEY) },
            None => {
                if has("chosen") && has("rejected") {
                    Format::Preference
                } else if let Some(column) = messages() {
                    Format::Messages { column }
                } else if has("prompt") && has("completion") {
                    Format::PromptCompletion
                } else if has("instruction") && has("output") {
                    Format::Alpaca
                } else if has("user") && has("assistant") {
                    // The reference's own default.
                    Format::Roles
                } else if has("input_ids") {
                    Format::Tokens
                } else if let Some(column) = text() {
                    Format::Text { column }
                } else {
                    return Err(Error::UnknownColumns {
                        source_name: source.name_or_path.clone(),
                        available: columns.to_vec(),
                    });
                }
            }
        };
        if format == Format::Preference {
            return Err(Error::Preferences { source_name: source.name_or_path.clone() });
        }
        Ok(format)
    }

    /// The columns that have to be there, and those that are read if they are.
    pub(crate) fn columns(&self, source: &Source) -> (Vec<String>, Vec<String>) {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let tools = source.tools_key.clone().unwrap_or_else(|| TOOLS_KEY.to_owned());
        let about_chats = vec![tools, KWARGS_KEY.to_owned()];
        match self {
            Format::Roles => {
                let role_mapping = role_mapping(source).into_owned();
                let required = Wanted::mapped(&Source { role_mapping, ..source.clone() }).required;
                (required, about_chats)
            }
            Format::Messages { column } => (vec![column.clone()], about_chats),
            Format::Alpaca => {
                (own(&["instruction", "output"]), own(&["input", "system", "history"]))
            }
            Format::PromptCompletion => (own(&["prompt", "completion"]), about_chats),
            Format::Text { column } => (vec![column.clone()], Vec::new()),
            Format::Tokens => (own(&["input_ids"]), own(&MASK_KEYS)),
            Format::Preference => (own(&["chosen", "rejected"]), own(&["prompt"])),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Format::Roles => f.write_str("chats by role_mapping"),
            Format::Messages { column } => write!(f, "chats in column `{column}`"),
            Format::Alpaca => f.write_str("`instruction`, `input` and `output` as chats"),
            Format::PromptCompletion => f.write_str("`prompt` and `completion`"),
            Format::Text { column } => write!(f, "text in column `{column}`"),
            Format::Tokens => f.write_str("tokens in column `input_ids`"),
            Format::Preference => f.write_str("`chosen` and `rejected`"),
        }
    }
}

/// The role mapping of the recipe; without one, the reference's default: a column for each role.
fn role_mapping(source: &Source) -> std::borrow::Cow<'_, [(String, RolePath)]> {
    if !source.role_mapping.is_empty() {
        return source.role_mapping.as_slice().into();
    }
    let column = |role: &str| (role.to_owned(), RolePath::Column(role.to_owned()));
    vec![column("user"), column(ASSISTANT)].into()
}

impl RowParser<'_> {
    /// Reads `row`.
    ///
    /// # Errors
    ///
    /// What is wrong with it, with its place.
    pub(crate) fn parse(
        &self,
        mut row: Map<String, Value>,
        row_id: &dyn Fn() -> RowId,
    ) -> Result<Example> {
        let about_chat = self.tools_and_kwargs(&mut row, row_id)?;
        let chat = |messages: Vec<Message>, num_prompt: usize| {
            let mut is_trained = messages::trained(&messages, self.train_on, row_id)?;
            is_trained[..num_prompt].fill(false);
            Ok(Chat { conversation: messages.into(), is_trained, ..Chat::default() })
        };
        let mut chat = match &self.format {
            Format::Roles => {
                let source = Source {
                    role_mapping: role_mapping(self.source).into(),
                    ..self.source.clone()
                };
                let mut chat = extract_chat(&source, self.label_mask, row, row_id)?;
                if self.label_mask == LabelMask::Exact {
                    let messages = &chat.conversation.messages;
                    chat.is_trained = messages::trained(messages, self.train_on, row_id)?;
                    if messages.is_empty() {
                        let why = chat.left_out.into_keys().collect::<Vec<_>>().join(", ");
                        return Ok(Example::Dropped(why));
                    }
                }
                chat
            }
            Format::Messages { column } => {
                let Some(value) = row.get(column).filter(|value| !value.is_null()) else {
                    return Ok(Example::Dropped(format!("`{column}` is null")));
                };
                chat(messages_of(column, value, row_id)?, 0)?
            }
            Format::Alpaca => match alpaca(&row, row_id)? {
                Some(messages) => chat(messages, 0)?,
                None => return Ok(Example::Dropped("`instruction` is empty".to_owned())),
            },
            Format::PromptCompletion => match (row.get("prompt"), row.get("completion")) {
                (Some(prompt @ Value::Array(_)), Some(completion @ Value::Array(_))) => {
                    let mut messages = messages_of("prompt", prompt, row_id)?;
                    let num_prompt = messages.len();
                    messages.extend(messages_of("completion", completion, row_id)?);
                    chat(messages, num_prompt)?
                }
                (prompt, completion) => return text_pair(prompt, completion, row_id),
            },
            Format::Text { column } => {
                let text = match row.get(column) {
                    None | Some(Value::Null) => String::new(),
                    Some(value) => messages::text(value, &|| column.clone(), row_id)?,
                };
                if text.is_empty() {
                    return Ok(Example::Dropped(format!("`{column}` is empty")));
                }
                return Ok(Example::Text { prompt: String::new(), completion: text });
            }
            Format::Tokens => return tokens(&row, row_id).map(Example::Tokens),
            Format::Preference => {
                return Err(Error::Preferences { source_name: self.source.name_or_path.clone() });
            }
        };
        if chat.conversation.messages.is_empty() {
            return Ok(Example::Dropped("no messages".to_owned()));
        }
        if self.label_mask == LabelMask::Exact {
            chat.conversation.tools = about_chat.tools;
            chat.conversation.template_kwargs = about_chat.template_kwargs;
            if chat.is_trained.iter().any(|is_trained| *is_trained) && !chat.teaches() {
                return Ok(Example::Dropped("every reply is empty".to_owned()));
            }
        }
        Ok(Example::Chat(chat))
    }

    /// What a row says to the template beside its messages.
    fn tools_and_kwargs(
        &self,
        row: &mut Map<String, Value>,
        row_id: &dyn Fn() -> RowId,
    ) -> Result<Conversation> {
        let tools_key = self.source.tools_key.as_deref().unwrap_or(TOOLS_KEY);
        let mut conversation = Conversation::default();
        // Some data sets keep both as text, so that every row has the same columns.
        let mut take = |key: &str| -> Result<Value> {
            match row.remove(key) {
                Some(Value::String(text)) if text.trim().is_empty() => Ok(Value::Null),
                Some(Value::String(text)) => {
                    serde_json::from_str(&text).map_err(|_| Error::BadMessage {
                        row: Box::new(row_id()),
                        path: key.to_owned(),
                        found: "text that is not JSON".to_owned(),
                        required: "JSON",
                    })
                }
                other => Ok(other.unwrap_or_default()),
            }
        };
        let bad = |key: &str, found: &Value, required| Error::BadMessage {
            row: Box::new(row_id()),
            path: key.to_owned(),
            found: kind(found).to_owned(),
            required,
        };
        match take(tools_key)? {
            Value::Null => {}
            // transformers turns a list without tools into a list without tools, which templates read as none.
            tools @ Value::Array(_) => conversation.tools = tools,
            other => return Err(bad(tools_key, &other, "a list of tools")),
        }
        match take(KWARGS_KEY)? {
            Value::Null => {}
            Value::Object(kwargs) => conversation.template_kwargs = kwargs,
            other => return Err(bad(KWARGS_KEY, &other, "an object")),
        }
        Ok(conversation)
    }
}

/// The messages of `instruction`, `input` and `output`, after those of `system` and `history`; `None` without a question.
fn alpaca(row: &Map<String, Value>, row_id: &dyn Fn() -> RowId) -> Result<Option<Vec<Message>>> {
    let field = |key: &str| match row.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(value) => messages::text(value, &|| key.to_owned(), row_id),
    };
    let (instruction, input) = (field("instruction")?, field("input")?);
    let parts = [instruction, input].into_iter().filter(|part| !part.is_empty());
    let question = parts.collect::<Vec<_>>().join("\n");
    if question.is_empty() {
        return Ok(None);
    }
    let mut messages = Vec::new();
    let system = field("system")?;
    if !system.is_empty() {
        messages.push(Message::new("system", system));
    }
    for turn in row.get("history").and_then(Value::as_array).into_iter().flatten() {
        let bad = || Error::BadRow {
            row: Box::new(row_id()),
            found: format!("`history` has {}", kind(turn)),
            required: "a list of pairs of texts",
        };
        let [Value::String(question), Value::String(reply)] =
            turn.as_array().map(Vec::as_slice).ok_or_else(bad)?
        else {
            return Err(bad());
        };
        messages.push(Message::new("user", question));
        messages.push(Message::new(ASSISTANT, reply));
    }
    messages.push(Message::new("user", question));
    messages.push(Message::new(ASSISTANT, field("output")?));
    Ok(Some(messages))
}

/// `prompt` and `completion` that are text.
fn text_pair(
    prompt: Option<&Value>,
    completion: Option<&Value>,
    row_id: &dyn Fn() -> RowId,
) -> Result<Example> {
    let dropped = |why: &str| Ok(Example::Dropped(why.to_owned()));
    match (prompt, completion) {
        (None | Some(Value::Null), _) => dropped("`prompt` is null"),
        (_, None | Some(Value::Null)) => dropped("`completion` is null"),
        (Some(Value::String(_)), Some(Value::String(completion)))
            if completion.trim().is_empty() =>
        {
            dropped("`completion` is empty")
        }
        (Some(Value::String(prompt)), Some(Value::String(completion))) => {
            let (prompt, completion) = (prompt.clone(), completion.clone());
            Ok(Example::Text { prompt, completion })
        }
        (Some(prompt), Some(completion)) => Err(Error::BadRow {
            row: Box::new(row_id()),
            found: format!("`prompt` is {} and `completion` {}", kind(prompt), kind(completion)),
            required: "text and text, or two lists of messages",
        }),
    }
}

/// Token ids with labels: those of `labels` that are not -100, or those that a mask marks, or all.
fn tokens(row: &Map<String, Value>, row_id: &dyn Fn() -> RowId) -> Result<Tokens> {
    let bad = |found: String, required| Error::BadRow { row: Box::new(row_id()), found, required };
    let integers = |key: &str| -> Result<Option<Vec<i64>>> {
        let items = match row.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Array(items)) => items,
            Some(other) => {
                return Err(bad(format!("`{key}` is {}", kind(other)), "a list of integers"));
            }
        };
        let item = |item: &Value| {
            item.as_i64()
                .or_else(|| item.as_bool().map(i64::from))
                .ok_or_else(|| bad(format!("`{key}` has {}", kind(item)), "a list of integers"))
        };
        items.iter().map(item).collect::<Result<_>>().map(Some)
    };
    let ids = integers("input_ids")?
        .ok_or_else(|| bad("`input_ids` is null".to_owned(), "a list of integers"))?;
    let ids = ids.iter().map(|&id| u32::try_from(id)).collect::<Result<Vec<u32>, _>>();
    let ids = ids.map_err(|_| bad("`input_ids` has a negative id".to_owned(), "token ids"))?;
    let mut is_label = vec![true; ids.len()];
    for key in MASK_KEYS {
        let Some(mask) = integers(key)? else { continue };
        if mask.len() != ids.len() {
            let found = format!("`{key}` has `{}` items, `input_ids` `{}`", mask.len(), ids.len());
            return Err(bad(found, "as many"));
        }
        for (i, &value) in mask.iter().enumerate() {
            let marked = if key == "labels" { value != -100 } else { value != 0 };
            if key == "labels" && marked && value != i64::from(ids[i]) {
                let found = format!("`labels[{i}]` is `{value}` and `input_ids[{i}]` `{}`", ids[i]);
                return Err(bad(found, "the same id, or -100"));
            }
            is_label[i] &= marked;
        }
    }
    if let Some(first) = is_label.first_mut() {
        *first = false;
    }
    Ok(Tokens { ids, is_label })
}
