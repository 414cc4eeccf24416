//! Chat templates: Jinja as transformers renders it, byte for byte.
//!
//! Transformers compiles a template in an immutable sandbox with `trim_blocks`, `lstrip_blocks`,
//! loop controls, a `tojson` that calls `json.dumps`, `raise_exception`, `strftime_now` and a
//! `{% generation %}` tag, and renders it with the messages and the names of the special tokens.
//! The same is built here on minijinja; what differs between Python's and Rust's notion of a
//! string is settled in `python`, what differs in the source text in `dialect`; what is left is
//! listed in the tests.
//!
//! A template comes from a model folder that nobody reviewed, so it has no file access, and limits on
//! its length, the instructions it may run, the text it may write, its time and its memory.

mod dialect;
mod generation;
mod python;
mod sandbox;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Object;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use serde_json::Map;

use crate::error::{Error, Result};

use self::generation::Tracker;
use self::sandbox::LIMITS;
pub use self::sandbox::Overrun;

/// Longest template in bytes. Those of models have some thousand.
const MAX_SOURCE_BYTES: usize = 1 << 16;
/// Instructions one rendering may run beyond [`FUEL_FACTOR`] for each byte of the messages.
const FUEL_BASE: u64 = 1_000_000;
/// Instructions for each byte: a message takes some hundred, however short.
const FUEL_FACTOR: u64 = 10;
/// Stack for an expression that is as deep as a template is long, in bytes.
const STACK_BASE: usize = 256 << 20;
/// Stack for the values that an instruction may nest, in bytes: each level takes some instructions.
const STACK_PER_FUEL: usize = 256;
/// Largest stack in bytes: more than a conversation of a hundred thousand tokens needs, and less than any address space.
const MAX_STACK: usize = 8 << 30;
/// Bytes a rendering may write beyond [`OUTPUT_FACTOR`] times the messages.
const OUTPUT_BASE: usize = 1 << 20;
/// How many times the bytes of its messages a rendering may write.
const OUTPUT_FACTOR: usize = 16;
/// The one template of each environment.
const NAME: &str = "chat_template";

/// One message of a conversation: its keys reach the template as they are.
///
/// Beside `role` and `content`, templates know `tool_calls`, `tool_call_id`, `name`, `reasoning_content` and others; `content` is
/// text, null, or a list of parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Message(Map<String, serde_json::Value>);

impl Message {
    /// A message of `role` saying `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        let mut message = Message(Map::new());
        message.set("role", role.into());
        message.set("content", content.into());
        message
    }

    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub fn role(&self) -> &str {
        self.text_of("role")
    }

    /// What is said, if it is text; else nothing.
    pub fn content(&self) -> &str {
        self.text_of("content")
    }

    /// The text of a key; empty if it is not there or not text.
    pub fn text_of(&self, key: &str) -> &str {
        self.0.get(key).and_then(serde_json::Value::as_str).unwrap_or_default()
    }

    /// The value of a key, unless it is null.
    pub fn get(&self, key: &str) -> Option<&serde_json::Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// Sets a key, in its place if it is there and else as the last one.
    pub fn set(&mut self, key: &str, value: impl Into<serde_json::Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &str) -> Option<serde_json::Value> {
        self.0.shift_remove(key)
    }
}

impl From<Map<String, serde_json::Value>> for Message {
    fn from(keys: Map<String, serde_json::Value>) -> Message {
        Message(keys)
    }
}

/// What a chat template prints.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// In their order.
    pub messages: Vec<Message>,
    /// The descriptions of tools, a list of JSON schemas; null without any.
    pub tools: serde_json::Value,
    /// Further variables of the template, such as `enable_thinking`; they replace special tokens of the same name.
    pub template_kwargs: Map<String, serde_json::Value>,
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Conversation {
        Conversation { messages, ..Conversation::default() }
    }
}

/// A conversation as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The parts of it that stand in `{% generation %}`, in bytes; `None` if the template captures them first, so that their places
    /// are not known.
    pub generated: Option<Vec<Range<usize>>>,
}

/// A compiled chat template.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    path: PathBuf,
    source: String,
    uses_clock: bool,
    reads_content_parts: Arc<OnceLock<bool>>,
}

