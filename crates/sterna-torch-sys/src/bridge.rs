//! The signatures that both languages agree on. Nothing else in the workspace crosses into C++.

#[cxx::bridge(namespace = "sterna")]
pub(crate) mod ffi {
    /// A borrowed tensor, so that a list of them can cross.
    struct TensorRef<'a> {
        tensor: &'a Tensor,
    }

    /// An owned tensor; null means "none".
    struct OptionalTensor {
        tensor: UniquePtr<Tensor>,
    }

    unsafe extern "C++" {
        include!("autograd.h");

        #[namespace = "at"]
        type Tensor;

        fn vjp(
            outputs: &[TensorRef],
            d_outputs: &[TensorRef],
            inputs: &[TensorRef],
            retain_graph: bool,
        ) -> Result<Vec<OptionalTensor>>;
    }
}
