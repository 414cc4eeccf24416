//! Chat templates: Jinja as transformers renders it, byte for byte.
//!
//! Transformers compiles a template in an immutable sandbox with `trim_blocks`, `lstrip_blocks`,
//! loop controls, a `tojson` that calls `json.dumps`, `raise_exception`, `strftime_now` and a
//! `{% generation %}` tag, and renders it with the messages and the names of the special tokens.
//! The same is built here on minijinja; what differs between Python's and Rust's notion of a
//! string is settled in `python`, what differs in the source text in `dialect`. One difference is
//! left: where a template prints a whole list or dictionary, Python escapes a few more of Unicode's
//! unprintable characters.
//!
//! A template comes from a model folder that nobody reviewed, so it has no file access, and limits on
//! its length, the instructions it may run, the text it may write, its time and its memory.

mod dialect;
mod python;
mod sandbox;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use serde_json::Map;

use crate::error::{Error, Result};

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

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of `role` saying `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// A compiled chat template.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    path: PathBuf,
    source: String,
    uses_clock: bool,
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
        })
    }

    /// The text of the template, as it stood in its file.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template may write the date, so that the same conversation reads differently
    /// tomorrow.
    pub fn uses_clock(&self) -> bool {
        self.uses_clock
    }

    /// Renders a conversation as `apply_chat_template(messages, tokenize=False)` does.
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
        messages: &[Message],
        add_generation_prompt: bool,
        special_tokens: &Map<String, serde_json::Value>,
    ) -> Result<String> {
        let context = special_tokens
            .iter()
            .map(|(name, value)| (name.clone(), python::from_json(value)))
            .chain([
                ("messages".to_owned(), messages.iter().map(message_value).collect()),
                ("tools".to_owned(), Value::from(())),
                ("documents".to_owned(), Value::from(())),
                ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
            ]);
        let context = Value::from_pairs(context);
        let input_bytes: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        let fuel = FUEL_BASE + FUEL_FACTOR * input_bytes as u64;
        let limit = OUTPUT_BASE + OUTPUT_FACTOR * input_bytes;
        let mut environment = Environment::clone(&self.environment);
        environment.set_fuel(Some(fuel));
        let stack_bytes = (STACK_BASE + STACK_PER_FUEL * fuel as usize).min(MAX_STACK);
        sandbox::run(stack_bytes, LIMITS, move || {
            let mut out = Limited { text: Vec::new(), limit };
            environment.get_template(NAME)?.render_captured_to(context, &mut out)?;
            String::from_utf8(out.text)
                .map_err(|_| invalid("the template wrote bytes that are not text"))
        })
        .map_err(|source| Error::TemplateOverrun { path: self.path.clone(), source })?
        .map_err(|source| self.failed(source))
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

fn message_value(message: &Message) -> Value {
    Value::from_pairs([
        ("role", Value::from(message.role.as_str())),
        ("content", Value::from(message.content.as_str())),
    ])
}

/// Collects what a template writes, up to a limit.
struct Limited {
    text: Vec<u8>,
    limit: usize,
}

impl io::Write for Limited {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.text.len() + piece.len() > self.limit {
            let message = format!("the template wrote more than `{}` bytes", self.limit);
            return Err(io::Error::other(message));
        }
        self.text.extend_from_slice(piece);
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