impl ChatTemplate {
    /// Compiles a template; `path` is the file it came from, for messages.
    ///
    /// # Errors
    ///
    /// [`Error::TemplateSyntax`] with the line, [`Error::TemplateTooLong`], or
    /// [`Error::TemplateOverrun`].
    pub fn compile(source: &str, path: &Path) -> Result<ChatTemplate> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(Error::TemplateTooLong {
                path: path.to_owned(),
                found_bytes: source.len(),
                max_bytes: MAX_SOURCE_BYTES,
            });
        }
        let translated = dialect::translate(source);
        let environment = sandbox::run(STACK_BASE, LIMITS, move || environment(translated))
            .map_err(|source| Error::TemplateOverrun { path: path.to_owned(), source })?
            .map_err(|source| Error::TemplateSyntax { path: path.to_owned(), source })?;
        Ok(ChatTemplate {
            environment: Arc::new(environment),
            path: path.to_owned(),
            source: source.to_owned(),
            uses_clock: source.contains("strftime_now"),
            reads_content_parts: Arc::default(),
        })
    }

    /// The text of the template, as it stood in its file.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The day that the template may print, in the local time as `strftime_now` has it; `None` if it prints none.
    pub fn day(&self) -> Option<String> {
        self.uses_clock.then(|| chrono::Local::now().date_naive().to_string())
    }

    /// Whether it prints the texts of a `content` that is a list of parts, instead of the list as Python writes it. Asked once.
    pub(crate) fn reads_content_parts(
        &self,
        special_tokens: &Map<String, serde_json::Value>,
    ) -> bool {
        *self.reads_content_parts.get_or_init(|| {
            let text = "sternaPart";
            let mut message = Message::new("user", "");
            message.set("content", serde_json::json!([{"type": "text", "text": text}]));
            let printed = self.render(&vec![message].into(), false, special_tokens);
            printed.is_ok_and(|printed| {
                printed.contains(text)
                    && !printed.contains(&format!("'{text}'"))
                    && !printed.contains(&format!("\"{text}\""))
            })
        })
    }

    /// Renders a conversation as `apply_chat_template(messages, tools, tokenize=False, **template_kwargs)` does.
    ///
    /// `special_tokens` are the names the template sees beside the messages: `bos_token` and so on
    /// as strings, `additional_special_tokens` as a list.
    ///
    /// # Errors
    ///
    /// [`Error::TemplateRefused`] when the template calls `raise_exception`,
    /// [`Error::TemplateRender`] when it fails or reaches a limit of instructions or text,
    /// [`Error::TemplateOverrun`] when it reaches one of time or memory: the process should end then.
    pub fn render(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
        special_tokens: &Map<String, serde_json::Value>,
    ) -> Result<String> {
        self.render_tracked(conversation, add_generation_prompt, special_tokens)
            .map(|rendered| rendered.text)
    }

    /// [`ChatTemplate::render`] with what stands in `{% generation %}`.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn render_tracked(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
        special_tokens: &Map<String, serde_json::Value>,
    ) -> Result<Rendered> {
        sandbox::only(self.render_all(&[(conversation, add_generation_prompt)], special_tokens))
    }

    /// [`ChatTemplate::render_tracked`] of several conversations, each with whether to add a generation prompt, in less time than one by
    /// one. What follows an [`Error::TemplateOverrun`] is not rendered and has no result.
    pub fn render_all(
        &self,
        conversations: &[(&Conversation, bool)],
        special_tokens: &Map<String, serde_json::Value>,
    ) -> Vec<Result<Rendered>> {
        let special_tokens: Arc<[_]> = variables(special_tokens).collect();
        let input = |&(conversation, add_generation_prompt): &(&Conversation, bool)| {
            let Conversation { messages, tools, template_kwargs } = conversation;
            let values = messages.iter().map(|Message(keys)| Value::from_pairs(variables(keys)));
            let context = ChatContext {
                messages: values.collect(),
                tools: python::from_json(tools),
                add_generation_prompt,
                template_kwargs: variables(template_kwargs).collect(),
                special_tokens: Arc::clone(&special_tokens),
            };
            let bytes = messages.iter().map(|Message(keys)| object_bytes(keys)).sum::<usize>()
                + json_bytes(tools)
                + object_bytes(template_kwargs);
            Input { context: Value::from_object(context), bytes }
        };
        self.run(conversations.iter().map(input).collect())
    }

    /// Renders with `context` as the variables of the template, and nothing beside them.
    ///
    /// # Errors
    ///
    /// As [`ChatTemplate::render`].
    pub fn render_context(&self, context: &Map<String, serde_json::Value>) -> Result<Rendered> {
        let (bytes, context) = (object_bytes(context), Value::from_pairs(variables(context)));
        sandbox::only(self.run(vec![Input { context, bytes }]))
    }

    fn run(&self, inputs: Vec<Input>) -> Vec<Result<Rendered>> {
        let stack_bytes = |input: &Input| STACK_BASE + STACK_PER_FUEL * input.fuel() as usize;
        let stack_bytes = inputs.iter().map(stack_bytes).max().unwrap_or(0).min(MAX_STACK);
        let mut environment = Environment::clone(&self.environment);
        let tracker = Tracker::default();
        tracker.install(&mut environment);
        let render = move |input: Input| -> std::result::Result<Rendered, minijinja::Error> {
            environment.set_fuel(Some(input.fuel()));
            tracker.reset();
            let limit = OUTPUT_BASE + OUTPUT_FACTOR * input.bytes;
            let mut out = Limited { text: Vec::new(), limit, tracker: tracker.clone() };
            environment.get_template(NAME)?.render_captured_to(input.context, &mut out)?;
            let text = String::from_utf8(out.text)
                .map_err(|_| invalid("the template wrote bytes that are not text"))?;
            Ok(Rendered { text, generated: out.tracker.spans() })
        };
        let outcomes = sandbox::run_each(stack_bytes, LIMITS, inputs, render);
        let results = outcomes.into_iter().map(|outcome| match outcome {
            Ok(rendered) => rendered.map_err(|source| self.failed(source)),
            Err(source) => Err(Error::TemplateOverrun { path: self.path.clone(), source }),
        });
        results.collect()
    }

    fn failed(&self, source: minijinja::Error) -> Error {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&source);
        while let Some(error) = cause {
            if let Some(raised) = error.downcast_ref::<python::Raised>() {
                let message = raised.0.clone();
                return Error::TemplateRefused { path: self.path.clone(), message };
            }
            cause = error.source();
        }
        Error::TemplateRender { path: self.path.clone(), source }
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The variables of a template that renders a chat. To make a map of them for each chat took longer than to look up those that are used.
#[derive(Debug)]
struct ChatContext {
    messages: Value,
    tools: Value,
    add_generation_prompt: bool,
    /// They replace special tokens, and nothing else.
    template_kwargs: Vec<(String, Value)>,
    special_tokens: Arc<[(String, Value)]>,
}

