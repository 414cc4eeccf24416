//! What there is to see of the data, before it is text or a page: sequences, their documents, and the text of these in runs of
//! equal tokens; and what was counted on the way to them.

use std::collections::BTreeMap;
use std::ops::Range;

use sterna_data::prepare::{SetReport, SourceReport};
use sterna_data::{Dataset, IGNORE_INDEX, Sample};
use sterna_hf::Tokenizer;
use sterna_mesh::{Axis, Mesh};
use sterna_recipe::Recipe;

use super::{Prepared, data_failure};
use crate::report::{Exit, Failure};

/// The start of the training data.
#[derive(Debug)]
pub(super) struct Preview {
    pub(super) sequences: Vec<Sequence>,
    /// Sequences of one epoch.
    pub(super) num_sequences: usize,
    pub(super) is_packed: bool,
    pub(super) counts: Vec<Counts>,
}

/// One pack, or one sample: a row of a micro-batch.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) documents: Vec<Document>,
    /// Tokens that pad it to the row of its micro-batch.
    pub(super) padding: usize,
    /// Whether positions run through the whole pack, so that its documents see each other.
    pub(super) is_fused: bool,
}

/// One sample.
#[derive(Debug)]
pub(super) struct Document {
    /// Name of its source, if there are several.
    pub(super) source: Option<String>,
    pub(super) tokens: usize,
    pub(super) labels: usize,
    pub(super) parts: Vec<Part>,
}

/// A part of a document.
#[derive(Debug)]
pub(super) enum Part {
    Run(Run),
    /// Tokens between the start and the end that are not shown.
    LeftOut {
        tokens: usize,
        labels: usize,
    },
}

/// Neighbouring tokens that are all labels or all not, or one special token.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) text: String,
    pub(super) tokens: usize,
    pub(super) is_label: bool,
    pub(super) is_special: bool,
}

/// What was counted of one source, or of the whole set: names and values.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) title: String,
    pub(super) rows: Vec<(&'static str, String)>,
}

impl Preview {
    /// The first `num_shown` sequences that `world_size` ranks train on, with up to `num_tokens` tokens of each document.
    pub(super) fn new(
        prepared: &Prepared,
        recipe: &Recipe,
        world_size: usize,
        num_shown: usize,
        num_tokens: usize,
    ) -> Result<Self, Failure> {
        let Prepared { datasets, tokenizer, .. } = prepared;
        let train = &datasets.train;
        let sources = &datasets.report.train.sources;
        let mesh = Mesh::new(0, world_size, recipe.sequence_parallel_size).expect("it divides");
        let batches = prepared.micro_batches(recipe, mesh);
        let mut sequences = Vec::new();
        let (mut num_sequences, mut len_padded, mut len) = (0, 0, 0);
        for micro_batch in 0..batches.len() {
            for dp_rank in 0..mesh.size(Axis::Dp) {
                let indices = batches.sample_indices_of(dp_rank, micro_batch);
                let longest = indices.iter().map(|&index| train.sample_len(index)).max();
                let row_len =
                    batches.collator().padded_len(longest.unwrap_or(0)).map_err(data_failure)?;
                for index in indices {
                    num_sequences += 1;
                    len_padded += row_len;
                    len += train.sample_len(index);
                    if sequences.len() < num_shown {
                        let padding = row_len - train.sample_len(index);
                        sequences
                            .push(sequence(train, index, padding, sources, tokenizer, num_tokens)?);
                    }
                }
            }
        }
        let is_packed = recipe.data.pack_samples;
        let mut counts: Vec<Counts> = sources.iter().map(source_counts).collect();
        let mut whole = set_counts(&datasets.report.train);
        if recipe.data.train_eval_split.1 > 0.0 {
            let held_out = datasets.eval.as_ref().map_or(0, Dataset::len);
            whole.rows.push(("held out for evaluation", plural(held_out, unit(is_packed))));
        }
        whole.rows.push(("one epoch", plural(num_sequences, unit(is_packed))));
        whole.rows.push(("padding in an epoch", share(len_padded - len, len_padded)));
        counts.push(whole);
        Ok(Self { sequences, num_sequences, is_packed, counts })
    }

    /// `packs 1 to 3 of 8`.
    pub(super) fn title(&self) -> String {
        let (unit, all) = (unit(self.is_packed), grouped(self.num_sequences));
        match self.sequences.len() {
            1 => format!("{unit} 1 of {all}"),
            shown => format!("{unit}s 1 to {} of {all}", grouped(shown)),
        }
    }

