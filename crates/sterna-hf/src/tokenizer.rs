//! A model's tokenizer and chat template, as transformers' fast tokenizers behave.
//!
//! The `tokenizers` crate reads `tokenizer.json`; this module adds what transformers adds in
//! Python: special tokens by role, tokens that only `tokenizer_config.json` knows, and where the
//! chat template comes from. Post-processing adds no special tokens to a chat: its template has
//! written them all.

mod special_tokens;
mod words;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::{Map, Value};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

use self::special_tokens::SpecialTokens;
use self::words::Words;
use crate::chat_template::{ChatTemplate, Conversation, Rendered};
use crate::error::{Error, Result};
use crate::panics::catch_panic;

/// A tokenizer with its special tokens and chat template.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    dir: PathBuf,
    special_tokens: SpecialTokens,
    special_token_ids: Vec<u32>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
    pad_token_id: u32,
    chat_template: Option<ChatTemplate>,
    model_max_length: Option<usize>,
    /// Of which special tokens are text; made when it is needed.
    plain: Arc<OnceLock<tokenizers::Tokenizer>>,
    /// Encodes word by word; `None` if only the crate can encode.
    words: Arc<Option<Words>>,
    /// Finds special tokens in a text; `None` if there are too many to look for.
    spelled: Arc<OnceLock<Option<AhoCorasick>>>,
}

/// The tokens of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, `[s]`.
    pub ids: Vec<u32>,
    /// For each token, the characters (Unicode scalar values, not bytes) it stands for, as a
    /// half-open range. Tokens that are parts of one character all have that character.
    pub offsets: Vec<(usize, usize)>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and
    /// `chat_template.jinja` of a model folder, of which only the first has to be there.
    ///
    /// Without a padding token the end-of-text token pads, with a warning in the log.
    ///
    /// # Errors
    ///
    /// [`Error::SlowTokenizer`] or [`Error::MissingFile`] without a `tokenizer.json`;
    /// [`Error::Tokenizer`] when it cannot be read; [`Error::Value`] for a special token that is
    /// not one, or when there is neither a padding nor an end-of-text token;
    /// [`Error::TemplateSyntax`].
    pub fn from_dir(dir: &Path) -> Result<Tokenizer> {
        let path = dir.join("tokenizer.json");
        let mut inner = match std::fs::read(&path) {
            Ok(bytes) => unless_panicked(|| tokenizers::Tokenizer::from_bytes(&bytes))
                .map_err(|source| Error::Tokenizer { path: path.clone(), source })?,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(no_tokenizer_json(dir, path));
            }
            Err(source) => return Err(Error::Read { path, source }),
        };
        // A file may carry the truncation and padding of whoever saved it.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|source| Error::Tokenizer { path: path.clone(), source })?;

        let config_path = dir.join("tokenizer_config.json");
        let config = read_json_object(&config_path)?.unwrap_or_default();
        let special_tokens = SpecialTokens::read(dir, &config_path, &config)?;
        let missing = special_tokens.missing_from(&inner);
        inner.add_tokens(&missing);
        let add_prefix_space =
            config.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(false);
        set_add_prefix_space(&mut inner, add_prefix_space);

        let id_of =
            |role: &str| special_tokens.get(role).and_then(|token| inner.token_to_id(token));
        let eos_token_id = id_of("eos_token");
        let pad_token_id = match (id_of("pad_token"), eos_token_id) {
            (Some(id), _) => id,
            (None, Some(id)) => {
                tracing::warn!(
                    dir = %dir.display(),
                    "the tokenizer has no padding token, its end-of-text token pads instead"
                );
                id
            }
            (None, None) => {
                return Err(Error::Value {
                    path: config_path,
                    key: "pad_token".to_owned(),
                    found: "missing, and so is `eos_token`".to_owned(),
                    required: "one of the two, to pad with".to_owned(),
                });
            }
        };
        Ok(Tokenizer {
            dir: dir.to_owned(),
            special_token_ids: special_tokens.ids(&inner),
            bos_token_id: id_of("bos_token"),
            eos_token_id,
            pad_token_id,
            chat_template: chat_template(dir, &config_path, &config)?,
            // Files without a limit have 1e30 here.
            model_max_length: config
                .get("model_max_length")
                .and_then(Value::as_u64)
                .and_then(|len| usize::try_from(len).ok()),
            special_tokens,
            words: Arc::new(catch_panic(|| Words::of(&inner)).ok().flatten()),
            inner,
            plain: Arc::default(),
            spelled: Arc::default(),
        })
    }

    /// The tokens of `text`, special tokens only where the text spells them.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] when the model has no token for a character and no unknown token.
    pub fn encode(&self, text: &str) -> Result<Encoded> {
        if let Some(words) = &*self.words
            && let Some(encoded) = words.encode(&self.inner, text)
        {
            return Ok(encoded);
        }
        self.encode_by(&self.inner, text, false)
    }

    /// The tokens of `text` with the special tokens that the tokenizer puts around texts, whose offsets are empty.
    ///
    /// # Errors
    ///
    /// As [`Self::encode`].
    pub fn encode_with_special_tokens(&self, text: &str) -> Result<Encoded> {
        self.encode_by(&self.inner, text, true)
    }

    /// The tokens of `text`, with the letters of special tokens where it spells them.
    ///
    /// # Errors
    ///
    /// As [`Self::encode`].
    pub fn encode_as_plain_text(&self, text: &str) -> Result<Encoded> {
        let plain = self.plain.get_or_init(|| {
            let mut plain = self.inner.clone();
            plain.set_encode_special_tokens(true);
            plain
        });
        self.encode_by(plain, text, false)
    }

    fn encode_by(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Encoded> {
        let encoding = unless_panicked(|| tokenizer.encode_char_offsets(text, add_special_tokens))
            .map_err(|source| self.failed(source))?;
        Ok(Encoded { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    /// Where `text` spells a special token, in bytes.
    pub fn special_tokens_in<'a>(
        &'a self,
        text: &'a str,
    ) -> impl Iterator<Item = Range<usize>> + 'a {
        let spelled = self.spelled.get_or_init(|| {
            let tokens = self.special_token_ids.iter().filter_map(|&id| self.inner.id_to_token(id));
            AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(tokens.filter(|token| !token.is_empty()))
                .ok()
        });
        spelled.iter().flat_map(move |spelled| spelled.find_iter(text)).map(|found| found.range())
    }

    /// The text of `ids`, special tokens included.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] when the decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        unless_panicked(|| self.inner.decode(ids, false)).map_err(|source| self.failed(source))
    }

    /// The conversation as text, as `apply_chat_template(messages, tools, tokenize=False, **template_kwargs)`.
    ///
    /// # Errors
    ///
    /// [`Error::NoChatTemplate`], and those of [`ChatTemplate::render`].
    pub fn render_chat(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.render_tracked(conversation, add_generation_prompt).map(|rendered| rendered.text)
    }

    /// [`Self::render_chat`] with what the template says that the assistant wrote.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn render_tracked(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<Rendered> {
        let special_tokens = self.special_tokens.by_role();
        self.template()?.render_tracked(conversation, add_generation_prompt, special_tokens)
    }

    /// [`ChatTemplate::render_all`] with the names of this tokenizer's special tokens.
    ///
    /// # Errors
    ///
    /// [`Error::NoChatTemplate`].
    pub fn render_all(
        &self,
        conversations: &[(&Conversation, bool)],
    ) -> Result<Vec<Result<Rendered>>> {
        Ok(self.template()?.render_all(conversations, self.special_tokens.by_role()))
    }

    fn template(&self) -> Result<&ChatTemplate> {
        let missing = || Error::NoChatTemplate { dir: self.dir.clone() };
        self.chat_template.as_ref().ok_or_else(missing)
    }

    /// Whether the chat template prints the texts of a `content` that is a list of parts, instead of the list as Python writes it.
    pub fn reads_content_parts(&self) -> bool {
        self.chat_template
            .as_ref()
            .is_some_and(|template| template.reads_content_parts(self.special_tokens.by_role()))
    }

    /// The chat template, if the folder has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// The folder it was read from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The id that fills up a sequence.
    pub fn pad_token_id(&self) -> u32 {
        self.pad_token_id
    }

    /// The id that ends a text, if there is one.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.eos_token_id
    }

    /// The id that begins a text, if there is one.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.bos_token_id
    }

    /// The ids of all special tokens, in increasing order.
    pub fn special_token_ids(&self) -> &[u32] {
        &self.special_token_ids
    }

    /// The string of a special token by its role, such as `eos_token`.
    pub fn special_token(&self, role: &str) -> Option<&str> {
        self.special_tokens.get(role)
    }

    /// The id of a token by its exact string.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The longest text in tokens that the model was made for, if the folder says so.
    pub fn model_max_length(&self) -> Option<usize> {
        self.model_max_length
    }

    fn failed(&self, source: tokenizers::Error) -> Error {
        Error::Tokenizer { path: self.dir.join("tokenizer.json"), source }
    }
}

