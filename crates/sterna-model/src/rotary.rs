//! The rotary tables of a rank's tokens.

use sterna_arch::{Architecture, Rope};
use sterna_ops::accumulate_kind;
use sterna_torch_sys::copies::upload;
use tch::{Device, Kind, Tensor};

use crate::RopeTable;

/// Computes cosines and sines for the positions of a rank's tokens, once per micro-batch: a table for each of
/// [`Architecture::ropes`].
///
/// `seq_len` is the largest position of the *whole* micro-batch plus one, in tokens, on every rank of the sequence-parallel group
/// alike: dynamic scaling stretches the frequencies by it. (Transformers remembers the longest sequence it has seen and keeps
/// stretching shorter ones by it until one fits the original length; here a micro-batch depends on itself only.)
pub fn tables(
    arch: &Architecture,
    position_ids: &[i64],
    seq_len: usize,
    kind: Kind,
    device: Device,
) -> Vec<RopeTable> {
    let positions = upload(Tensor::from_slice(position_ids), device);
    let table = |rope: &Rope| {
        let (inv_freq, attention_factor) = rope.inverse_frequencies(seq_len);
        let kind = if rope.rounds_once { accumulate_kind(kind) } else { kind };
        let table = RopeTable::new(&positions, rope.layout, &inv_freq, attention_factor, kind);
        match rope.query_scale {
            Some(scale) => {
                let factors = Tensor::from_slice(&scale.of(position_ids));
                table.with_query_scale(&upload(factors, device))
            }
            None => table,
        }
    };
    arch.ropes.iter().map(table).collect()
}