    /// What sequence `index` is: `pack 1 of 8: 5 documents, 241 tokens, ...`.
    pub(super) fn sequence_title(&self, index: usize) -> String {
        let Sequence { documents, padding, is_fused } = &self.sequences[index];
        let tokens = documents.iter().map(|document| document.tokens).sum();
        let labels = documents.iter().map(|document| document.labels).sum();
        let mut parts = vec![tokens_and_labels(tokens, labels)];
        if self.is_packed {
            parts.insert(0, plural(documents.len(), "document"));
        } else {
            let sources = documents.iter().filter_map(|document| document.source.as_ref());
            parts.extend(sources.map(|source| format!("of {source}")));
        }
        if *padding > 0 {
            parts.push(format!("padded by {}", plural(*padding, "token")));
        }
        if *is_fused {
            parts.push("fused: its documents see each other".to_owned());
        }
        let (number, all) = (grouped(index + 1), grouped(self.num_sequences));
        format!("{} {number} of {all}: {}", unit(self.is_packed), parts.join(", "))
    }

    /// What document `index` of a sequence is; nothing where the sequence is one.
    pub(super) fn document_title(&self, index: usize, document: &Document) -> Option<String> {
        let Document { source, tokens, labels, .. } = document;
        let of = source.as_ref().map_or_else(String::new, |source| format!(", of {source}"));
        let title =
            || format!("document {}: {}{of}", index + 1, tokens_and_labels(*tokens, *labels));
        self.is_packed.then(title)
    }
}

fn sequence(
    train: &Dataset,
    index: usize,
    padding: usize,
    sources: &[SourceReport],
    tokenizer: &Tokenizer,
    num_tokens: usize,
) -> Result<Sequence, Failure> {
    let Sample { input_ids, labels, position_ids, seqlens } =
        train.sample(index).map_err(data_failure)?;
    let is_label: Vec<bool> =
        labels.iter().map(|&label| i64::from(label) != IGNORE_INDEX).collect();
    let mut documents = Vec::with_capacity(seqlens.len());
    let mut start = 0;
    // Beside a reply without a pair stands an empty one.
    let is_shown = |(_, len): &(usize, &usize)| **len > 0;
    for (source, len) in train.sources(index).zip(&seqlens).filter(is_shown) {
        let place = start..start + len;
        let (ids, is_label) = (&input_ids[place.clone()], &is_label[place]);
        documents.push(Document {
            source: (sources.len() > 1).then(|| sources[source].name.clone()),
            tokens: ids.len(),
            labels: count(is_label),
            parts: parts(tokenizer, ids, is_label, num_tokens)?,
        });
        start += len;
    }
    let is_fused = seqlens
        .first()
        .and_then(|&len| position_ids.get(len))
        .is_some_and(|&position| position > 0);
    Ok(Sequence { documents, padding, is_fused })
}

/// A document of which up to `num_tokens` tokens are shown: all, or half of these from its start and half from its end.
fn parts(
    tokenizer: &Tokenizer,
    ids: &[u32],
    is_label: &[bool],
    num_tokens: usize,
) -> Result<Vec<Part>, Failure> {
    let shown = |place| -> Result<Vec<Part>, Failure> {
        Ok(runs(tokenizer, ids, is_label, place)?.into_iter().map(Part::Run).collect())
    };
    if ids.len() <= num_tokens {
        return shown(0..ids.len());
    }
    let (start, end) = (num_tokens.div_ceil(2), ids.len() - num_tokens / 2);
    let mut parts = shown(0..start)?;
    parts.push(Part::LeftOut { tokens: end - start, labels: count(&is_label[start..end]) });
    parts.extend(shown(end..ids.len())?);
    Ok(parts)
}

/// The tokens at `place` as runs.
fn runs(
    tokenizer: &Tokenizer,
    ids: &[u32],
    is_label: &[bool],
    place: Range<usize>,
) -> Result<Vec<Run>, Failure> {
    let is_special = |at: usize| tokenizer.special_token_ids().binary_search(&ids[at]).is_ok();
    let mut runs = Vec::new();
    let mut start = place.start;
    for at in place.clone() {
        let end = at + 1;
        let goes_on =
            end < place.end && is_label[end] == is_label[at] && !is_special(end) && !is_special(at);
        if goes_on {
            continue;
        }
        runs.push(Run {
            text: text(tokenizer, ids, start..end)?,
            tokens: end - start,
            is_label: is_label[at],
            is_special: is_special(at),
        });
        start = end;
    }
    Ok(runs)
}

