//! Pairs of replies to one prompt, the better one and the worse one.

use serde_json::{Map, Value};
use sterna_hf::Message;

use crate::{
    error::{Error, Result, RowId},
    messages::messages_of,
    source::kind,
};

/// A prompt with the reply that is preferred and the one that is not.
#[derive(Clone, Debug, PartialEq)]
pub enum Preference {
    /// Chats: the messages that both have in common, and those of each.
    Chat {
        /// What both replies answer; never empty.
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
    /// Reads a row with `chosen` and `rejected`, and with `prompt` unless both begin with it (TRL's "implicit prompt").
    ///
    /// # Errors
    ///
    /// [`Error::BadRow`] and [`Error::BadMessage`] with what is wrong: another kind of value, a reply that is empty, replies that are
    /// equal, or chats whose prompts differ.
    pub fn parse(row: &Map<String, Value>, row_id: &dyn Fn() -> RowId) -> Result<Preference> {
        let bad =
            |found: String, required| Error::BadRow { row: Box::new(row_id()), found, required };
        let value = |key: &str| row.get(key).unwrap_or(&Value::Null);
        let (prompt, chosen, rejected) = (value("prompt"), value("chosen"), value("rejected"));
        if chosen == rejected {
            return Err(bad("`chosen` and `rejected` are equal".to_owned(), "two replies"));
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
                        return Err(bad(format!("`{key}` is empty"), "a reply"));
                    }
                }
                Ok(Preference::Text {
                    prompt: prompt.to_owned(),
                    chosen: chosen.to_owned(),
                    rejected: rejected.to_owned(),
                })
            }
            (prompt, Value::Array(_), Value::Array(_)) => {
                let mut chosen = messages_of("chosen", chosen, row_id)?;
                let mut rejected = messages_of("rejected", rejected, row_id)?;
                let mut prompt = match prompt {
                    Value::Null => Vec::new(),
                    Value::String(text) => vec![Message::new("user", text)],
                    list => messages_of("prompt", list, row_id)?,
                };
                // Many data sets repeat the prompt in both replies.
                let shared = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
                let repeated: Vec<Message> = chosen.drain(..shared).collect();
                rejected.drain(..shared);
                if prompt.is_empty() {
                    prompt = repeated;
                } else if !repeated.is_empty() && !repeated.starts_with(&prompt) {
                    let found = "`prompt` is not what `chosen` and `rejected` begin with";
                    return Err(bad(found.to_owned(), "the same messages"));
                } else if repeated.len() > prompt.len() {
                    prompt = repeated;
                }
                if prompt.is_empty() {
                    let found = "`chosen` and `rejected` begin with different messages";
                    return Err(bad(found.to_owned(), "one prompt for both"));
                }
                for (key, reply) in [("chosen", &chosen), ("rejected", &rejected)] {
                    if reply.is_empty() {
                        return Err(bad(format!("`{key}` has no reply of its own"), "a reply"));
                    }
                }
                Ok(Preference::Chat { prompt, chosen, rejected })
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
