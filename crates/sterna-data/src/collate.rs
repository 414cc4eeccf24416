//! Samples to one padded micro-batch.

use std::ops::Range;

use sterna_recipe::{DataOptions, PadTo};

use crate::{
    dataset::Sample,
    error::{Error, Result},
};

/// The label of a token that is not trained on.
pub const IGNORE_INDEX: i64 = -100;

/// What one sequence-parallel group computes on at a time: `b` rows of `s` tokens, padded on the right.
///
/// All tensors are row-major, int64 as the kernels want them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MicroBatch {
    /// Token ids, `[b, s]`.
    pub input_ids: Vec<i64>,
    /// Labels at the position of their own token (not shifted), [`IGNORE_INDEX`] where nothing is trained, `[b, s]`.
    pub labels: Vec<i64>,
    /// Positions, restarting at each document; padding continues with the column index, `[b, s]`.
    pub position_ids: Vec<i64>,
    /// `b`.
    pub rows: usize,
    /// `s`.
    pub len: usize,
    /// Lengths in tokens of the samples in each row, without padding.
    pub packed_sample_seqlens: Vec<Vec<usize>>,
}

impl MicroBatch {
    /// Labels moved to the position that predicts them: `shift_labels[i] = labels[i + 1]`, and [`IGNORE_INDEX`] at the end of a row, `[b, s]`.
    pub fn shift_labels(&self) -> Vec<i64> {
        let mut shifted = Vec::with_capacity(self.labels.len());
        for row in self.labels.chunks_exact(self.len.max(1)) {
            shifted.extend_from_slice(&row[1..]);
            shifted.push(IGNORE_INDEX);
        }
        shifted
    }

    /// How many positions of [`Self::shift_labels`] carry a label.
    pub fn num_valid_tokens(&self) -> usize {
        self.labels
            .chunks_exact(self.len.max(1))
            .map(|row| row[1..].iter().filter(|&&label| label != IGNORE_INDEX).count())
            .sum()
    }

    /// How many labels each sample has, row after row, without one at the start of a row, which nothing predicts.
    pub fn num_labels_of_samples(&self) -> Vec<usize> {
        let mut counts = Vec::new();
        let rows = self.labels.chunks_exact(self.len.max(1)).zip(&self.packed_sample_seqlens);
        for (labels, seqlens) in rows {
            let mut start = 0;
            for len in seqlens {
                let labels = &labels[start.max(1)..(start + len).max(1)];
                counts.push(labels.iter().filter(|&&label| label != IGNORE_INDEX).count());
                start += len;
            }
        }
        counts
    }

    /// Lengthens every row to a multiple of `multiple` tokens, by the padding rule of the row: `pad_token_id`, no label,
    /// positions that continue with the column index.
    pub fn pad_to_multiple(&mut self, multiple: usize, pad_token_id: u32) {
        let len = self.len.next_multiple_of(multiple);
        if len == self.len {
            return;
        }
        let columns: Vec<i64> = (self.len..len).map(|column| column as i64).collect();
        self.input_ids =
            widen(&self.input_ids, self.len, &vec![i64::from(pad_token_id); columns.len()]);
        self.labels = widen(&self.labels, self.len, &vec![IGNORE_INDEX; columns.len()]);
        self.position_ids = widen(&self.position_ids, self.len, &columns);
        self.len = len;
    }

    /// The documents, as ranges of the flattened `[b * s]` tokens: one ends where the next position is not one more, and at the end of a row.
    ///
    /// Padding is a document of its own where its positions jump, and otherwise (one sample in the row) the tail of that
    /// sample's document; either way no labelled token sees it, because attention is causal.
    pub fn documents(&self) -> Vec<Range<usize>> {
        let mut documents = Vec::new();
        let mut start = 0;
        for end in 1..=self.position_ids.len() {
            let continues =
                end % self.len != 0 && self.position_ids[end] == self.position_ids[end - 1] + 1;
            if !continues {
                documents.push(start..end);
                start = end;
            }
        }
        documents
    }
}

/// Appends the same `tail` to every row of `len` values.
fn widen(values: &[i64], len: usize, tail: &[i64]) -> Vec<i64> {
    values.chunks_exact(len.max(1)).flat_map(|row| row.iter().chain(tail).copied()).collect()
}

/// The recipe's padding keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collator {
    /// Fills the end of a row.
    pub pad_token_id: u32,
    /// What the length of a row is.
    pub pad_to: PadTo,
    /// The multiple for [`PadTo::DivLength`], in tokens.
    pub div_length: usize,
    /// The length for [`PadTo::MaxLength`], in tokens.
    pub max_length: usize,
    /// The length is also a multiple of this many tokens: the sequence-parallel size.
    pub sp_size: usize,
}

impl Collator {
    /// Takes the padding keys out of `data`.
    pub fn new(data: &DataOptions, max_length: usize, pad_token_id: u32, sp_size: usize) -> Self {
        Self { pad_token_id, pad_to: data.pad_to, div_length: data.div_length, max_length, sp_size }
    }