/// The text of the tokens at `place`, which may depend on the token before: some decoders drop a space at the start of a text.
fn text(tokenizer: &Tokenizer, ids: &[u32], place: Range<usize>) -> Result<String, Failure> {
    let decode = |place: Range<usize>| {
        tokenizer
            .decode(&ids[place])
            .map_err(|err| Failure::from_error(Exit::Failed, &err).with_hint(err.hint()))
    };
    if let Some(before) = place.start.checked_sub(1) {
        let (context, whole) = (decode(before..place.start)?, decode(before..place.end)?);
        // Where the token before ends inside a character, the two have no text of their own.
        let ends_in_character = context.ends_with(char::REPLACEMENT_CHARACTER);
        if let (false, Some(text)) = (ends_in_character, whole.strip_prefix(&context)) {
            return Ok(text.to_owned());
        }
    }
    decode(place)
}

fn source_counts(source: &SourceReport) -> Counts {
    let stats = &source.stats;
    let dropped: usize = stats.dropped.values().sum();
    let left_out: usize = stats.left_out.values().sum();
    let mut rows = vec![
        ("read as", source.format.to_string()),
        ("rows read", grouped(stats.samples / source.format.samples_per_row() + dropped)),
        ("rows dropped", with_reasons(dropped, &stats.dropped)),
        ("messages left out", with_reasons(left_out, &stats.left_out)),
        ("samples", grouped(stats.samples)),
        ("samples without a label", grouped(stats.samples_without_label)),
        ("tokens", grouped(stats.tokens as usize)),
        ("labels", share(stats.label_tokens as usize, stats.tokens as usize)),
    ];
    // Of text and of tokens there are none to count.
    if stats.replies > 0 {
        rows.push(("replies", grouped(stats.replies)));
        rows.push(("replies without an end of turn", grouped(stats.unclosed_replies)));
    }
    rows.push(("rows that spell special tokens", grouped(stats.control_token_rows)));
    Counts { title: format!("source {}, split {}", source.name, source.split), rows }
}

fn set_counts(set: &SetReport) -> Counts {
    let mut rows = vec![
        ("max_length", grouped(set.max_length)),
        ("longest sample", plural(set.longest, "token")),
        ("samples dropped as longer", grouped(set.dropped_too_long)),
        ("samples kept", grouped(set.samples)),
        ("tokens kept", grouped(set.tokens as usize)),
    ];
    if let Some(packs) = set.packs {
        rows.push(("packs", format!("{}, {:.1}% full", grouped(packs.packs), 100.0 * packs.fill)));
    }
    Counts { title: "training data".to_owned(), rows }
}

fn count(is_label: &[bool]) -> usize {
    is_label.iter().filter(|&&is_label| is_label).count()
}

fn unit(is_packed: bool) -> &'static str {
    if is_packed { "pack" } else { "sample" }
}

/// `241 tokens, 97 labels (40.2%)`.
fn tokens_and_labels(tokens: usize, labels: usize) -> String {
    let percent = 100.0 * labels as f64 / tokens.max(1) as f64;
    format!("{}, {} ({percent:.1}%)", plural(tokens, "token"), plural(labels, "label"))
}

/// `3 (2 no label, 1 no messages)`.
fn with_reasons(total: usize, reasons: &BTreeMap<String, usize>) -> String {
    if reasons.is_empty() {
        return grouped(total);
    }
    let parts: Vec<String> =
        reasons.iter().map(|(why, count)| format!("{} {why}", grouped(*count))).collect();
    format!("{} ({})", grouped(total), parts.join(", "))
}

/// `97 (40.2%)`.
fn share(part: usize, whole: usize) -> String {
    format!("{} ({:.1}%)", grouped(part), 100.0 * part as f64 / whole.max(1) as f64)
}

