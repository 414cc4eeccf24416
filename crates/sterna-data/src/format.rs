//! What the rows of a source are, recognised from its columns, and one row to what is tokenized.
//!
//! The names of columns are those that TRL, axolotl and LLaMA-Factory read. docs/guides/data.md has the table.

mod preference;

use std::borrow::Cow;

use serde_json::{Map, Value};
use sterna_hf::{Conversation, Message};
use sterna_recipe::{LabelMask, RolePath, RowFormat, Source, SourceType, TrainOn};

pub use self::preference::Preference;
use crate::{
    error::{Error, Result, RowId},
    label_mask::{ASSISTANT, Tokens},
    messages::{self, Chat, LeftOut, ListRule, extract_chat, list_of, messages_of},
    source::{Wanted, kind},
};

const MESSAGES_KEYS: [&str; 4] = ["messages", "conversations", "conversation", "dialog"];
const TOOLS_KEY: &str = "tools";
const TEXT_KEY: &str = "text";
const KWARGS_KEY: &str = "chat_template_kwargs";
const SYSTEM_KEY: &str = "system";
const PADDING_KEY: &str = "attention_mask";

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
    /// `prompt`, `completion` and whether it is a good one in `label`.
    UnpairedPreference,
}

/// A row before it is tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Example {
    /// Printed by the chat template.
    Chat(Chat),
    /// Text, with labels on what follows the prompt.
    Text { prompt: String, completion: String },
    /// Text, with labels on all of it.
    Document(String),
    /// Tokens already.
    Tokens(Tokens),
    /// The better reply to a prompt and the worse one, each a chat or a text.
    Pair(Box<[Example; 2]>),
    /// A reply, a chat or a text, and whether it is a good one.
    Unpaired(Box<Example>, bool),
    /// Why it is not trained on.
    Dropped(String),
}

