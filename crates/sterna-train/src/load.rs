//! Where initial weights come from: the slices of mapped safetensors that a rank owns, or a seeded draw.

use std::ops::Range;

use sterna_arch::{DType, Init, ParamSpec, Role, adapters};
use sterna_hf::WeightFiles;
use sterna_model::init;
use sterna_torch_sys::file::copy_from_bytes;
use tch::{Kind, Tensor};

use crate::error::TrainError;

/// A source of initial weights.
#[derive(Debug, Clone, Copy)]
pub enum WeightSource<'a> {
    /// The safetensors files of a folder.
    Files(&'a WeightFiles),
    /// Random weights, as transformers initialises them.
    Random {
        /// Every tensor is a function of this seed and its name.
        seed: u64,
    },
    /// A base under adapters.
    Adapted {
        /// Where the base comes from.
        base: &'a WeightSource<'a>,
        /// Where the adapters come from.
        adapters: AdapterSource<'a>,
    },
}

/// A source of the initial weights of adapters.
#[derive(Debug, Clone, Copy)]
pub enum AdapterSource<'a> {
    /// PEFT's files, which may have modules of the base that are trained whole.
    Files(&'a WeightFiles),
    /// As PEFT draws them; every tensor is a function of this seed and its name.
    Random {
        /// The seed.
        seed: u64,
    },
    /// Zeros: the model is its base.
    Off,
}

impl<'a> WeightSource<'a> {
    /// The same under `adapters`, if there are some.
    #[must_use]
    pub fn under(&'a self, adapters: Option<AdapterSource<'a>>) -> WeightSource<'a> {
        adapters.map_or(*self, |adapters| WeightSource::Adapted { base: self, adapters })
    }

    /// Fills `target` with elements `range` of the flattened parameter, rounded to its dtype.
    ///
    /// # Shapes
    ///
    /// `target` is `[range.len()]`, contiguous, on any device.
    ///
    /// # Memory
    ///
    /// None but the target's: pages of a file are read where they are mapped, and random numbers drawn where they are to be. What a file
    /// has in four bits exists in bf16, 32 MiB at a time.
    ///
    /// # Errors
    ///
    /// [`TrainError::Hf`] if the tensor is missing, of another shape, or its file is damaged; [`TrainError::Torch`] if the device fails.
    pub fn fill(
        &self,
        target: &mut Tensor,
        spec: &ParamSpec,
        range: &Range<usize>,
    ) -> Result<(), TrainError> {
        match self {
            Self::Files(files) => fill_from(target, files, &spec.name, range),
            Self::Random { seed } => Ok(init::fill(target, spec, *seed, range)?),
            Self::Adapted { base, adapters } => {
                if let AdapterSource::Files(files) = adapters
                    && let Some(name) = adapters::name_in(|name| files.contains(name), &spec.name)
                {
                    return fill_from(target, files, &name, range);
                }
                match (spec.role, spec.init, adapters) {
                    (Role::Trained | Role::Buffer | Role::Frozen, ..) => {
                        base.fill(target, spec, range)
                    }
                    (Role::Adapter, Init::RowNorms { row_len }, _) => {
                        base.fill_row_norms(target, spec, row_len, range)
                    }
                    (Role::Adapter, _, AdapterSource::Random { seed }) => {
                        Ok(init::fill(target, spec, *seed, range)?)
                    }
                    (Role::Adapter, ..) => {
                        let _ = target.zero_();
                        Ok(())
                    }
                }
            }
        }
    }

    /// Fills `target` with the norms of rows `range` of the weight of the module that `spec` is of.
    fn fill_row_norms(
        &self,
        target: &mut Tensor,
        spec: &ParamSpec,
        row_len: usize,
        range: &Range<usize>,
    ) -> Result<(), TrainError> {
        let weight = adapters::weight_of_magnitude(spec, row_len);
        let elements = range.start * row_len..range.end * row_len;
        let options = (Kind::Float, target.device());
        let mut rows = Tensor::empty(elements.len() as i64, options);
        self.fill(&mut rows, &weight, &elements)?;
        let rows = rows.view([range.len() as i64, row_len as i64]);
        target.copy_(&rows.norm_scalaropt_dim(2, [1_i64].as_slice(), false));
        Ok(())
    }
}

fn fill_from(
    target: &mut Tensor,
    files: &WeightFiles,
    name: &str,
    range: &Range<usize>,
) -> Result<(), TrainError> {
    let view = files.tensor(name)?;
    for (start, bytes) in view.pieces(range) {
        let len = (bytes.len() / view.dtype.size()) as i64;
        copy_from_bytes(&mut target.narrow(0, start as i64, len), &bytes, kind_of(view.dtype))?;
    }
    Ok(())
}

/// The libtorch name of a storage dtype.
pub fn kind_of(dtype: DType) -> Kind {
    match dtype {
        DType::F32 => Kind::Float,
        DType::F16 => Kind::Half,
        DType::BF16 => Kind::BFloat16,
    }
}
