//! What a rank is handed, written for people and for comparison: `sterna data`.

use std::io::Write;

use serde::Serialize;

use crate::{
    collate::MicroBatch,
    error::{Error, Result},
    shard::SeqShard,
};

/// One line: keys and shapes of the reference's batches as they reach its trainer.
#[derive(Serialize)]
struct Line<'a> {
    input_ids: Vec<&'a [i64]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Vec<&'a [i64]>>,
    position_ids: Vec<&'a [i64]>,
    packed_sample_seqlens: &'a [Vec<usize>],
    #[serde(skip_serializing_if = "Option::is_none")]
    shift_labels: Option<Vec<&'a [i64]>>,
}

/// Writes one JSON line for each of `micro_batches`, as rank `sp_rank` of a group of `sp_size` sees it.
///
/// Without sequence parallelism a line has the whole rows and `labels`; with it, the rank's columns and `shift_labels`.
/// Arrays have the shape `[b][s/p]`, `packed_sample_seqlens` the whole rows' sample lengths.
///
/// # Errors
///
/// [`Error::Write`] if `out` refuses; errors of `micro_batches` pass through. `out_name` stands in the message.
pub fn write_rank_jsonl(
    out: &mut impl Write,
    out_name: &std::path::Path,
    micro_batches: impl IntoIterator<Item = Result<MicroBatch>>,
    sp_size: usize,
    sp_rank: usize,
) -> Result<()> {
    for micro_batch in micro_batches {
        let micro_batch = micro_batch?;
        let text = if sp_size == 1 {
            whole_line(&micro_batch)
        } else {
            shard_line(&micro_batch, sp_size, sp_rank)
        };
        writeln!(out, "{text}")
            .map_err(|source| Error::Write { path: out_name.to_path_buf(), source })?;
    }
    Ok(())
}

fn whole_line(batch: &MicroBatch) -> String {
    to_json(&Line {
        input_ids: rows(&batch.input_ids, batch.len),
        labels: Some(rows(&batch.labels, batch.len)),
        position_ids: rows(&batch.position_ids, batch.len),
        packed_sample_seqlens: &batch.packed_sample_seqlens,
        shift_labels: None,
    })
}

fn shard_line(batch: &MicroBatch, sp_size: usize, sp_rank: usize) -> String {
    let SeqShard { input_ids, shift_labels, position_ids, len, .. } = batch.shard(sp_size, sp_rank);
    to_json(&Line {
        input_ids: rows(&input_ids, len),
        labels: None,
        position_ids: rows(&position_ids, len),
        packed_sample_seqlens: &batch.packed_sample_seqlens,
        shift_labels: Some(rows(&shift_labels, len)),
    })
}

fn rows(values: &[i64], len: usize) -> Vec<&[i64]> {
    values.chunks_exact(len.max(1)).collect()
}

fn to_json(line: &Line<'_>) -> String {
    serde_json::to_string(line).expect("numbers and lists always serialize")
}
