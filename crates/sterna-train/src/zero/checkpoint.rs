//! The states of a rank as a checkpoint has them: read out in slices, copied at once, or set from one of any world size.
//!
//! A state is addressed by parameter and element: the manifest says in which flat buffer a parameter lies and where it begins, and a
//! rank reads the elements it holds from there. So neither the world size nor what is gathered at once has to be that of the run that
//! wrote it.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use sterna_arch::{UnitLayout, units::Overlap};
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
            let UnitLayout { specs, flats, .. } = self.layout(unit_idx);
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
        let places = places_of(checkpoint, &self.parameter_places())?;
        for unit in &mut self.units {
            let UnitLayout { specs, .. } = &unit.layout;
            for flat in &mut unit.flats {
                let first = flat.first_own(&options);
                // Between parameters and after them nothing is read.
                flat.reset_optimizer(&options)?;
                for slice in slices(&(0..options.optimizer_len(&flat.layout))) {
                    let region = first + slice.start as usize..first + slice.end as usize;
                    let overlaps: Vec<_> = flat.layout.overlaps(&region).collect();
                    for Overlap { spec_idx, param_range, region_offset } in overlaps {
                        let place = places[specs[spec_idx].name.as_str()];
                        let name = &checkpoint.manifest.flats[place.flat].name;
                        let from = place.offset + param_range.start;
                        let start = slice.start + region_offset as i64;
                        let own = start..start + param_range.len() as i64;
                        for state in STATES {
                            let values =
                                read(checkpoint, name, state, from..from + param_range.len())?;
                            if state == StateName::Master {
                                let own_param = flat.own_param(&options);
                                own_param.narrow(0, own.start, values.size()[0]).copy_(&values);
                            }
                            flat.state.write(state, &own, &values)?;
                        }
                    }
                }
                flat.clear_grad();
                if options.sharding.optimizer && !options.sharding.params {
                    // The input is this rank's own slice of the output.
                    let own = flat.own_param(&options);
                    world.all_gather_into_tensor(&flat.param, &own)?.wait()?;
                }
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

/// Where each of `parameters` lies in `checkpoint`, which may gather others at once.
fn places_of<'c>(
    checkpoint: &'c Checkpoint,
    parameters: &[ParameterPlace],
) -> Result<HashMap<&'c str, &'c ParameterPlace>, TrainError> {
    let there = checkpoint.manifest.parameters.iter();
    let there: HashMap<_, _> = there.map(|place| (place.name.as_str(), place)).collect();
    let wrong = |reason: String| {
        let path = checkpoint.dir.clone();
        TrainError::Checkpoint(CheckpointError::Manifest { path, reason })
    };
    for ParameterPlace { name, shape, .. } in parameters {
        match there.get(name.as_str()) {
            None => return Err(wrong(format!("it has no `{name}`, which the model has"))),
            Some(place) if place.shape != *shape => {
                let found = &place.shape;
                return Err(wrong(format!(
                    "`{name}` has shape `{found:?}`, and the model's `{shape:?}`"
                )));
            }
            Some(_) => {}
        }
    }
    let known: HashSet<&str> = parameters.iter().map(|place| place.name.as_str()).collect();
    if let Some(name) = there.keys().find(|name| !known.contains(*name)) {
        return Err(wrong(format!("it has `{name}`, which the model has not")));
    }
    Ok(there)
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
