//! The floating-point types that weights are stored in.

use std::borrow::Cow;
use std::fmt;

use half::{bf16, f16};

/// A storage type of weights: the three that the supported families ship in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// Brain float: the exponent of single precision with eight bits of significand.
    BF16,
}

impl DType {
    /// All of them, widest first.
    pub const ALL: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }

    /// Elements of type `from`, little-endian, as elements of type `to`: to the nearest, ties to even, as libtorch rounds.
    pub fn convert(bytes: &[u8], from: DType, to: DType) -> Cow<'_, [u8]> {
        if from == to {
            return Cow::Borrowed(bytes);
        }
        let wide: Vec<f32> = match from {
            DType::F32 => words(bytes).map(f32::from_le_bytes).collect(),
            DType::F16 => words(bytes).map(|word| f16::from_le_bytes(word).to_f32()).collect(),
            DType::BF16 => words(bytes).map(|word| bf16::from_le_bytes(word).to_f32()).collect(),
        };
        let wide = wide.into_iter();
        Cow::Owned(match to {
            DType::F32 => wide.flat_map(f32::to_le_bytes).collect(),
            DType::F16 => wide.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
            DType::BF16 => wide.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
        })
    }

    /// The name in a safetensors header: `F32`, `F16`, `BF16`.
    pub const fn safetensors_name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
        }
    }

    /// The name in `config.json`'s `torch_dtype`: `float32`, `float16`, `bfloat16`.
    pub const fn torch_name(self) -> &'static str {
        match self {
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
        }
    }

    /// The dtype that `config.json`'s `torch_dtype` names, with or without the `torch.` prefix.
    pub fn from_torch_name(name: &str) -> Option<DType> {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        DType::ALL.into_iter().find(|dtype| dtype.torch_name() == name)
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks().0.iter().copied()
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.torch_name())
    }
}
