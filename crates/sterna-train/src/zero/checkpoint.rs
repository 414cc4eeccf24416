//! The states of a rank as a checkpoint has them: read out in slices, copied at once, or set from one of any world size.
//!
//! A state is addressed by flat buffer and element of the whole buffer. Where a parameter begins in a buffer does not depend on the
//! world size, only the padding at the end does, so a rank reads the elements it holds from wherever they were written.

use std::ops::Range;

use sterna_arch::UnitLayout;
use sterna_checkpoint::{
    Checkpoint, Error as CheckpointError, FlatBuffer, ParameterPlace, StateDtype, StateKind,
    StateName, StateTensor,
};
use sterna_comm::Group;
use tch::{Device, Kind, Tensor, no_grad_guard};

use super::{flat::Flat, units::Zero};
use crate::error::TrainError;

/// Elements read or written at once: 4 MB.
const SLICE_LEN: i64 = 1 << 20;

/// The order of the states in a file: the widest first, so that each is aligned.
const STATES: [StateName; 3] = [StateName::Master, StateName::ExpAvg, StateName::ExpAvgSq];

/// The states of a rank at one moment, copied so that training can go on beside the disk.
#[derive(Debug)]
pub struct Snapshot(Vec<Tensor>);

impl Snapshot {
    /// Hands out the bytes of all states, in the order of [`Zero::state_tensors`].
    ///
    /// # Errors
    ///
    /// Those of `write`.
    pub fn write<E>(&self, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut bytes = Vec::new();
        for state in &self.0 {
            let len = state.size()[0];
            for start in (0..len).step_by(SLICE_LEN as usize) {
                let slice = state.narrow(0, start, SLICE_LEN.min(len - start));
                write(bytes_of(&slice, &mut bytes))?;
            }
        }
        Ok(())
    }
}

impl Zero {
    /// What is kept for each element.
    pub fn states(&self) -> Vec<StateKind> {
        let moments = if self.placement().moments_kind == Kind::BFloat16 {
            StateDtype::BF16
        } else {
            StateDtype::F32
        };
        let dtype = |name| if name == StateName::Master { StateDtype::F32 } else { moments };
        STATES.into_iter().map(|name| StateKind { name, dtype: dtype(name) }).collect()
    }

    /// The flat buffers, in order.
    pub fn flat_buffers(&self) -> Vec<FlatBuffer> {
        self.named_flats()
            .map(|(name, flat)| FlatBuffer { name, shard_len: flat.layout.shard_len })
            .collect()
    }

    /// Where each parameter lies, in the model's order.
    pub fn parameter_places(&self) -> Vec<ParameterPlace> {
        let mut places = Vec::new();
        let mut first_flat = 0;
        for unit_idx in 0..self.num_units() {
            let UnitLayout { specs, flats } = self.layout(unit_idx);
            let first_place = places.len();
            for (flat_idx, flat) in flats.iter().enumerate() {
                for slot in &flat.slots {
                    let spec = &specs[slot.spec_idx];
                    let place = ParameterPlace {
                        name: spec.name.clone(),
                        shape: spec.shape.clone(),
                        flat: first_flat + flat_idx,
                        offset: slot.offset,
                    };
                    places.push((slot.spec_idx, place));
                }
            }
            places[first_place..].sort_by_key(|(spec_idx, _)| *spec_idx);
            first_flat += flats.len();
        }
        places.into_iter().map(|(_, place)| place).collect()
    }

    /// The tensors of this rank's file, in the order in which [`Zero::write_states`] writes them.
    pub fn state_tensors(&self) -> Vec<StateTensor> {
        let flats = self.flat_buffers();
        let tensor = |flat: &FlatBuffer, kind: StateKind| StateTensor {
            flat: flat.name.clone(),
            state: kind.name,
            dtype: kind.dtype,
            len: flat.shard_len,
        };
        let of_kind = |kind| flats.iter().map(move |flat| tensor(flat, kind));
        self.states().into_iter().flat_map(of_kind).collect()
    }

    /// Hands out the bytes of the shard that this rank owns of every state, slice by slice.
    ///
    /// # Memory
    ///
    /// A slice.
    ///
    /// # Errors
    ///
    /// Those of `write`; [`TrainError::Disk`] if states on disk cannot be read.
    pub fn write_states(
        &self,
        mut write: impl FnMut(&[u8]) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let mut bytes = Vec::new();
        for name in STATES {
            for (_, flat) in self.named_flats() {
                for slice in slices(&(0..flat.layout.shard_len as i64)) {
                    write(bytes_of(&self.own_state(flat, name, &slice)?, &mut bytes))?;
                }
            }
        }
        Ok(())
    }