impl Example {
    /// What the chat template prints of it.
    pub(crate) fn chats(&self) -> impl Iterator<Item = &Chat> {
        let examples = match self {
            Example::Pair(pair) => &pair[..],
            Example::Unpaired(reply, _) => std::slice::from_ref(&**reply),
            alone => std::slice::from_ref(alone),
        };
        examples.iter().filter_map(|example| match example {
            Example::Chat(chat) => Some(chat),
            _ => None,
        })
    }
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
    /// [`Error::UnknownColumns`]; [`Error::UnreadKey`]; [`Error::Preferences`], which another trainer is for.
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
            Some(RowFormat::Text) if source.kind == SourceType::HuggingFaceCausal => {
                // As the reference: the only column is the text, unless the recipe names one.
                let only = (columns.len() == 1).then(|| columns[0].clone());
                Format::Text { column: named(text().or(only), TEXT_KEY) }
            }
            // A column that is missing is an error that names it.
            Some(RowFormat::UnpairedPreference) => Format::UnpairedPreference,
            _ if source.kind == SourceType::HuggingFace => Format::Preference,
            Some(RowFormat::Tokens) if source.kind == SourceType::HuggingFaceCausal => {
                Format::Tokens
            }
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
            None if source.messages_key.is_some() => {
                Format::Messages { column: named(messages(), MESSAGES_KEYS[0]) }
            }
            None => {
                if has("chosen") && has("rejected") {
                    Format::Preference
                } else if has("prompt") && has("completion") && has("label") {
                    // Whether a reply is a good one: the bad ones are nothing to learn from.
                    return Err(Error::Preferences {
                        source_name: source.name_or_path.clone(),
                        columns: UNPAIRED_COLUMNS,
                    });
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
        let columns = match format {
            Format::Preference => "`chosen` and `rejected`",
            Format::UnpairedPreference => UNPAIRED_COLUMNS,
            _ => "",
        };
        if !columns.is_empty() && source.kind != SourceType::HuggingFace {
            let source_name = source.name_or_path.clone();
            return Err(Error::Preferences { source_name, columns });
        }
        let is_message = !matches!(format, Format::Text { .. } | Format::Tokens | Format::Alpaca);
        let keys = [
            ("tools_key", &source.tools_key, is_message || format == Format::Alpaca),
            ("content_key", &source.content_key, is_message),
        ];
        match keys.into_iter().find(|(_, value, is_read)| value.is_some() && !is_read) {
            Some((key, ..)) => Err(Error::UnreadKey {
                source_name: source.name_or_path.clone(),
                key,
                format: format.to_string(),
            }),
            None => Ok(format),
        }
    }

    /// The columns that have to be there, and those that are read if they are.
    pub(crate) fn columns(&self, source: &Source) -> (Vec<String>, Vec<String>) {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (mut required, mut optional) = match self {
            Format::Roles => (Wanted::mapped(&with_role_mapping(source)).required, Vec::new()),
            Format::Messages { column } => (vec![column.clone()], own(&[SYSTEM_KEY])),
            Format::Alpaca => {
                (own(&["instruction", "output"]), own(&["input", SYSTEM_KEY, "history"]))
            }
            Format::PromptCompletion => (own(&["prompt", "completion"]), Vec::new()),
            Format::Text { column } => (vec![column.clone()], Vec::new()),
            Format::Tokens => {
                (own(&["input_ids"]), own(&[&MASK_KEYS[..], &[PADDING_KEY]].concat()))
            }
            Format::Preference => (own(&["chosen", "rejected"]), own(&["prompt"])),
            Format::UnpairedPreference => (own(&["prompt", "completion", "label"]), Vec::new()),
        };
        if self.is_chat() {
            optional.push(KWARGS_KEY.to_owned());
            match &source.tools_key {
                // What the recipe names has to be there.
                Some(key) => required.push(key.clone()),
                None => optional.push(TOOLS_KEY.to_owned()),
            }
        }
        (required, optional)
    }

    /// Samples that a row is made into, unless it is dropped. A reply without a pair has an empty one beside it: which of the two it is
    /// says whether it is a good one.
    pub fn samples_per_row(&self) -> usize {
        if matches!(self, Format::Preference | Format::UnpairedPreference) { 2 } else { 1 }
    }

    /// Whether the chat template prints the rows.
    fn is_chat(&self) -> bool {
        match self {
            Format::Roles
            | Format::Messages { .. }
            | Format::Alpaca
            | Format::PromptCompletion
            | Format::Preference
            | Format::UnpairedPreference => true,
            Format::Text { .. } | Format::Tokens => false,
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
            Format::UnpairedPreference => f.write_str(UNPAIRED_COLUMNS),
        }
    }
}

/// The columns of a reply without a pair, in words.
const UNPAIRED_COLUMNS: &str = "`prompt`, `completion` and `label`";

/// Whether the completion of a row is a good one.
fn is_good(row: &Map<String, Value>, row_id: &dyn Fn() -> RowId) -> Result<bool> {
    match &row["label"] {
        Value::Bool(is_good) => Ok(*is_good),
        Value::Number(number) if number.as_f64() == Some(1.0) => Ok(true),
        Value::Number(number) if number.as_f64() == Some(0.0) => Ok(false),
        label => Err(Error::BadRow {
            row: Box::new(row_id()),
            found: format!("`label` is {}", kind(label)),
            required: "`true` for a good completion or `false` for a bad one",
        }),
    }
}

/// The source with the role mapping of the recipe; without one, with the reference's default: a column for each role.
fn with_role_mapping(source: &Source) -> Cow<'_, Source> {
    if !source.role_mapping.is_empty() {
        return Cow::Borrowed(source);
    }
    let column = |role: &str| (role.to_owned(), RolePath::Column(role.to_owned()));
    Cow::Owned(Source { role_mapping: vec![column("user"), column(ASSISTANT)], ..source.clone() })
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
        let parsed = match &self.format {
            Format::Roles => self.by_role(row, row_id),
            Format::Messages { column } => self.list(column, &row, row_id),
            Format::Alpaca => alpaca(&row, row_id),
            Format::PromptCompletion => self.prompt_completion(&row, row_id),
            Format::Text { column } if self.source.kind == SourceType::HuggingFaceCausal => {
                document(column, &row, row_id)
            }
            Format::Text { column } => text(column, &row, row_id),
            Format::Tokens => tokens(&row, row_id),
            Format::Preference => return self.pair(&row, &about_chat, row_id),
            Format::UnpairedPreference => {
                let is_good = is_good(&row, row_id)?;
                let reply = self.prompt_completion(&row, row_id)?;
                return Ok(match self.example(reply, about_chat, row_id)? {
                    Example::Dropped(why) => Example::Dropped(why),
                    reply => Example::Unpaired(Box::new(reply), is_good),
                });
            }
        };
        self.example(parsed?, about_chat, row_id)
    }

    /// What was read, with what is trained on.
    fn example(
        &self,
        parsed: Parsed,
        about_chat: Conversation,
        row_id: &dyn Fn() -> RowId,
    ) -> Result<Example> {
        let Turns { messages, num_prompt, left_out } = match parsed {
            Parsed::Turns(turns) => turns,
            Parsed::Done(example) => return Ok(example),
        };
        if messages.is_empty() {
            return Ok(Example::Dropped("no messages".to_owned()));
        }
        if let Some(message) = messages.iter().find(|message| messages::is_silent(message)) {
            return Ok(Example::Dropped(format!("no text of role `{}`", message.role())));
        }
        let mut is_trained = messages::trained(&messages, self.train_on, row_id)?;
        is_trained[..num_prompt].fill(false);
        let conversation = Conversation { messages, ..about_chat };
        let chat = Chat { conversation, is_trained, left_out };
        if chat.is_trained.contains(&true) && !chat.teaches() {
            return Ok(Example::Dropped("every reply is empty".to_owned()));
        }
        Ok(Example::Chat(chat))
    }

    fn by_role(&self, row: Map<String, Value>, row_id: &dyn Fn() -> RowId) -> Result<Parsed> {
        let chat = extract_chat(&with_role_mapping(self.source), self.label_mask, row, row_id)?;
        if self.label_mask == LabelMask::Reference {
            return Ok(Parsed::Done(Example::Chat(chat)));
        }
        let (messages, left_out) = (chat.conversation.messages, chat.left_out);
        if messages.is_empty() {
            return Ok(dropped(left_out.into_keys().collect::<Vec<_>>().join(", ")));
        }
        Ok(Parsed::Turns(Turns { messages, num_prompt: 0, left_out }))
    }

    fn list(
        &self,
        column: &str,
        row: &Map<String, Value>,
        row_id: &dyn Fn() -> RowId,
    ) -> Result<Parsed> {
        if is_null(row, column) {
            return Ok(dropped(format!("`{column}` is null")));
        }
        let (mut messages, left_out) = messages_of(column, &row[column], self.list_rule(), row_id)?;
        lead_with_system(row, &mut messages, row_id)?;
        Ok(Parsed::Turns(Turns { messages, num_prompt: 0, left_out }))
    }

    fn prompt_completion(
        &self,
        row: &Map<String, Value>,
        row_id: &dyn Fn() -> RowId,
    ) -> Result<Parsed> {
        for key in ["prompt", "completion"] {
            if is_null(row, key) {
                return Ok(dropped(format!("`{key}` is null")));
            }
        }
        match (&row["prompt"], &row["completion"]) {
            (prompt @ Value::Array(_), completion @ Value::Array(_)) => {
                let rule = self.list_rule();
                let (mut messages, mut left_out) = messages_of("prompt", prompt, rule, row_id)?;
                let num_prompt = messages.len();
                let (completion, others) = messages_of("completion", completion, rule, row_id)?;
                if completion.is_empty() {
                    return Ok(dropped("`completion` is empty".to_owned()));
                }
                messages.extend(completion);
                for (why, count) in others {
                    *left_out.entry(why).or_default() += count;
                }
                Ok(Parsed::Turns(Turns { messages, num_prompt, left_out }))
            }
            (prompt, completion) if is_scalar(prompt) && is_scalar(completion) => {
                let text = |key: &str| messages::text(&row[key], &|| key.to_owned(), row_id);
                let (prompt, completion) = (text("prompt")?, text("completion")?);
                if completion.trim().is_empty() {
                    return Ok(dropped("`completion` is empty".to_owned()));
                }
                Ok(Parsed::Done(Example::Text { prompt, completion }))
            }
            (prompt, completion) => Err(Error::BadRow {
                row: Box::new(row_id()),
                found: format!(
                    "`prompt` is {} and `completion` {}",
                    kind(prompt),
                    kind(completion)
                ),
                required: "text and text, or two lists of messages",
            }),
        }
    }

    /// A prompt and its two replies as two examples, of which only the replies are trained on.
    fn pair(
        &self,
        row: &Map<String, Value>,
        about_chat: &Conversation,
        row_id: &dyn Fn() -> RowId,
    ) -> Result<Example> {
        let pair = match Preference::parse(row, row_id)? {
            Ok(Preference::Text { prompt, chosen, rejected }) => {
                let text = |completion| Example::Text { prompt: prompt.clone(), completion };
                [text(chosen), text(rejected)]
            }
            Ok(Preference::Chat { prompt, chosen, rejected }) => {
                let chat = |replies: Vec<Message>| {
                    let messages = [prompt.clone(), replies].concat();
                    let mut is_trained = messages::trained(&messages, self.train_on, row_id)?;
                    is_trained[..prompt.len()].fill(false);
                    let conversation = Conversation { messages, ..about_chat.clone() };
                    Ok(Example::Chat(Chat { conversation, is_trained, left_out: LeftOut::new() }))
                };
                [chat(chosen)?, chat(rejected)?]
            }
            Err(why) => return Ok(Example::Dropped(why)),
        };
        for (key, reply) in ["chosen", "rejected"].into_iter().zip(&pair) {
            if matches!(reply, Example::Chat(chat) if !chat.teaches()) {
                return Ok(Example::Dropped(format!("every reply of `{key}` is empty")));
            }
        }
        Ok(Example::Pair(Box::new(pair)))
    }

    fn list_rule(&self) -> ListRule<'_> {
        ListRule {
            content_key: self.source.content_key.as_deref(),
            unmapped_roles: self.source.unmapped_roles,
        }
    }

    /// What a row says to the template beside its messages.
    fn tools_and_kwargs(
        &self,
        row: &mut Map<String, Value>,
        row_id: &dyn Fn() -> RowId,
    ) -> Result<Conversation> {
        // The reference's templates see neither.
        if !self.format.is_chat() || self.label_mask == LabelMask::Reference {
            return Ok(Conversation::default());
        }
        let tools_key = self.source.tools_key.as_deref().unwrap_or(TOOLS_KEY);
        let is_mapped = |key: &str| {
            self.source.role_mapping.iter().any(|(_, path)| match path {
                RolePath::Column(column) | RolePath::Items { array: column, .. } => column == key,
            })
        };
        let mut conversation = Conversation::default();
        // Some data sets keep both as text, so that every row has the same columns.
        let mut take = |key: &str| -> Result<Value> {
            if is_mapped(key) {
                return Ok(Value::Null);
            }
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
        let bad = |path: String, found: &Value, required| Error::BadMessage {
            row: Box::new(row_id()),
            path,
            found: kind(found).to_owned(),
            required,
        };
        match take(tools_key)? {
            Value::Null => {}
            Value::Array(mut tools) => {
                for (i, tool) in tools.iter_mut().enumerate() {
                    if let Value::String(text) = tool {
                        *tool = serde_json::from_str(text).unwrap_or_else(|_| tool.take());
                    }
                    if !tool.is_object() {
                        return Err(bad(format!("{tools_key}[{i}]"), tool, "an object"));
                    }
                }
                conversation.tools = Value::Array(tools);
            }
            other => return Err(bad(tools_key.to_owned(), &other, "a list of tools")),
        }
        match take(KWARGS_KEY)? {
            Value::Null => {}
            Value::Object(kwargs) => conversation.template_kwargs = kwargs,
            other => return Err(bad(KWARGS_KEY.to_owned(), &other, "an object")),
        }
        Ok(conversation)
    }
}