impl Object for ChatContext {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        match key {
            "messages" => Some(self.messages.clone()),
            "tools" => Some(self.tools.clone()),
            "documents" => Some(Value::from(())),
            "add_generation_prompt" => Some(Value::from(self.add_generation_prompt)),
            _ => {
                let mut named = self.template_kwargs.iter().chain(&*self.special_tokens);
                named.find(|(name, _)| name == key).map(|(_, value)| value.clone())
            }
        }
    }
}

/// What a template is rendered with.
struct Input {
    context: Value,
    /// Of its texts and names.
    bytes: usize,
}

impl Input {
    /// Instructions that its rendering may run.
    fn fuel(&self) -> u64 {
        FUEL_BASE + FUEL_FACTOR * self.bytes as u64
    }
}

/// An environment with one template, already in the dialect of minijinja.
fn environment(source: String) -> std::result::Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    // An error would carry the template's variables to threads that have no room for what is nested in them.
    environment.set_debug(false);
    python::install(&mut environment);
    environment.add_template_owned(NAME, source)?;
    Ok(environment)
}

/// Names and values of an object, for a template.
fn variables(object: &Map<String, serde_json::Value>) -> impl Iterator<Item = (String, Value)> {
    object.iter().map(|(name, value)| (name.clone(), python::from_json(value)))
}

/// Bytes of a value's texts and names, and some for each value.
fn json_bytes(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(text) => text.len(),
        serde_json::Value::Array(items) => items.iter().map(json_bytes).sum(),
        serde_json::Value::Object(object) => object_bytes(object),
        _ => size_of::<u64>(),
    }
}

fn object_bytes(object: &Map<String, serde_json::Value>) -> usize {
    object.iter().map(|(name, value)| name.len() + json_bytes(value)).sum()
}

/// Collects what a template writes, up to a limit.
struct Limited {
    text: Vec<u8>,
    limit: usize,
    tracker: Tracker,
}

impl io::Write for Limited {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.text.len() + piece.len() > self.limit {
            let message = format!("the template wrote more than `{}` bytes", self.limit);
            return Err(io::Error::other(message));
        }
        self.text.extend_from_slice(piece);
        self.tracker.write(piece.len());
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An error in a template's call of a function.
fn invalid(message: impl Into<String>) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, message.into())
}

#[cfg(test)]
mod tests;
