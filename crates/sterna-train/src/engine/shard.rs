//! One micro-batch as a rank sees it.

use sterna_data::{MicroBatch, SeqShard};
use sterna_mesh::Axis;
use sterna_model::{Documents, IGNORE_INDEX, RopeTable, Routing, rotary};

use super::Model;

/// This rank's run of every row of a micro-batch, and what is the same for all blocks.
pub(super) struct Shard {
    pub(super) input_ids: Vec<i64>,
    pub(super) shift_labels: Vec<i64>,
    /// Of each label: which of the micro-batch's samples it is of.
    pub(super) samples: Vec<i64>,
    pub(super) num_rows: i64,
    pub(super) documents: Documents,
    /// As [`sterna_arch::Architecture::ropes`].
    pub(super) ropes: Vec<RopeTable>,
    pub(super) routing: Option<Routing>,
}

impl Shard {
    pub(super) fn new(model: &Model<'_>, batch: &MicroBatch) -> Self {
        let (mesh, options) = (&model.comm.mesh, &model.options);
        let shard = batch.shard(mesh.size(Axis::Sp), mesh.local_rank(Axis::Sp));
        let documents = batch.documents().into_iter();
        let documents = documents.map(|range| range.start as i64..range.end as i64).collect();
        let (positions, seq_len) = (&shard.position_ids, longest_position(batch));
        let ropes = rotary::tables(model.arch, positions, seq_len, options.kind, options.device);
        let samples = samples_of_labels(batch, mesh.local_rank(Axis::Sp), &shard);
        let is_token = tokens_of_shard(batch, mesh.size(Axis::Sp), mesh.local_rank(Axis::Sp));
        Self {
            input_ids: shard.input_ids,
            shift_labels: shard.shift_labels,
            samples,
            num_rows: shard.rows as i64,
            documents: Documents::new(documents),
            ropes,
            routing: Routing::new(model.arch, &is_token, options.device),
        }
    }
}

/// The largest position of the micro-batch's samples plus one. Padding does not count: its positions continue the column
/// index, and how much there is of it depends on the number of ranks.
fn longest_position(batch: &MicroBatch) -> usize {
    let rows = batch.position_ids.chunks_exact(batch.len.max(1)).zip(&batch.packed_sample_seqlens);
    let of_row = |(row, seqlens): (&[i64], &Vec<usize>)| {
        row[..seqlens.iter().sum()].iter().max().map_or(0, |&position| position as usize + 1)
    };
    rows.map(of_row).max().unwrap_or(0)
}

/// Which sample each label of a rank's shard is of, counted over the rows of the micro-batch.
fn samples_of_labels(batch: &MicroBatch, sp_rank: usize, shard: &SeqShard) -> Vec<i64> {
    let mut samples = Vec::new();
    let mut first_of_row = 0;
    let rows = batch.packed_sample_seqlens.iter();
    for (seqlens, labels) in rows.zip(shard.shift_labels.chunks_exact(shard.len.max(1))) {
        let ends: Vec<usize> = seqlens
            .iter()
            .scan(0, |end, len| {
                *end += len;
                Some(*end)
            })
            .collect();
        for (column, _) in labels.iter().enumerate().filter(|(_, label)| **label != IGNORE_INDEX) {
            // A label stands where it is predicted, one before its own place.
            let place = sp_rank * shard.len + column + 1;
            samples.push((first_of_row + ends.partition_point(|&end| end <= place)) as i64);
        }
        first_of_row += seqlens.len();
    }
    samples
}

/// Which rows of a rank's shard are tokens, and not the padding at a row's end.
fn tokens_of_shard(batch: &MicroBatch, sp_size: usize, sp_rank: usize) -> Vec<bool> {
    let shard_len = batch.len / sp_size;
    let places = sp_rank * shard_len..(sp_rank + 1) * shard_len;
    let of_row = |seqlens: &Vec<usize>| {
        let len: usize = seqlens.iter().sum();
        places.clone().map(move |place| place < len)
    };
    batch.packed_sample_seqlens.iter().flat_map(of_row).collect()
}
