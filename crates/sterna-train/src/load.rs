//! Where initial weights come from: the slices of mapped safetensors that a rank owns, or a seeded draw.

use std::ops::Range;

use sterna_hf::{DType, ModelConfig, ParamSpec, WeightFiles};
use sterna_model::init;
use tch::{Kind, Tensor};

use crate::error::TrainError;

/// A source of initial weights.
#[derive(Debug)]
pub enum WeightSource<'a> {
    /// The safetensors files of a folder.
    Files(&'a WeightFiles),
    /// Random weights, as transformers initialises them.
    Random {
        /// The model's shapes and `initializer_range`.
        config: &'a ModelConfig,
        /// Every tensor is a function of this seed and its name.
        seed: u64,
    },
}

impl WeightSource<'_> {
    /// Elements `range` of the flattened parameter, `[range.len()]`, in the dtype of the source.
    ///
    /// # Memory
    ///
    /// Only the slice: neither source makes the whole tensor.
    ///
    /// # Errors
    ///
    /// [`TrainError::Hf`] if the tensor is missing, of another shape, or its file is damaged.
    pub fn read(&self, spec: &ParamSpec, range: &Range<usize>) -> Result<Tensor, TrainError> {
        match self {
            Self::Files(files) => {
                let view = files.tensor(&spec.name)?;
                let size = view.dtype.size();
                let bytes = &view.bytes[range.start * size..range.end * size];
                Ok(Tensor::from_data_size(bytes, &[range.len() as i64], kind_of(view.dtype)))
            }
            Self::Random { config, seed } => Ok(init::random_slice(spec, config, *seed, range)),
        }
    }
}

/// The libtorch name of a storage dtype.
pub fn kind_of(dtype: DType) -> Kind {
    match dtype {
        DType::F32 => Kind::Float,
        DType::F16 => Kind::Half,
        DType::BF16 => Kind::BFloat16,
    }
}
