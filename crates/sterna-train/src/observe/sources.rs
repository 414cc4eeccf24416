//! What each source of the data contributes to a step or an evaluation.

use serde_json::{Value, json};
use sterna_data::{MicroBatch, SourceReport};

use crate::engine::BatchLoss;

/// The figures of one source over all ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceMetrics {
    /// Its name in the recipe.
    pub name: String,
    /// Its split, with the slice.
    pub split: String,
    /// Mean of `-ln p` over its labels, whatever is minimised; `None` without any.
    pub loss: Option<f64>,
    /// Its tokens, without padding.
    pub num_tokens: u64,
    /// Its labels.
    pub num_valid_tokens: u64,
}

/// A rank's part of those figures, source after source: the sum of `-ln p`, labels, tokens.
#[derive(Debug)]
pub(crate) struct SourceSums {
    values: Vec<f64>,
}

/// Values of one source.
const WIDTH: usize = 3;

impl SourceSums {
    /// A source that is alone has none: its figures are those of the step.
    pub(crate) fn new(num_sources: usize) -> Self {
        let num_told_apart = if num_sources < 2 { 0 } else { num_sources };
        Self { values: vec![0.0; num_told_apart * WIDTH] }
    }

    /// Adds a micro-batch that `sp_size` ranks share; `sources` are those of its samples, row after row.
    pub(crate) fn add(
        &mut self,
        sources: impl Iterator<Item = usize>,
        batch: &MicroBatch,
        loss: &BatchLoss,
        sp_size: usize,
    ) {
        if self.values.is_empty() {
            return;
        }
        let lens = batch.packed_sample_seqlens.iter().flatten();
        for ((source, len), of_sample) in sources.zip(lens).zip(&loss.of_samples) {
            let values = &mut self.values[source * WIDTH..(source + 1) * WIDTH];
            values[0] += of_sample.sum;
            values[1] += of_sample.num_labels as f64;
            values[2] += *len as f64 / sp_size as f64;
        }
    }

    /// What is to be summed over all ranks.
    pub(crate) fn values(&self) -> &[f64] {
        &self.values
    }
}

/// The figures of `sources` from the sums over all ranks, of those that are told apart.
pub(crate) fn metrics(sources: &[SourceReport], sums: &[f64]) -> Vec<SourceMetrics> {
    let of_source = |(source, values): (&SourceReport, &[f64])| SourceMetrics {
        name: source.name.clone(),
        split: source.split.clone(),
        loss: (values[1] > 0.0).then(|| values[0] / values[1]),
        num_tokens: values[2].round() as u64,
        num_valid_tokens: values[1].round() as u64,
    };
    sources.iter().zip(sums.chunks_exact(WIDTH)).map(of_source).collect()
}

/// As in the metrics file.
pub(crate) fn json(sources: &[SourceMetrics]) -> Value {
    let of_source = |source: &SourceMetrics| {
        json!({
            "name": source.name,
            "split": source.split,
            "loss": source.loss,
            "num_tokens": source.num_tokens,
            "num_valid_tokens": source.num_valid_tokens,
        })
    };
    sources.iter().map(of_source).collect()
}
