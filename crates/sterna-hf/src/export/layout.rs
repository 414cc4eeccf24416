//! Which tensor goes to which file, and where in it.

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Value, json};

use crate::weights::{SINGLE_FILE, TensorSpec};
use sterna_arch::DType;

/// One file of an export.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) file_name: String,
    /// The length of the header, the header, and spaces up to a multiple of eight bytes.
    pub(super) header: Vec<u8>,
    /// Its tensors in the order in which they are written.
    pub(super) slots: Vec<Slot>,
}

/// The place of a tensor in a file.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: String,
    /// From the start of the file.
    pub(super) offset: u64,
    pub(super) num_bytes: usize,
    num_elements: usize,
}

impl Shard {
    pub(super) fn file_bytes(&self) -> u64 {
        self.header.len() as u64 + self.data_bytes()
    }

    fn data_bytes(&self) -> u64 {
        self.slots.iter().map(|slot| slot.num_bytes as u64).sum()
    }
}

/// Fills one file after the other, as transformers does.
pub(super) fn fill(
    tensors: &[(TensorSpec, DType)],
    max_shard_bytes: u64,
) -> Vec<Vec<(TensorSpec, DType)>> {
    let mut files: Vec<Vec<(TensorSpec, DType)>> = vec![Vec::new()];
    let mut file_bytes = 0;
    for tensor in tensors {
        let num_bytes = num_bytes(tensor) as u64;
        if file_bytes > 0 && file_bytes + num_bytes > max_shard_bytes {
            files.push(Vec::new());
            file_bytes = 0;
        }
        file_bytes += num_bytes;
        files.last_mut().expect("there is a file from the start").push(tensor.clone());
    }
    files.retain(|file| !file.is_empty());
    files
}

/// One shard for each list of tensors.
pub(super) fn shards(files: &[Vec<(TensorSpec, DType)>]) -> Vec<Shard> {
    let num_shards = files.len();
    files
        .iter()
        .enumerate()
        .map(|(shard_idx, tensors)| shard(shard_idx, num_shards, tensors))
        .collect()
}

/// The index of several files.
pub(super) fn index(shards: &[Shard]) -> Value {
    let weight_map: BTreeMap<&str, &str> = shards
        .iter()
        .flat_map(|shard| {
            shard.slots.iter().map(|slot| (slot.name.as_str(), shard.file_name.as_str()))
        })
        .collect();
    let slots = || shards.iter().flat_map(|shard| &shard.slots);
    json!({
        "metadata": {
            "total_parameters": slots().map(|slot| slot.num_elements).sum::<usize>(),
            "total_size": shards.iter().map(Shard::data_bytes).sum::<u64>(),
        },
        "weight_map": weight_map,
    })
}

fn num_bytes((spec, dtype): &(TensorSpec, DType)) -> usize {
    spec.numel() * dtype.size()
}

fn shard(shard_idx: usize, num_shards: usize, tensors: &[(TensorSpec, DType)]) -> Shard {
    // As safetensors' own writers: wider types first, so that every tensor is aligned to its elements, then by name.
    let mut placed: Vec<usize> = (0..tensors.len()).collect();
    placed.sort_by_key(|idx| {
        let (spec, dtype) = &tensors[*idx];
        (std::cmp::Reverse(dtype.size()), &spec.name)
    });
    let mut begins = vec![0; tensors.len()];
    let mut end = 0;
    let mut infos = Vec::new();
    for idx in placed {
        let (spec, dtype) = &tensors[idx];
        begins[idx] = end;
        end += num_bytes(&tensors[idx]);
        let dtype = match dtype {
            DType::F32 => safetensors::Dtype::F32,
            DType::F16 => safetensors::Dtype::F16,
            DType::BF16 => safetensors::Dtype::BF16,
        };
        let data_offsets = (begins[idx], end);
        infos.push((
            spec.name.clone(),
            TensorInfo { dtype, shape: spec.shape.clone(), data_offsets },
        ));
    }
    let header = header(infos);
    let slots = tensors
        .iter()
        .zip(begins)
        .map(|(tensor, begin)| Slot {
            name: tensor.0.name.clone(),
            offset: (header.len() + begin) as u64,
            num_bytes: num_bytes(tensor),
            num_elements: tensor.0.numel(),
        })
        .collect();
    let file_name = match num_shards {
        1 => SINGLE_FILE.to_owned(),
        _ => format!("model-{:05}-of-{num_shards:05}.safetensors", shard_idx + 1),
    };
    Shard { file_name, header, slots }
}

/// The bytes before the data. `format: pt` is what makes transformers accept a file.
fn header(infos: Vec<(String, TensorInfo)>) -> Vec<u8> {
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos).expect("the tensors tile the data");
    let mut json = serde_json::to_vec(&metadata).expect("names and numbers are JSON");
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    header
}
