//! The tokens of one source: rows to chats to tokens, kept in the cache.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value, json};
use sterna_hf::{ChatTemplate, Tokenizer};
use sterna_recipe::{ControlTokens, DataOptions, LabelMask, Sampling, Source};

use crate::{
    cache::{self, CacheKey, SourceStats, TokenStore, TokenWriter},
    error::{Error, Result, RowId, reasons},
    format::{Example, Format, RowParser},
    label_mask::{ChatTokenizer, MaskRule, Remarks, Tokens, Untokenized},
    messages::{Chat, LeftOut},
    rng::PythonRandom,
    source::{OpenSource, Rows, Wanted},
};

/// Rows that are tokenized before their tokens are written: enough to keep all cores busy, few enough to hold in memory even if each
/// has a million tokens.
const ROWS_AT_ONCE: usize = 256;
/// Most of them that are tokenized in one go, whose chats are rendered together: with eight, short chats took 7% longer on one core.
const ROWS_IN_ONE_GO: usize = 32;

/// How far a source has been tokenized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Its name in the recipe.
    pub source: &'a str,
    /// Rows that have been tokenized.
    pub done: usize,
    /// Rows that will be.
    pub total: usize,
}

/// The tokens of `source`, from the cache or made now, and what its rows are. The flag is true if the tokens were there.
pub(crate) fn tokenize_source(
    source: &Source,
    data: &DataOptions,
    tokenizer: &Tokenizer,
    on_progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(TokenStore, Format, bool)> {
    let open = OpenSource::find(source)?;
    let format = Format::of(source, data.label_mask, &open.columns()?)?;
    let key = cache_key(&open, &format, data, tokenizer)?;
    let build = |writer: &mut TokenWriter| {
        let (required, optional) = format.columns(source);
        let scratch_dir = Some(data.cache_dir.clone());
        let rows = open.read(&Wanted { required, optional, scratch_dir })?;
        // From here on a change of the files is an error of the row that is read. Between the hash of the files and their reading
        // another process may have kept us waiting for hours.
        if cache_key(&open, &format, data, tokenizer)? != key {
            return Err(Error::SourceChanged { source_name: source.name_or_path.clone() });
        }
        let selected = sampled_rows(source, rows.len());
        if selected.is_empty() {
            return Err(Error::NothingSampled {
                source_name: source.name_or_path.clone(),
                rows: rows.len(),
            });
        }
        let parser = RowTokenizer::new(source, format.clone(), data, tokenizer);
        let on_rows = |done| {
            on_progress(Progress { source: &source.name_or_path, done, total: selected.len() });
        };
        tokenize_rows(&rows, &selected, &parser, writer, on_rows)?;
        match writer.stats() {
            SourceStats { samples: 0, dropped, .. } => Err(Error::NothingLeft {
                source_name: source.name_or_path.clone(),
                dropped: dropped.clone(),
            }),
            _ => Ok(()),
        }
    };
    let (store, from_cache) =
        cache::load_or_build(&data.cache_dir, &key, data.fail_on_missing_cache, build)?;
    warn_about(source, data, &format, store.stats());
    Ok((store, format, from_cache))
}

/// The rows that are used, in order: all, or a random choice as Python makes it.
fn sampled_rows(source: &Source, num_rows: usize) -> Vec<usize> {
    let count = match source.sample {
        Sampling::All => return (0..num_rows).collect(),
        Sampling::Ratio(ratio) => (num_rows as f64 * ratio) as usize,
        Sampling::Count(count) => count,
    };
    if count > num_rows {
        tracing::warn!(
            "source `{}` has `{num_rows}` rows, all are used instead of the `{count}` asked for",
            source.name_or_path
        );
    }
    PythonRandom::new(source.sample_seed).sample(num_rows, count.min(num_rows))
}

/// One row to one sample.
pub(crate) struct RowTokenizer<'a> {
    parser: RowParser<'a>,
    chats: ChatTokenizer<'a>,
    tokenizer: &'a Tokenizer,
}

/// A row as tokens, or why it has none.
pub(crate) enum Tokenized {
    /// One sample, or the two of a pair.
    Samples {
        samples: Vec<Tokens>,
        left_out: LeftOut,
        remarks: Remarks,
    },
    Dropped(String),
}

impl<'a> RowTokenizer<'a> {
    pub(crate) fn new(
        source: &'a Source,
        format: Format,
        data: &DataOptions,
        tokenizer: &'a Tokenizer,
    ) -> Self {
        let (label_mask, train_on) = (data.label_mask, data.train_on);
        Self {
            parser: RowParser { source, format, label_mask, train_on },
            chats: ChatTokenizer::new(tokenizer, MaskRule::new(data)),
            tokenizer,
        }
    }

