//! How a CPU multiplies matrices in bf16.
//!
//! A processor with dot products of bf16 multiplies them as they are. Without them, libtorch's bf16 product is emulated: 2 to 40
//! times slower than its fp32 product, which any processor computes near its limit. There, operands are widened to fp32, and the
//! result is rounded once (docs/benchmarks/).

use std::env;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// Forces one way, for tests and measurements: `bf16` or `fp32`.
pub const VARIABLE: &str = "STERNA_BF16_PRODUCTS";

/// How products of bf16 tensors are computed on this CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bf16Products {
    /// By bf16 dot products of the processor; sums are fp32.
    Native,
    /// In fp32, from operands that are widened as they come; results are rounded once, and fp32 weight gradients not at all.
    Widened,
}

/// A value of [`VARIABLE`] that is neither of its two.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the environment variable `{VARIABLE}` is `{found}`, required is `bf16` or `fp32`")]
pub struct UnknownProducts {
    /// The value.
    pub found: String,
}

impl FromStr for Bf16Products {
    type Err = UnknownProducts;

    fn from_str(value: &str) -> Result<Self, UnknownProducts> {
        match value {
            "bf16" => Ok(Self::Native),
            "fp32" => Ok(Self::Widened),
            _ => Err(UnknownProducts { found: value.to_owned() }),
        }
    }
}

impl fmt::Display for Bf16Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "bf16",
            Self::Widened => "fp32",
        })
    }
}

impl Bf16Products {
    /// The way of this process, decided at the first call.
    ///
    /// # Errors
    ///
    /// [`UnknownProducts`] if [`VARIABLE`] is set to something else.
    pub fn of_this_process() -> Result<Self, UnknownProducts> {
        static CHOICE: OnceLock<Result<Bf16Products, UnknownProducts>> = OnceLock::new();
        CHOICE
            .get_or_init(|| match &*env::var_os(VARIABLE).unwrap_or_default().to_string_lossy() {
                "" if has_dot_products() && !is_onednn_limited() => Ok(Self::Native),
                "" => Ok(Self::Widened),
                forced => forced.parse(),
            })
            .clone()
    }

    /// Whether operands are widened in this process.
    ///
    /// # Panics
    ///
    /// If [`VARIABLE`] is set to something unknown: who starts training asks [`Bf16Products::of_this_process`] first.
    pub fn are_widened() -> bool {
        match Self::of_this_process() {
            Ok(products) => products == Self::Widened,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Whether the processor has dot products of bf16. AMX comes with those of AVX-512 on every processor that has it.
fn has_dot_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Whether oneDNN, which computes libtorch's bf16 products, is told to use older instructions.
fn is_onednn_limited() -> bool {
    // The first of the two decides, as in oneDNN.
    let set =
        ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"].iter().find_map(|name| env::var(name).ok());
    let value = set.unwrap_or_default().to_uppercase();
    ["SSE", "AVX2", "AVX512_CORE_VNNI"].iter().any(|older| value.starts_with(older))
        || matches!(value.as_str(), "AVX" | "AVX512_CORE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_takes_two_values() {
        for products in [Bf16Products::Native, Bf16Products::Widened] {
            assert_eq!(products.to_string().parse(), Ok(products));
        }
        assert_eq!(
            "amx".parse::<Bf16Products>().unwrap_err().to_string(),
            "the environment variable `STERNA_BF16_PRODUCTS` is `amx`, required is `bf16` or `fp32`"
        );
    }
}
