//! Conversions between tch's tensor handle and the bridge's.
//!
//! Both are pointers to the same C++ type: tch's `C_tensor` is declared in torch-sys's `torch_api.h` as
//! `typedef torch::Tensor *tensor`, and `torch::Tensor` is `at::Tensor`.

use tch::Tensor;

use crate::{bridge::ffi, error::Error};

/// Borrows a tensor for a call into C++.
pub(crate) fn borrow(tensor: &Tensor) -> &ffi::Tensor {
    // SAFETY: tch keeps `as_ptr` pointing at a live at::Tensor for as long as `tensor` lives (it is freed in its Drop),
    // and the returned reference borrows `tensor`. ffi::Tensor is opaque: Rust never reads or writes through it.
    unsafe { &*tensor.as_ptr().cast::<ffi::Tensor>() }
}

/// Borrows a list of tensors for a call into C++.
pub(crate) fn borrow_all<'a>(tensors: &[&'a Tensor]) -> Vec<ffi::TensorRef<'a>> {
    tensors.iter().map(|tensor| ffi::TensorRef { tensor: borrow(tensor) }).collect()
}

/// Takes over a tensor that C++ hands out.
pub(crate) fn take(tensor: cxx::UniquePtr<ffi::Tensor>) -> Option<Tensor> {
    let pointer = tensor.into_raw();
    if pointer.is_null() {
        return None;
    }
    // SAFETY: the pointer comes from std::make_unique<at::Tensor>, so tch's Drop, which calls `delete` on an at::Tensor*,
    // is its matching end; `into_raw` has given up the other owner.
    Some(unsafe { Tensor::from_ptr(pointer.cast()) })
}

/// Takes over a tensor that a kernel must have made.
pub(crate) fn own(tensor: cxx::UniquePtr<ffi::Tensor>) -> Result<Tensor, Error> {
    let message = || "a kernel has returned no tensor".to_owned();
    take(tensor).ok_or_else(|| Error::Torch { message: message() })
}
