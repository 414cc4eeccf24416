//! Where initial weights come from: the slices of mapped safetensors that a rank owns, or a seeded draw.

use std::ops::Range;

use sterna_arch::{DType, ParamSpec};
use sterna_hf::WeightFiles;
use sterna_model::init;
use sterna_ops::tile::tiles;
use sterna_torch_sys::file::copy_from_bytes;
use tch::{Kind, Tensor};

use crate::error::TrainError;

/// Elements that are read at once.
const PIECE_LEN: i64 = 1 << 24;

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
}

impl WeightSource<'_> {
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
            Self::Files(files) => {
                let view = files.tensor(&spec.name)?;
                for piece in tiles(range.len() as i64, PIECE_LEN) {
                    let (start, end) = (piece.start as usize, piece.end as usize);
                    let bytes = view.bytes_of(&(range.start + start..range.start + end));
                    let mut target = target.narrow(0, piece.start, piece.end - piece.start);
                    copy_from_bytes(&mut target, &bytes, kind_of(view.dtype))?;
                }
                Ok(())
            }
            Self::Random { seed } => Ok(init::fill(target, spec, *seed, range)?),
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