/// The result of a call into the tokenizers crate, which panics where a file contradicts itself.
fn unless_panicked<T>(
    call: impl FnOnce() -> std::result::Result<T, tokenizers::Error>,
) -> std::result::Result<T, tokenizers::Error> {
    catch_panic(call).unwrap_or_else(|panicked| Err(panicked.into()))
}

fn no_tokenizer_json(dir: &Path, path: PathBuf) -> Error {
    let slow =
        ["tokenizer.model", "vocab.json", "vocab.txt", "tekken.json"].map(|name| dir.join(name));
    match slow.into_iter().find(|path| path.exists()) {
        Some(found) => Error::SlowTokenizer { path, found },
        None => Error::MissingFile { path, purpose: "the tokenizer" },
    }
}

/// The object in a JSON file, or `None` when there is no such file.
fn read_json_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|source| Error::Json { path: path.to_owned(), source }),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

/// `add_prefix_space` of the config replaces the one saved in a byte-level pre-tokenizer.
fn set_add_prefix_space(inner: &mut tokenizers::Tokenizer, add_prefix_space: bool) {
    if let Some(PreTokenizerWrapper::ByteLevel(byte_level)) = inner.get_pre_tokenizer()
        && byte_level.add_prefix_space != add_prefix_space
    {
        let byte_level = byte_level.add_prefix_space(add_prefix_space);
        inner.with_pre_tokenizer(Some(byte_level));
    }
}

/// The chat template: `chat_template.jinja` if there is one, else the config's string, or the one
/// named `default` of its list.
fn chat_template(
    dir: &Path,
    config_path: &Path,
    config: &Map<String, Value>,
) -> Result<Option<ChatTemplate>> {
    let path = dir.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(source) => return ChatTemplate::compile(&source, &path).map(Some),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(Error::Read { path, source }),
    }
    let wrong = |found: String, required: &str| Error::Value {
        path: config_path.to_owned(),
        key: "chat_template".to_owned(),
        found,
        required: required.to_owned(),
    };
    let source = match config.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(source)) => source,
        Some(Value::Array(named)) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str())
            .ok_or_else(|| {
                wrong(
                    format!("a list of `{}` templates", named.len()),
                    "one of them named `default`",
                )
            })?,
        Some(other) => {
            return Err(wrong(format!("`{other}`"), "a string or a list of named templates"));
        }
    };
    ChatTemplate::compile(source, config_path).map(Some)
}
