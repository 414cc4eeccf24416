//! Pairs of replies to one prompt, the better one and the worse one.

use serde_json::{Map, Value};
use sterna_hf::Message;
use sterna_recipe::UnmappedRoles;

use crate::{
    error::{Error, Result, RowId},
    messages::{ListRule, is_silent, messages_of},
    source::kind,
};

/// A prompt with the reply that is preferred and the one that is not.
#[derive(Clone, Debug, PartialEq)]
pub enum Preference {
    /// Chats: the messages that both answer, and those of each.
    Chat {
        /// What both replies answer; not empty.
        prompt: Vec<Message>,
        /// The better reply.
        chosen: Vec<Message>,
        /// The worse reply.
        rejected: Vec<Message>,
    },
    /// Texts.
    Text {
        /// What both replies continue.
        prompt: String,
        /// The better reply.
        chosen: String,
        /// The worse reply.
        rejected: String,
    },
}

impl Preference {
    /// Reads a row with `chosen` and `rejected`, and with `prompt` unless both begin with it (TRL's "implicit prompt"). The inner error
    /// says why the row compares nothing: a reply is empty, or both are equal.
    ///
    /// # Errors
    ///
    /// [`Error::BadRow`] and [`Error::BadMessage`] with what is wrong: another kind of value, or no prompt that both have.
    pub fn parse(
        row: &Map<String, Value>,
        row_id: &dyn Fn() -> RowId,
    ) -> Result<std::result::Result<Preference, String>> {
        let bad =
            |found: String, required| Error::BadRow { row: Box::new(row_id()), found, required };
        let value = |key: &str| row.get(key).unwrap_or(&Value::Null);
        let (prompt, chosen, rejected) = (value("prompt"), value("chosen"), value("rejected"));
        if !chosen.is_null() && chosen == rejected {
            return Ok(Err("`chosen` and `rejected` are equal".to_owned()));
        }
        match (prompt, chosen, rejected) {
            (Value::Null | Value::String(_), Value::String(chosen), Value::String(rejected)) => {
                let (prompt, chosen, rejected) = if let Some(prompt) = prompt.as_str() {
                    (prompt, chosen.as_str(), rejected.as_str())
                } else {
                    let at = common_prefix_len(chosen, rejected);
                    (&chosen[..at], &chosen[at..], &rejected[at..])
                };
                for (key, reply) in [("chosen", chosen), ("rejected", rejected)] {
                    if reply.trim().is_empty() {
                        return Ok(Err(format!("`{key}` has no reply of its own")));
                    }
                }
                if prompt.is_empty() && value("prompt").is_null() {
                    let found = "`chosen` and `rejected` begin with different text";
                    return Err(bad(found.to_owned(), "one prompt for both"));
                }
                Ok(Ok(Preference::Text {
                    prompt: prompt.to_owned(),
                    chosen: chosen.to_owned(),
                    rejected: rejected.to_owned(),
                }))
            }
            (
                Value::Null | Value::String(_) | Value::Array(_),
                Value::Array(_),
                Value::Array(_),
            ) => {
                let messages = |key: &str, list: &Value| {
                    let rule =
                        ListRule { content_key: None, unmapped_roles: UnmappedRoles::Refuse };
                    let (messages, _) = messages_of(key, list, rule, row_id)?;
                    match messages.iter().position(is_silent) {
                        Some(i) => Err(bad(format!("`{key}[{i}]` has no content"), "text")),
                        None => Ok(messages),
                    }
                };
                let mut chosen = messages("chosen", chosen)?;
                let mut rejected = messages("rejected", rejected)?;
                let shared = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
                let prompt = match prompt {
                    Value::Array(_) => {
                        let prompt = messages("prompt", prompt)?;
                        // Some data sets repeat it in both replies.
                        if chosen[..shared].starts_with(&prompt) {
                            chosen.drain(..prompt.len());
                            rejected.drain(..prompt.len());
                        }
                        prompt
                    }
                    text => {
                        let asked = text.as_str().map(|text| Message::new("user", text));
                        let repeated: Vec<Message> = chosen.drain(..shared).collect();
                        rejected.drain(..shared);
                        match asked {
                            None => repeated,
                            Some(asked) if repeated.is_empty() => vec![asked],
                            Some(asked) => {
                                let is_asked = |message: &Message| {
                                    message.role() == "user" && message.content() == asked.content()
                                };
                                if !repeated.iter().any(is_asked) {
                                    let found = "`prompt` is not in what `chosen` and `rejected` begin with";
                                    return Err(bad(found.to_owned(), "the same question"));
                                }
                                repeated
                            }
                        }
                    }
                };
                for (key, reply) in [("chosen", &chosen), ("rejected", &rejected)] {
                    if reply.is_empty() {
                        return Ok(Err(format!("`{key}` has no reply of its own")));
                    }
                }
                if prompt.is_empty() {
                    let found = "`chosen` and `rejected` begin with different messages";
                    return Err(bad(found.to_owned(), "one prompt for both"));
                }
                Ok(Ok(Preference::Chat { prompt, chosen, rejected }))
            }
            (prompt, Value::Array(_), Value::Array(_))
            | (prompt, Value::String(_), Value::String(_)) => {
                let found = format!("`prompt` is {}", kind(prompt));
                Err(bad(found, "text, or a list of messages if the replies are lists"))
            }
            (_, chosen, rejected) => Err(bad(
                format!("`chosen` is {} and `rejected` {}", kind(chosen), kind(rejected)),
                "text and text, or two lists of messages",
            )),
        }
    }
}

/// Length of what both begin with, cut back to the end of a word so that replies begin with whole ones.
fn common_prefix_len(a: &str, b: &str) -> usize {
    let len = a
        .char_indices()
        .zip(b.chars())
        .find(|((_, a), b)| a != b)
        .map_or(a.len().min(b.len()), |((i, _), _)| i);
    // TRL ends the prompt before the space in front of the first difference.
    if a[..len].ends_with(' ') { len - 1 } else { len }
}