/// The messages of a row.
struct Turns {
    messages: Vec<Message>,
    /// How many of them are the prompt, without labels whatever their flags say.
    num_prompt: usize,
    left_out: LeftOut,
}

enum Parsed {
    Turns(Turns),
    Done(Example),
}

fn dropped(why: String) -> Parsed {
    Parsed::Done(Example::Dropped(why))
}

fn is_null(row: &Map<String, Value>, key: &str) -> bool {
    row.get(key).is_none_or(Value::is_null)
}

fn is_scalar(value: &Value) -> bool {
    matches!(value, Value::String(_) | Value::Number(_) | Value::Bool(_))
}

/// Puts the text of the column `system` in front, where rows of `ShareGPT` keep it.
fn lead_with_system(
    row: &Map<String, Value>,
    messages: &mut Vec<Message>,
    row_id: &dyn Fn() -> RowId,
) -> Result<()> {
    let bad = |found: String, required| Error::BadRow { row: Box::new(row_id()), found, required };
    let system = match row.get(SYSTEM_KEY) {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::String(text)) if text.is_empty() || messages.is_empty() => return Ok(()),
        Some(Value::String(text)) => text,
        Some(other) => return Err(bad(format!("`{SYSTEM_KEY}` is {}", kind(other)), "text")),
    };
    match messages.iter().find(|message| matches!(message.role(), "system" | "developer")) {
        None => messages.insert(0, Message::new(SYSTEM_KEY, system)),
        Some(message) if message.content() == system => {}
        Some(message) => {
            let found =
                format!("`{SYSTEM_KEY}` differs from the message of role `{}`", message.role());
            return Err(bad(found, "one of them"));
        }
    }
    Ok(())
}

