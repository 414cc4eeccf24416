//! The tokens of one source: rows to chats to tokens, kept in the cache.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Value, json};
use sterna_hf::{ChatTemplate, Tokenizer};
use sterna_recipe::{DataOptions, Sampling, Source};

use crate::{
    cache::{self, CacheKey, SourceStats, TokenStore, TokenWriter},
    error::{Error, Result},
    label_mask::{MaskRule, tokenize_chat},
    messages::extract_chat,
    rng::PythonRandom,
    source::{OpenSource, Rows, Wanted},
};

/// Rows that are tokenized before their tokens are written: enough to keep all cores busy, few enough to hold in memory even if each
/// has a million tokens.
const ROWS_AT_ONCE: usize = 256;

/// The tokens of `source`, from the cache or made now. The flag is true if they were there.
pub(crate) fn tokenize_source(
    source: &Source,
    data: &DataOptions,
    tokenizer: &Tokenizer,
) -> Result<(TokenStore, bool)> {
    let rule = MaskRule::new(data);
    let open = OpenSource::find(source)?;
    let key = cache_key(&open, rule, tokenizer)?;
    let build = |writer: &mut TokenWriter| {
        let wanted = Wanted { scratch_dir: Some(data.cache_dir.clone()), ..Wanted::mapped(source) };
        let rows = open.read(&wanted)?;
        // From here on a change of the files is an error of the row that is read. Between the hash of the files and their reading
        // another process may have kept us waiting for hours.
        if cache_key(&open, rule, tokenizer)? != key {
            return Err(Error::SourceChanged { source_name: source.name_or_path.clone() });
        }
        let selected = sampled_rows(source, rows.len());
        tokenize_rows(&rows, &selected, source, rule, tokenizer, writer)
    };
    let (store, from_cache) =
        cache::load_or_build(&data.cache_dir, &key, data.fail_on_missing_cache, build)?;
    warn_about(source, &store.stats());
    Ok((store, from_cache))
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

fn tokenize_rows(
    rows: &Rows,
    selected: &[usize],
    source: &Source,
    rule: MaskRule,
    tokenizer: &Tokenizer,
    writer: &mut TokenWriter,
) -> Result<()> {
    for chunk in selected.chunks(ROWS_AT_ONCE) {
        let tokenized: Vec<Result<_>> = chunk
            .par_iter()
            .map(|&row| {
                let row_id = || rows.id(row);
                let chat = extract_chat(source, rule.label_mask, rows.row(row)?, row_id)?;
                let tokens = tokenize_chat(tokenizer, &chat.messages, rule, row_id)?;
                Ok((tokens, chat.num_left_out))
            })
            .collect();
        // In order, so that the first bad row is the one that is reported.
        for sample in tokenized {
            let (tokens, num_left_out) = sample?;
            writer.push(&tokens)?;
            writer.count_left_out(num_left_out);
        }
    }
    Ok(())
}

fn warn_about(source: &Source, stats: &SourceStats) {
    if stats.samples_without_label > 0 {
        tracing::warn!(
            "source `{}`: `{}` of `{}` samples have no label and teach nothing",
            source.name_or_path,
            stats.samples_without_label,
            stats.samples
        );
    }
    if stats.messages_left_out > 0 {
        tracing::warn!(
            "source `{}`: role_mapping leaves `{}` messages out",
            source.name_or_path,
            stats.messages_left_out
        );
    }
}

/// Everything that the tokens of a source depend on.
fn cache_key(open: &OpenSource<'_>, rule: MaskRule, tokenizer: &Tokenizer) -> Result<CacheKey> {
    let source = open.source;
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
    let day = tokenizer.chat_template().is_some_and(ChatTemplate::uses_clock).then(|| {
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        now.as_secs() / 86_400
    });
    Ok(CacheKey::new(json!({
        "source": source.name_or_path,
        "split": source.split,
        "files": hashed(open.files().collect())?,
        "role_mapping": role_mapping,
        "content_key": source.content_key,
        "sample": format!("{:?}", source.sample),
        "sample_seed": source.sample_seed,
        "mask_inputs": rule.mask_inputs,
        "label_mask": format!("{:?}", rule.label_mask),
        "ignore_empty_think": rule.ignore_empty_think,
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
