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
//! A template comes from a model folder that nobody reviewed, so it has no file access, a limit on
//! the instructions it may run and one on the text it may write.

mod dialect;
mod python;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use serde_json::Map;

use crate::error::{Error, Result};

/// Instructions one rendering may run: seconds of work, thousands of times what a conversation needs.
const FUEL: u64 = 100_000_000;
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
    /// [`Error::TemplateSyntax`] with the line.
    pub fn compile(source: &str, path: &Path) -> Result<ChatTemplate> {
        let syntax_error = |source| Error::TemplateSyntax { path: path.to_owned(), source };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(syntax_error)?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(FUEL));
        python::install(&mut environment);
        environment.add_template_owned(NAME, dialect::translate(source)).map_err(syntax_error)?;
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
    /// [`Error::TemplateRender`] when it fails or reaches a limit.
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
        let mut out =
            Limited { text: Vec::new(), limit: OUTPUT_BASE + OUTPUT_FACTOR * input_bytes };
        let template = self.environment.get_template(NAME).map_err(|source| self.failed(source))?;
        match template.render_captured_to(context, &mut out) {
            Ok(_) => {}
            Err(error) => return Err(self.failed(error)),
        }
        String::from_utf8(out.text)
            .map_err(|_| self.failed(invalid("the template wrote bytes that are not text")))
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