fn text(column: &str, row: &Map<String, Value>, row_id: &dyn Fn() -> RowId) -> Result<Parsed> {
    if is_null(row, column) {
        return Ok(dropped(format!("`{column}` is null")));
    }
    let completion = messages::text(&row[column], &|| column.to_owned(), row_id)?;
    if completion.trim().is_empty() {
        return Ok(dropped(format!("`{column}` is empty")));
    }
    Ok(Parsed::Done(Example::Text { prompt: String::new(), completion }))
}

/// A text to continue; one of nothing is one too, as in the reference.
fn document(column: &str, row: &Map<String, Value>, row_id: &dyn Fn() -> RowId) -> Result<Parsed> {
    if is_null(row, column) {
        return Ok(dropped(format!("`{column}` is null")));
    }
    let text = messages::text(&row[column], &|| column.to_owned(), row_id)?;
    Ok(Parsed::Done(Example::Document(text)))
}

/// The turns of `history`, then the question and its reply.
fn alpaca(row: &Map<String, Value>, row_id: &dyn Fn() -> RowId) -> Result<Parsed> {
    let field = |key: &str| match row.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(value) => messages::text(value, &|| key.to_owned(), row_id),
    };
    let parts = [field("instruction")?, field("input")?];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    let (question, reply) = (parts.join("\n"), field("output")?);
    if question.is_empty() {
        return Ok(dropped("`instruction` is empty".to_owned()));
    }
    if reply.trim().is_empty() {
        return Ok(dropped("`output` is empty".to_owned()));
    }
    let mut messages = Vec::new();
    let system = field(SYSTEM_KEY)?;
    if !system.is_empty() {
        messages.push(Message::new(SYSTEM_KEY, system));
    }
    let history = match row.get("history") {
        None | Some(Value::Null) => Cow::Borrowed(&[][..]),
        Some(Value::String(text)) if text.is_empty() => Cow::Borrowed(&[][..]),
        Some(list) => list_of("history", list, row_id)?,
    };
    for turn in history.iter() {
        let [Value::String(question), Value::String(reply)] =
            turn.as_array().map_or(&[][..], Vec::as_slice)
        else {
            return Err(Error::BadRow {
                row: Box::new(row_id()),
                found: match turn {
                    Value::Array(items) => {
                        format!("`history` has a list of `{}` items", items.len())
                    }
                    other => format!("`history` has {}", kind(other)),
                },
                required: "pairs of texts",
            });
        };
        messages.push(Message::new("user", question));
        messages.push(Message::new(ASSISTANT, reply));
    }
    messages.push(Message::new("user", question));
    messages.push(Message::new(ASSISTANT, reply));
    Ok(Parsed::Turns(Turns { messages, num_prompt: 0, left_out: LeftOut::new() }))
}