    /// Tokenizes rows, each of which `row_ids` names in the same order. What follows a chat whose rendering had to be given up has no
    /// result.
    pub(crate) fn tokenize_all(
        &self,
        rows: Vec<Result<Map<String, Value>>>,
        row_ids: &[&dyn Fn() -> RowId],
    ) -> Vec<Result<Tokenized>> {
        let rows = rows.into_iter().zip(row_ids);
        let examples: Vec<Result<Example>> =
            rows.map(|(row, &row_id)| self.parser.parse(row?, row_id)).collect();
        let chats: Vec<_> = examples
            .iter()
            .zip(row_ids)
            .filter_map(|(example, &row_id)| Some((example.as_ref().ok()?, row_id)))
            .flat_map(|(example, row_id)| {
                example.chats().map(move |Chat { conversation, is_trained, .. }| Untokenized {
                    conversation,
                    is_trained,
                    row_id,
                })
            })
            .collect();
        let mut chats = self.chats.tokenize_all(&chats).into_iter();
        let mut results = Vec::with_capacity(examples.len());
        for (example, &row_id) in examples.into_iter().zip(row_ids) {
            let Some(result) = self.tokenized(example, &mut chats, row_id) else { break };
            results.push(result);
        }
        results
    }

    /// The tokens of a row, those of its chats from `chats`; `None` if these have no more results.
    fn tokenized(
        &self,
        example: Result<Example>,
        chats: &mut impl Iterator<Item = Result<(Tokens, Remarks)>>,
        row_id: &dyn Fn() -> RowId,
    ) -> Option<Result<Tokenized>> {
        let mut is_good = None;
        let examples = match example {
            Ok(Example::Dropped(why)) => return Some(Ok(Tokenized::Dropped(why))),
            Ok(Example::Pair(pair)) => Vec::from(*pair),
            Ok(Example::Unpaired(reply, is_good_reply)) => {
                is_good = Some(is_good_reply);
                vec![*reply]
            }
            Ok(example) => vec![example],
            Err(error) => return Some(Err(error)),
        };
        let (mut samples, mut left_out, mut remarks) =
            (Vec::new(), LeftOut::new(), Remarks::default());
        // All of them, so that the chats of the next row come next.
        let tokenized: Option<Vec<_>> =
            examples.into_iter().map(|example| self.sample(example, chats, row_id)).collect();
        for sample in tokenized? {
            let (tokens, of_sample, of_reply) = match sample {
                Ok(sample) => sample,
                Err(error) => return Some(Err(error)),
            };
            if let Some(why) = self.why_dropped(&tokens) {
                return Some(Ok(Tokenized::Dropped(why.to_owned())));
            }
            left_out.extend(of_sample);
            remarks = remarks.and(of_reply);
            samples.push(tokens);
        }
        if let Some(is_good) = is_good {
            // In place of the reply that it has no pair of.
            samples.insert(usize::from(is_good), Tokens::default());
        }
        Some(Ok(Tokenized::Samples { samples, left_out, remarks }))
    }

    /// The tokens of an example that is one sample.
    fn sample(
        &self,
        example: Example,
        chats: &mut impl Iterator<Item = Result<(Tokens, Remarks)>>,
        row_id: &dyn Fn() -> RowId,
    ) -> Option<Result<(Tokens, LeftOut, Remarks)>> {
        let tokens = match example {
            Example::Chat(chat) => {
                let tokenized = chats.next()?;
                return Some(tokenized.map(|(tokens, remarks)| (tokens, chat.left_out, remarks)));
            }
            Example::Text { prompt, completion } => {
                self.chats.tokenize_text(&prompt, &completion, row_id)
            }
            Example::Document(text) => self.chats.tokenize_document(&text, row_id),
            Example::Tokens(tokens) => self.check_ids(&tokens, row_id).map(|()| tokens),
            Example::Pair(_) | Example::Unpaired(..) | Example::Dropped(_) => {
                unreachable!("no sample of its own")
            }
        };
        Some(tokens.map(|tokens| (tokens, LeftOut::new(), Remarks::default())))
    }

    fn check_ids(&self, tokens: &Tokens, row_id: &dyn Fn() -> RowId) -> Result<()> {
        let vocab_size = self.tokenizer.vocab_size();
        match tokens.ids.iter().find(|&&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(id) => Err(Error::BadRow {
                row: Box::new(row_id()),
                found: format!("`input_ids` has `{id}`"),
                required: "ids of the tokenizer",
            }),
        }
    }

    /// Why `tokens` are no sample, if they are none.
    fn why_dropped(&self, tokens: &Tokens) -> Option<&'static str> {
        if tokens.ids.is_empty() {
            return Some("no token");
        }
        // The reference keeps them, and so the order of its batches.
        let keeps_all = self.parser.label_mask == LabelMask::Reference;
        (!keeps_all && !tokens.is_label.contains(&true)).then_some("no label")
    }
}