    /// Copies the shard that this rank owns of every state.
    ///
    /// # Memory
    ///
    /// [`Zero::snapshot_bytes`].
    ///
    /// # Errors
    ///
    /// [`TrainError::Disk`] if states on disk cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, TrainError> {
        let mut states = Vec::new();
        for name in STATES {
            for (_, flat) in self.named_flats() {
                let all = 0..flat.layout.shard_len as i64;
                let state = self.own_state(flat, name, &all)?;
                states.push(match state.device() {
                    Device::Cpu => state.copy(),
                    _ => state.to_device(Device::Cpu),
                });
            }
        }
        Ok(Snapshot(states))
    }

    /// Bytes of a [`Snapshot`].
    pub fn snapshot_bytes(&self) -> u64 {
        let tensors = self.state_tensors();
        tensors.iter().map(|tensor| (tensor.len * tensor.dtype.size()) as u64).sum()
    }

    /// Sets every state that this rank holds from `checkpoint`, and the weights from the masters. Gradients are zero afterwards.
    ///
    /// # Communication
    ///
    /// Where optimizer states are sharded and weights are not, one all-gather over the world for each flat buffer. Collective.
    ///
    /// # Errors
    ///
    /// [`TrainError::Checkpoint`] if a file does not read as its manifest says; [`TrainError::Disk`]; [`TrainError::Comm`].
    pub fn load_states(
        &mut self,
        world: &Group,
        checkpoint: &Checkpoint,
    ) -> Result<(), TrainError> {
        let _no_grad = no_grad_guard();
        let options = *self.options();
        let names: Vec<String> = self.named_flats().map(|(name, _)| name).collect();
        let manifest = &checkpoint.manifest;
        let is_laid_out_so = manifest.flats.iter().map(|flat| &flat.name).eq(&names)
            && manifest.parameters == self.parameter_places();
        if !is_laid_out_so {
            return Err(TrainError::Checkpoint(CheckpointError::Manifest {
                path: checkpoint.dir.clone(),
                reason: "its parameters lie elsewhere than in this version of sterna".to_owned(),
            }));
        }
        for (name, flat) in names.iter().zip(self.flats_mut()) {
            let first = flat.first_own(&options);
            for slice in slices(&(0..options.optimizer_len(&flat.layout))) {
                for state in STATES {
                    let range = first + slice.start as usize..first + slice.end as usize;
                    let values = read(checkpoint, name, state, range)?;
                    if state == StateName::Master {
                        let len = slice.end - slice.start;
                        flat.own_param(&options).narrow(0, slice.start, len).copy_(&values);
                    }
                    flat.state.write(state, &slice, &values)?;
                }
            }
            flat.clear_grad();
            if options.sharding.optimizer && !options.sharding.params {
                // The input is this rank's own slice of the output.
                let own = flat.own_param(&options);
                world.all_gather_into_tensor(&flat.param, &own)?.wait()?;
            }
        }
        Ok(())
    }

    /// Elements `range` of the shard that this rank owns.
    fn own_state(
        &self,
        flat: &Flat,
        name: StateName,
        range: &Range<i64>,
    ) -> Result<Tensor, TrainError> {
        let options = self.options();
        // Where every rank steps all elements, each writes only its part.
        let first = if options.sharding.optimizer {
            0
        } else {
            flat.layout.shard(options.rank).start as i64
        };
        let local = first + range.start..first + range.end;
        match flat.state.read(name, &local)? {
            Some(state) => Ok(state),
            None => Ok(flat.own_param(options).narrow(0, local.start, local.end - local.start)),
        }
    }
}

/// Elements `range` of a state in `checkpoint`.
fn read(
    checkpoint: &Checkpoint,
    flat: &str,
    name: StateName,
    range: Range<usize>,
) -> Result<Tensor, TrainError> {
    let len = range.len() as i64;
    let bytes = checkpoint.read_state(flat, name, range)?;
    let kind = match checkpoint.manifest.state(name).map(|state| state.dtype) {
        Some(StateDtype::BF16) => Kind::BFloat16,
        Some(StateDtype::F32) | None => Kind::Float,
    };
    Ok(Tensor::from_data_size(&bytes, &[len], kind))
}

fn slices(range: &Range<i64>) -> impl Iterator<Item = Range<i64>> {
    let end = range.end;
    (range.start..end)
        .step_by(SLICE_LEN as usize)
        .map(move |start| start..end.min(start + SLICE_LEN))
}

/// The elements of a flat tensor as they lie in memory, in `bytes`.
fn bytes_of<'a>(tensor: &Tensor, bytes: &'a mut Vec<u8>) -> &'a [u8] {
    let tensor = tensor.to_device(Device::Cpu).contiguous();
    bytes.resize(tensor.numel() * tensor.kind().elt_size_in_bytes(), 0);
    tensor.copy_data_u8(bytes, tensor.numel());
    bytes
}