/// Token ids with labels: those of `labels` that are not -100, or those that a mask marks, or all. What `attention_mask` calls padding
/// is not of the sample.
fn tokens(row: &Map<String, Value>, row_id: &dyn Fn() -> RowId) -> Result<Parsed> {
    if is_null(row, "input_ids") {
        return Ok(dropped("`input_ids` is null".to_owned()));
    }
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
    let ids = integers("input_ids")?.unwrap_or_default();
    let ids = ids.iter().map(|&id| u32::try_from(id)).collect::<Result<Vec<u32>, _>>();
    let ids = ids.map_err(|_| bad("`input_ids` has a negative id".to_owned(), "token ids"))?;
    let mut is_label = vec![true; ids.len()];
    let mask = |key: &str| match integers(key)? {
        Some(mask) if mask.len() != ids.len() => {
            let found = format!("`{key}` has `{}` items, `input_ids` `{}`", mask.len(), ids.len());
            Err(bad(found, "as many"))
        }
        mask => Ok(mask),
    };
    for key in MASK_KEYS {
        let Some(mask) = mask(key)? else { continue };
        for (i, &value) in mask.iter().enumerate() {
            let marked = if key == "labels" { value != -100 } else { value != 0 };
            if key == "labels" && marked && value != i64::from(ids[i]) {
                let found = format!("`labels[{i}]` is `{value}` and `input_ids[{i}]` `{}`", ids[i]);
                return Err(bad(found, "the same id, or -100"));
            }
            is_label[i] &= marked;
        }
    }
    let kept = match mask(PADDING_KEY)? {
        None => 0..ids.len(),
        Some(mask) => {
            let first = mask.iter().position(|&value| value != 0).unwrap_or(mask.len());
            let end = mask.iter().rposition(|&value| value != 0).map_or(first, |last| last + 1);
            if mask[first..end].contains(&0) {
                let found = format!("`{PADDING_KEY}` has a 0 between others");
                return Err(bad(found, "padding on the left or the right"));
            }
            first..end
        }
    };
    let (ids, mut is_label) = (ids[kept.clone()].to_vec(), is_label[kept].to_vec());
    if let Some(first) = is_label.first_mut() {
        *first = false;
    }
    Ok(Parsed::Done(Example::Tokens(Tokens { ids, is_label })))
}
