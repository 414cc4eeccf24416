//! The states of a rank as a checkpoint has them: read out in slices, copied at once, or set from one of any world size.
//!
//! A state is addressed by parameter and element: the manifest says in which flat buffer a parameter lies and where it begins, and a
//! rank reads the elements it holds from there. So neither the world size nor what is gathered at once has to be that of the run that
//! wrote it.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use sterna_arch::{ParamSpec, units::Overlap};
use sterna_checkpoint::{
    Checkpoint, Error as CheckpointError, FlatBuffer, ParameterPlace, StateDtype, StateKind,
    StateName, StateTensor,
};
use sterna_comm::Group;
use tch::{Device, Kind, Tensor, no_grad_guard};

use super::{
    flat::{FlatOptions, Weights},
    optimizer::OptimizerState,
    units::{Zero, name_in_checkpoints},
};
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
        self.named_buffers()
            .map(|(name, Weights { layout, .. }, state)| FlatBuffer {
                name,
                shard_len: layout.shard_len,
                is_trained: state.is_some(),
            })
            .collect()
    }

    /// Where each parameter that checkpoints have lies, in the model's order.
    pub fn parameter_places(&self) -> Vec<ParameterPlace> {
        let mut places = Vec::new();
        let mut first_flat = 0;
        for unit_idx in 0..self.num_units() {
            let layout = self.layout(unit_idx);
            let (specs, first_place) = (&layout.specs, places.len());
            let flats =
                || layout.all_flats().filter(|flat| name_in_checkpoints(flat.kind).is_some());
            for (flat_idx, flat) in flats().enumerate() {
                for slot in &flat.slots {
                    let spec = &specs[slot.spec_idx];
                    let place = ParameterPlace {
                        name: spec.name.clone(),
                        shape: spec.shape.clone(),
                        flat: first_flat + flat_idx,
                        offset: slot.offset,
                        is_fp32: spec.is_fp32,
                    };
                    places.push((slot.spec_idx, place));
                }
            }
            places[first_place..].sort_by_key(|(spec_idx, _)| *spec_idx);
            first_flat += flats().count();
        }
        places.into_iter().map(|(_, place)| place).collect()
    }

    /// The tensors of this rank's file, in the order in which [`Zero::write_states`] writes them.
    pub fn state_tensors(&self) -> Vec<StateTensor> {
        let mut tensors = Vec::new();
        for kind in self.states() {
            for (flat, weights, _) in self.buffers_with(kind.name) {
                let len = weights.layout.shard_len;
                tensors.push(StateTensor { flat, state: kind.name, dtype: kind.dtype, len });
            }
        }
        tensors
    }

    /// The flat buffers that have this state: what is not trained has its weights alone.
    fn buffers_with(
        &self,
        name: StateName,
    ) -> impl Iterator<Item = (String, &Weights, Option<&OptimizerState>)> {
        let has_it = move |state: Option<_>| state.is_some() || name == StateName::Master;
        self.named_buffers().filter(move |(_, _, state)| has_it(*state))
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
            for (_, weights, state) in self.buffers_with(name) {
                for slice in slices(&(0..weights.layout.shard_len as i64)) {
                    let values = self.own_state(weights, state, name, &slice)?;
                    write(bytes_of(&values, &mut bytes))?;
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
            for (_, weights, state) in self.buffers_with(name) {
                let all = 0..weights.layout.shard_len as i64;
                let state = self.own_state(weights, state, name, &all)?;
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

    /// Sets every state that this rank holds from `checkpoint`, and the weights from the masters; a frozen base stays as it is. Gradients
    /// are zero afterwards.
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
            let specs = &unit.layout.specs;
            for flat in &mut unit.flats {
                // Between parameters and after them nothing is read.
                flat.reset_optimizer(&options)?;
                for piece in own_pieces(&flat.weights, &options, specs, &places) {
                    for name in STATES {
                        let values = piece.read(checkpoint, name)?;
                        if name == StateName::Master {
                            piece.of(&flat.weights.own(&options)).copy_(&values);
                        }
                        flat.state.write(name, &piece.own, &values)?;
                    }
                }
                flat.clear_grad();
                flat.weights.gather_parts(world, &options)?;
            }
            let is_there = |weights: &&Weights| name_in_checkpoints(weights.layout.kind).is_some();
            for weights in unit.fixed.iter().filter(is_there) {
                for piece in own_pieces(weights, &options, specs, &places) {
                    let values = piece.read(checkpoint, StateName::Master)?;
                    piece.of(&weights.own(&options)).copy_(&values);
                }
                weights.gather_parts(world, &options)?;
            }
        }
        Ok(())
    }

    /// Elements `range` of the shard that this rank owns.
    fn own_state(
        &self,
        weights: &Weights,
        state: Option<&OptimizerState>,
        name: StateName,
        range: &Range<i64>,
    ) -> Result<Tensor, TrainError> {
        let options = self.options();
        // Where every rank steps all elements, each writes only its part.
        let first = if options.sharding.optimizer {
            0
        } else {
            weights.layout.shard(options.rank).start as i64
        };
        let local = first + range.start..first + range.end;
        let state = state.map(|state| state.read(name, &local)).transpose()?.flatten();
        Ok(state.unwrap_or_else(|| {
            let own = weights.own(options).narrow(0, local.start, local.end - local.start);
            own.to_kind(Kind::Float)
        }))
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

/// A part of a parameter that this rank owns, no longer than a slice.
struct Piece<'c> {
    place: &'c ParameterPlace,
    /// Elements of the buffer that the checkpoint has of the parameter.
    there: Range<usize>,
    /// Where they are in what this rank owns.
    own: Range<i64>,
}

impl Piece<'_> {
    /// One of its states in `checkpoint`.
    fn read(&self, checkpoint: &Checkpoint, name: StateName) -> Result<Tensor, TrainError> {
        let flat = &checkpoint.manifest.flats[self.place.flat].name;
        let bytes = checkpoint.read_state(flat, name, self.there.clone())?;
        let kind = match checkpoint.manifest.state(name).map(|state| state.dtype) {
            Some(StateDtype::BF16) => Kind::BFloat16,
            Some(StateDtype::F32) | None => Kind::Float,
        };
        Ok(Tensor::from_data_size(&bytes, &[self.there.len() as i64], kind))
    }

    /// Its part of what this rank owns of the weights.
    fn of(&self, own: &Tensor) -> Tensor {
        own.narrow(0, self.own.start, self.own.end - self.own.start)
    }
}

/// All that this rank owns of a buffer.
fn own_pieces<'c>(
    weights: &Weights,
    options: &FlatOptions,
    specs: &[ParamSpec],
    places: &HashMap<&str, &'c ParameterPlace>,
) -> Vec<Piece<'c>> {
    let first = weights.first_own(options);
    let mut pieces = Vec::new();
    for slice in slices(&(0..options.optimizer_len(&weights.layout))) {
        let region = first + slice.start as usize..first + slice.end as usize;
        for Overlap { spec_idx, param_range, region_offset } in weights.layout.overlaps(&region) {
            let place = places[specs[spec_idx].name.as_str()];
            let start = slice.start + region_offset as i64;
            pieces.push(Piece {
                place,
                there: place.offset + param_range.start..place.offset + param_range.end,
                own: start..start + param_range.len() as i64,
            });
        }
    }
    pieces
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