fn tokenize_rows(
    rows: &Rows,
    selected: &[usize],
    tokenizer: &RowTokenizer<'_>,
    writer: &mut TokenWriter,
    mut on_rows: impl FnMut(usize),
) -> Result<()> {
    let in_one_go = (ROWS_AT_ONCE / (4 * rayon::current_num_threads())).clamp(1, ROWS_IN_ONE_GO);
    let mut done = 0;
    on_rows(done);
    for chunk in selected.chunks(ROWS_AT_ONCE) {
        let tokenized: Vec<Vec<Result<_>>> = chunk
            .par_chunks(in_one_go)
            .map(|chunk| {
                let read = rows.rows(chunk.iter().copied()).collect();
                let ids: Vec<_> = chunk.iter().map(|&row| move || rows.id(row)).collect();
                let ids: Vec<_> = ids.iter().map(|id| id as &dyn Fn() -> RowId).collect();
                tokenizer.tokenize_all(read, &ids)
            })
            .collect();
        // In order, so that the first bad row is the one that is reported.
        for row in tokenized.into_iter().flatten() {
            match row? {
                Tokenized::Samples { samples, left_out, remarks } => {
                    samples.iter().try_for_each(|tokens| writer.push(tokens))?;
                    writer.remark(left_out, remarks);
                }
                Tokenized::Dropped(why) => writer.drop_row(why),
            }
        }
        done += chunk.len();
        on_rows(done);
    }
    Ok(())
}

fn warn_about(source: &Source, data: &DataOptions, format: &Format, stats: &SourceStats) {
    let name = &source.name_or_path;
    if !stats.dropped.is_empty() {
        let rows = stats.samples / format.samples_per_row() + stats.dropped.values().sum::<usize>();
        tracing::warn!("source `{name}`: of `{rows}` rows, dropped: {}", reasons(&stats.dropped));
    }
    if stats.samples_without_label > 0 {
        tracing::warn!(
            "source `{name}`: `{}` of `{}` samples have no label and teach nothing",
            stats.samples_without_label,
            stats.samples
        );
    }
    if !stats.left_out.is_empty() {
        tracing::warn!("source `{name}`: messages left out: {}", reasons(&stats.left_out));
    }
    if stats.unclosed_replies > 0 {
        tracing::warn!(
            "source `{name}`: after `{}` of `{}` replies the chat template prints no end of turn, so the model does not learn to stop there",
            stats.unclosed_replies,
            stats.replies
        );
    }
    if stats.control_token_rows > 0 && data.control_tokens == ControlTokens::Warn {
        tracing::warn!(
            "source `{name}`: `{}` rows spell special tokens in texts that the assistant did not write; they become these tokens, as in transformers (data.control_tokens: plain_text makes them text)",
            stats.control_token_rows
        );
    }
}

/// Everything that the tokens of a source depend on.
fn cache_key(
    open: &OpenSource<'_>,
    format: &Format,
    data: &DataOptions,
    tokenizer: &Tokenizer,
) -> Result<CacheKey> {
    let (source, rule) = (open.source, MaskRule::new(data));
    let hashed = |paths: Vec<&Path>| -> Result<Vec<Value>> {
        let hashes = paths.into_par_iter().map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Ok(json!([name, cache::hash_file(path)?]))
        });
        hashes.collect()
    };
    let tokenizer_files = tokenizer_files(tokenizer.dir())?;
    let role_mapping: Vec<_> =
        source.role_mapping.iter().map(|(role, path)| json!([role, path.to_string()])).collect();
    // A template that prints the date prints another text tomorrow.
    let day = tokenizer.chat_template().and_then(ChatTemplate::day);
    Ok(CacheKey::new(json!({
        "type": source.kind.name(),
        "source": source.name_or_path,
        "split": source.split,
        "files": hashed(open.files().collect())?,
        "rows": format!("{format:?}"),
        "role_mapping": role_mapping,
        "unmapped_roles": source.unmapped_roles.name(),
        "tools_key": source.tools_key,
        "content_key": source.content_key,
        "sample": format!("{:?}", source.sample),
        "sample_seed": source.sample_seed,
        "mask_inputs": rule.mask_inputs,
        "label_mask": format!("{:?}", rule.label_mask),
        "ignore_empty_think": rule.ignore_empty_think,
        "train_on": data.train_on.name(),
        "chat_template_kwargs": rule.chat_template_kwargs,
        "control_tokens": rule.control_tokens.name(),
        "tokenizer": hashed(tokenizer_files.iter().map(AsRef::as_ref).collect())?,
        "day": day,
    })))
}

/// The files of a model folder that say how text becomes tokens.
fn tokenizer_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let error = |source| Error::Read { path: dir.to_path_buf(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_tokenizer = ["tokenizer", "chat_template", "special_tokens_map", "added_tokens"]
            .iter()
            .any(|start| name.starts_with(start));
        if is_tokenizer && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