/// `1,000 packs`.
pub(super) fn plural(count: usize, unit: &str) -> String {
    format!("{} {unit}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// `1,234,567`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `text` with a picture in place of each control character, `ESC` in one letter for escape, except line breaks and tabs: a text from a stranger is
/// shown, and gives no orders to what shows it.
pub(super) fn with_pictures(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            '\0'..='\x1f' => char::from_u32(0x2400 + c as u32).expect("the block has 32 of them"),
            '\x7f' => '\u{2421}',
            '\u{80}'..='\u{9f}' => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tokenizer(name: &str) -> Tokenizer {
        let fixtures =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../sterna-hf/tests/fixtures/tokenizers");
        Tokenizer::from_dir(&Path::new(fixtures).join(name)).unwrap()
    }

    /// Every `step`-th stretch of `stretch` tokens is labelled.
    fn labels(len: usize, stretch: usize) -> Vec<bool> {
        (0..len).map(|at| at / stretch % 2 == 1).collect()
    }

    #[test]
    fn runs_cover_all_tokens_in_order_whatever_is_labelled() {
        let text = "<|im_start|>user\nIt is the life, is it?<|im_end|><|im_end|>\n  longer";
        let tokenizer = tokenizer("gpt2-defaults");
        let ids = tokenizer.encode(text).unwrap().ids;
        for stretch in 1..=ids.len() + 1 {
            let is_label = labels(ids.len(), stretch);
            let runs = runs(&tokenizer, &ids, &is_label, 0..ids.len()).unwrap();
            let covered: Vec<bool> =
                runs.iter().flat_map(|run| vec![run.is_label; run.tokens]).collect();
            assert_eq!(covered, is_label, "{stretch}");
            let specials = runs.iter().filter(|run| run.is_special);
            assert_eq!(
                specials.map(|run| (&*run.text, run.tokens)).collect::<Vec<_>>(),
                [("<|im_start|>", 1), ("<|im_end|>", 1), ("<|im_end|>", 1)]
            );
            let joined: String = runs.iter().map(|run| &*run.text).collect();
            // This tokenizer puts a space before a text, and after each special token.
            assert_eq!(joined, tokenizer.decode(&ids).unwrap(), "{stretch}");
        }
    }

    #[test]
    fn the_space_before_a_word_stays_where_a_run_begins_with_it() {
        // This decoder drops the first space of what it is given.
        let tokenizer = tokenizer("llama");
        let ids = tokenizer.encode("you and the life").unwrap().ids;
        let whole = tokenizer.decode(&ids).unwrap();
        for stretch in 1..ids.len() {
            let is_label = labels(ids.len(), stretch);
            let runs = runs(&tokenizer, &ids, &is_label, 0..ids.len()).unwrap();
            assert!(runs.len() > 1);
            let joined: String = runs.into_iter().map(|run| run.text).collect();
            assert_eq!(joined, whole, "{stretch}");
        }
    }

    #[test]
    fn a_character_of_several_tokens_is_whole_inside_a_run() {
        let tokenizer = tokenizer("qwen2");
        let ids = tokenizer.encode("Ж漢").unwrap().ids;
        assert!(ids.len() > 2);
        let run = |is_label: &[bool]| {
            let runs = runs(&tokenizer, &ids, is_label, 0..ids.len()).unwrap();
            runs.into_iter().map(|run| run.text).collect::<Vec<_>>()
        };
        assert_eq!(run(&vec![true; ids.len()]), ["Ж漢"]);
        for start in 1..ids.len() {
            let mut is_label = vec![true; ids.len()];
            is_label[..start].fill(false);
            assert!(run(&is_label).iter().all(|text| !text.is_empty()), "{start}");
        }
    }

    #[test]
    fn of_a_long_document_start_and_end_are_shown_and_the_rest_is_counted() {
        let tokenizer = tokenizer("qwen2");
        let ids = tokenizer.encode("0123456789").unwrap().ids;
        assert_eq!(ids.len(), 10);
        let is_label: Vec<bool> = (0..10).map(|at| at >= 5).collect();
        let shown = |num_tokens| -> Vec<String> {
            let parts = parts(&tokenizer, &ids, &is_label, num_tokens).unwrap();
            let texts = parts.into_iter().map(|part| match part {
                Part::Run(run) => run.text,
                Part::LeftOut { tokens, labels } => format!("[{tokens}, {labels}]"),
            });
            texts.collect()
        };
        assert_eq!(shown(10), ["01234", "56789"]);
        assert_eq!(shown(5), ["012", "[5, 3]", "89"]);
        assert_eq!(shown(1), ["0", "[9, 5]"]);
    }

    #[test]
    fn control_characters_of_a_text_are_pictures() {
        assert_eq!(with_pictures("a\t\x1b[31m\r\n\u{9b}\x7fé"), "a\t␛[31m␍\n\u{fffd}␡é");
    }

    #[test]
    fn long_numbers_are_grouped() {
        let texts = [0, 999, 1_000, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "1,234,567"]);
    }
}
