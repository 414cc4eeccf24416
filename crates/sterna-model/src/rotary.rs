//! The rotary table of a rank's tokens.

use sterna_hf::ModelConfig;
use sterna_torch_sys::copies::upload;
use tch::{Device, Kind, Tensor};

use crate::RopeTable;

/// Computes cosines and sines for the positions of a rank's tokens, once per micro-batch.
///
/// `seq_len` is the largest position of the *whole* micro-batch plus one, in tokens, on every rank of the sequence-parallel group
/// alike: dynamic scaling stretches the frequencies by it. (Transformers remembers the longest sequence it has seen and keeps
/// stretching shorter ones by it until one fits the original length; here a micro-batch depends on itself only.)
pub fn table(
    config: &ModelConfig,
    position_ids: &[i64],
    seq_len: usize,
    kind: Kind,
    device: Device,
) -> RopeTable {
    let (inv_freq, attention_factor) = config.rope.inverse_frequencies(config.head_dim, seq_len);
    let position_ids = upload(Tensor::from_slice(position_ids), device);
    RopeTable::new(&position_ids, &inv_freq, attention_factor, kind)
}
