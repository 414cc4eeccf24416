//! Keys and values that wait elsewhere while tiles of queries attend to them.

use std::{ops::Range, rc::Rc};

use sterna_model::{KeysValues, KeysValuesStore, ModelError, stage::Stage};
use sterna_torch_sys::{
    copies::{Copies, InFlight, OnHost},
    memory::pinned,
};
use tch::{Device, Kind, Tensor};

use super::Offload;
use crate::{
    error::TrainError,
    storage::disk::{Region, SliceRead},
};

impl KeysValuesStore for Offload {
    fn put(
        &self,
        k: Tensor,
        v: Tensor,
    ) -> Result<Box<dyn KeysValues<Error = ModelError>>, ModelError> {
        let (size, kind) = (k.size(), k.kind());
        let token_bytes = (size[1] * size[2]) as u64 * kind.elt_size_in_bytes() as u64;
        match self {
            Self::Here => Ok(Box::new(InMemory { kv: [k, v].map(|x| x.contiguous()) })),
            Self::Host(copies) => {
                let put = |x: Tensor| copies.to_host(x.contiguous());
                let kv = [put(k).map_err(TrainError::from)?, put(v).map_err(TrainError::from)?];
                // The device has the memory of the group before for this one.
                copies.release_sent().map_err(TrainError::from)?;
                Ok(Box::new(OnHostTensor {
                    kv,
                    ahead: None,
                    token_bytes,
                    copies: Rc::clone(copies),
                }))
            }
            Self::Disk { disk, copies } => {
                let bytes = size[0] as u64 * token_bytes;
                let write = |x: Tensor| -> Result<Region, TrainError> {
                    let (region, x) = (disk.region(bytes)?, x.contiguous());
                    let x: OnHost = match copies {
                        Some(copies) => copies.to_host(x)?,
                        None => x.into(),
                    };
                    region.write_at(0, x)?;
                    Ok(region)
                };
                let kv = [write(k)?, write(v)?];
                if let Some(copies) = copies {
                    copies.release_sent().map_err(TrainError::from)?;
                }
                Ok(Box::new(OnDisk {
                    kv,
                    ahead: None,
                    heads: [size[1], size[2]],
                    token_bytes,
                    kind,
                    copies: copies.clone(),
                }))
            }
        }
    }
}

/// What was fetched ahead, if it is these tokens.
fn taken<T>(ahead: &mut Option<(Range<i64>, T)>, tokens: &Range<i64>) -> Option<T> {
    ahead.take().filter(|(range, _)| range == tokens).map(|(_, fetched)| fetched)
}

/// Where they were computed.
struct InMemory {
    kv: [Tensor; 2],
}

impl KeysValues for InMemory {
    type Error = ModelError;

    fn fetch(&mut self, tokens: &Range<i64>) -> Result<(Tensor, Tensor), ModelError> {
        let [k, v] =
            self.kv.each_ref().map(|x| x.narrow(0, tokens.start, tokens.end - tokens.start));
        Ok((k, v))
    }

    fn prefetch(&mut self, _: &Range<i64>) -> Result<(), ModelError> {
        Ok(())
    }
}

/// In the memory of the host, beside a GPU.
struct OnHostTensor {
    kv: [OnHost; 2],
    /// What is on its way.
    ahead: Option<(Range<i64>, [InFlight; 2])>,
    token_bytes: u64,
    copies: Rc<Copies>,
}

impl OnHostTensor {
    fn start(&self, tokens: &Range<i64>) -> Result<[InFlight; 2], ModelError> {
        let fetch = |x: &OnHost| {
            let rows = x.narrow(tokens.start, tokens.end - tokens.start);
            self.copies.to_device(&rows).map_err(TrainError::from)
        };
        let [k, v] = &self.kv;
        Ok([fetch(k)?, fetch(v)?])
    }
}

impl KeysValues for OnHostTensor {
    type Error = ModelError;

    fn fetch(&mut self, tokens: &Range<i64>) -> Result<(Tensor, Tensor), ModelError> {
        let num_bytes = 2 * (tokens.end - tokens.start) as u64 * self.token_bytes;
        let _stage = Stage::Copy.enter_with(None, num_bytes);
        let in_flight = match taken(&mut self.ahead, tokens) {
            Some(in_flight) => in_flight,
            None => self.start(tokens)?,
        };
        let [k, v] = in_flight.map(|x| x.wait().map_err(TrainError::from));
        Ok((k?, v?))
    }

    fn prefetch(&mut self, tokens: &Range<i64>) -> Result<(), ModelError> {
        self.ahead = Some((tokens.clone(), self.start(tokens)?));
        Ok(())
    }
}

/// In a file.
struct OnDisk {
    kv: [Region; 2],
    /// What is being read.
    ahead: Option<(Range<i64>, [SliceRead; 2])>,
    /// Heads and head size.
    heads: [i64; 2],
    token_bytes: u64,
    kind: Kind,
    /// There if a GPU computes.
    copies: Option<Rc<Copies>>,
}

impl OnDisk {
    fn start(&self, tokens: &Range<i64>) -> Result<[SliceRead; 2], TrainError> {
        let read = |region: &Region| {
            let size = [tokens.end - tokens.start, self.heads[0], self.heads[1]];
            let slice = match self.copies {
                Some(_) => pinned(&size, self.kind)?,
                None => Tensor::empty(size, (self.kind, Device::Cpu)),
            };
            region.read_at(tokens.start as u64 * self.token_bytes, slice)
        };
        let [k, v] = &self.kv;
        Ok([read(k)?, read(v)?])
    }
}

impl KeysValues for OnDisk {
    type Error = ModelError;

    fn fetch(&mut self, tokens: &Range<i64>) -> Result<(Tensor, Tensor), ModelError> {
        let num_bytes = 2 * (tokens.end - tokens.start) as u64 * self.token_bytes;
        let _stage = Stage::Copy.enter_with(None, num_bytes);
        let reads = match taken(&mut self.ahead, tokens) {
            Some(reads) => reads,
            None => self.start(tokens)?,
        };
        let [k, v] = reads.map(SliceRead::wait);
        let to_device = |x: Result<Tensor, TrainError>| {
            let x = x?;
            match &self.copies {
                Some(copies) => {
                    copies.to_device(&x.into()).and_then(InFlight::wait).map_err(TrainError::from)
                }
                None => Ok(x),
            }
        };
        Ok((to_device(k)?, to_device(v)?))
    }

    fn prefetch(&mut self, tokens: &Range<i64>) -> Result<(), ModelError> {
        self.ahead = Some((tokens.clone(), self.start(tokens)?));
        Ok(())
    }
}