    /// Tokens of each row of a micro-batch whose longest sample has `longest` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::LongerThanMaxLength`] if `pad_to` is `max_length` and a sample is longer.
    pub fn padded_len(&self, longest: usize) -> Result<usize> {
        self.recipe_len(longest).map(|len| len.next_multiple_of(self.sp_size))
    }

    /// [`Self::padded_len`] before the ranks that share a sequence have their say.
    fn recipe_len(&self, longest: usize) -> Result<usize> {
        match self.pad_to {
            PadTo::DivLength => Ok(longest.next_multiple_of(self.div_length)),
            PadTo::MaxLength if longest > self.max_length => {
                Err(Error::LongerThanMaxLength { len: longest, max_length: self.max_length })
            }
            PadTo::MaxLength => Ok(self.max_length),
        }
    }

    /// Each prompt of `batch` with the reply to the prompt before it, the first with the last one's: a prompt is what stands before the
    /// first label of a sample. Samples without a label stay as they are, how many samples a row has, and that it is no longer than the recipe
    /// allows: a reply is cut where it would be.
    ///
    /// # Errors
    ///
    /// As [`Self::padded_len`].
    ///
    /// # Source
    ///
    /// TRL `kto_trainer.py`, `add_kl_completion_ids`.
    pub fn mismatched(&self, batch: &MicroBatch) -> Result<MicroBatch> {
        let rows: Vec<Vec<Range<usize>>> = batch
            .packed_sample_seqlens
            .iter()
            .enumerate()
            .map(|(row, seqlens)| {
                let mut end = row * batch.len;
                let place = |len: &usize| {
                    end += len;
                    end - len..end
                };
                seqlens.iter().map(place).collect()
            })
            .collect();
        let first_label = |place: &Range<usize>| {
            let labels = &batch.labels[place.clone()];
            let first = labels.iter().position(|&label| label != IGNORE_INDEX);
            first.map(|first| place.start + first)
        };
        let replies: Vec<Range<usize>> = rows
            .iter()
            .flatten()
            .filter_map(|place| Some(first_label(place)?..place.end))
            .collect();
        // Cycled, so that the one before the first is the last.
        let mut before = replies.iter().cycle().skip(replies.len().saturating_sub(1)).peekable();
        let samples = rows.iter().map(|row| {
            let mut sample = Sample {
                input_ids: Vec::new(),
                labels: Vec::new(),
                position_ids: Vec::new(),
                seqlens: Vec::new(),
            };
            let prompt =
                |place: &Range<usize>| place.start..first_label(place).unwrap_or(place.end);
            let mut later: usize = row.iter().map(|place| prompt(place).len()).sum();
            for place in row {
                let prompt = prompt(place);
                let is_labelled = prompt.end < place.end;
                let reply = before.next_if(|_| is_labelled).cloned().unwrap_or(0..0);
                later -= prompt.len();
                // A reply may be longer than the one before: it is cut to what a row may have beside its prompts.
                let room =
                    self.max_length.max(batch.len) - sample.input_ids.len() - prompt.len() - later;
                let reply = reply.start..reply.end.min(reply.start + room);
                let len = prompt.len() + reply.len();
                for place in [prompt, reply] {
                    sample
                        .input_ids
                        .extend(batch.input_ids[place.clone()].iter().map(|&id| id as u32));
                    sample.labels.extend(batch.labels[place].iter().map(|&label| label as i32));
                }
                sample.position_ids.extend(0..len as u32);
                sample.seqlens.push(len);
            }
            sample
        });
        self.collate(&samples.collect::<Vec<_>>())
    }

    /// Pads `samples` on the right to one length and puts them under each other.
    ///
    /// # Errors
    ///
    /// As [`Self::padded_len`].
    ///
    /// # Source
    ///
    /// ArcticTraining `sft_factory.py` (`pad`, `DataCollatorForCausalLM`): the position buffer starts as `0, 1, 2, ...`, so padding continues the column index.
    pub fn collate(&self, samples: &[Sample]) -> Result<MicroBatch> {
        let longest = samples.iter().map(|sample| sample.input_ids.len()).max().unwrap_or(0);
        let len = self.recipe_len(longest)?;
        let rows = samples.len();
        let mut batch = MicroBatch {
            input_ids: Vec::with_capacity(rows * len),
            labels: Vec::with_capacity(rows * len),
            position_ids: Vec::with_capacity(rows * len),
            rows,
            len,
            packed_sample_seqlens: Vec::with_capacity(rows),
        };
        for (row, sample) in samples.iter().enumerate() {
            let end = (row + 1) * len;
            batch.input_ids.extend(sample.input_ids.iter().map(|&id| i64::from(id)));
            batch.input_ids.resize(end, i64::from(self.pad_token_id));
            batch.labels.extend(sample.labels.iter().map(|&label| i64::from(label)));
            batch.labels.resize(end, IGNORE_INDEX);
            batch
                .position_ids
                .extend(sample.position_ids.iter().map(|&position| i64::from(position)));
            batch.position_ids.extend((sample.position_ids.len()..len).map(|column| column as i64));
            batch.packed_sample_seqlens.push(sample.seqlens.clone());
        }
        batch.pad_to_multiple(self.sp_size, self.pad_token_id);
        Ok(batch)
    }
}
