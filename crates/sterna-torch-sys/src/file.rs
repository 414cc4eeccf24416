//! Tensors to and from a file, without a copy in between.

use std::{
    fs::File,
    io::{Error, ErrorKind, Result},
    os::fd::AsRawFd,
};

use tch::{Device, Kind, Tensor};

/// Writes the elements of `tensor` to `file` from byte `offset` on, in the order in which they lie in memory.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] unless it is on the CPU and [`is_dense`]; the system's error if the disk is full or fails.
pub fn write_tensor_at(file: &File, tensor: &Tensor, offset: u64) -> Result<()> {
    let (start, num_bytes) = extent_of(tensor)?;
    in_full(num_bytes, ErrorKind::WriteZero, |done| {
        // SAFETY: bytes `done..num_bytes` from `start` on lie in the tensor's storage (`extent_of`), which `tensor` keeps
        // alive during the call. The kernel reads them through a raw pointer, so no Rust reference claims that other
        // handles of the same tensor leave them alone.
        unsafe {
            libc::pwrite64(
                file.as_raw_fd(),
                start.add(done).cast(),
                num_bytes - done,
                position(offset, done)?,
            )
        }
        .try_into()
        .map_err(|_| Error::last_os_error())
    })
}

/// Fills `tensor` with what `file` has from byte `offset` on, in the order in which its elements lie in memory.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] unless it is on the CPU and [`is_dense`]; [`ErrorKind::UnexpectedEof`] if the file ends before; the system's
/// error if the disk fails. The tensor then has some of the bytes.
pub fn read_tensor_at(file: &File, tensor: &mut Tensor, offset: u64) -> Result<()> {
    let (start, num_bytes) = extent_of(tensor)?;
    in_full(num_bytes, ErrorKind::UnexpectedEof, |done| {
        // SAFETY: as in `write_tensor_at`, and every bit pattern is a value of every dtype but bool, which libtorch reads
        // as a byte.
        unsafe {
            libc::pread64(
                file.as_raw_fd(),
                start.add(done).cast(),
                num_bytes - done,
                position(offset, done)?,
            )
        }
        .try_into()
        .map_err(|_| Error::last_os_error())
    })
}

/// Fills `target` with `bytes`, elements of dtype `kind` as a mapped file has them, each rounded to the dtype of `target`.
///
/// # Shapes
///
/// `target` is of any shape, as many elements as `bytes` has, on any device.
///
/// # Errors
///
/// [`crate::Error::Operand`] if it has another number of elements.
pub fn copy_from_bytes(
    target: &mut Tensor,
    bytes: &[u8],
    kind: Kind,
) -> std::result::Result<(), crate::Error> {
    let size = target.size();
    if bytes.len() != target.numel() * kind.elt_size_in_bytes() {
        return Err(crate::Error::operand("target", target, "as many elements as the file has"));
    }
    if bytes.as_ptr().align_offset(kind.elt_size_in_bytes()) != 0 {
        // The format asks for no alignment, and libtorch reads whole elements.
        target.copy_(&Tensor::from_data_size(bytes, &size, kind));
        return Ok(());
    }
    // SAFETY: a tensor of this size, contiguous, covers just `bytes`, which outlive it: it is dropped in this function, and copies from
    // pageable memory have ended when `copy_` returns. Nothing writes to it.
    let source = unsafe { Tensor::from_blob(bytes.as_ptr(), &size, &[], kind, Device::Cpu) };
    target.copy_(&source);
    Ok(())
}

/// Whether the elements of `tensor` fill one piece of memory without gaps or overlaps, in any order of its dimensions.
pub fn is_dense(tensor: &Tensor) -> bool {
    let mut dims: Vec<(i64, i64)> = tensor.stride().into_iter().zip(tensor.size()).collect();
    if dims.iter().any(|&(_, size)| size == 0) {
        return true;
    }
    dims.retain(|&(_, size)| size > 1);
    dims.sort_unstable();
    let mut numel = 1;
    dims.into_iter().all(|(stride, size)| {
        let follows = stride == numel;
        numel *= size;
        follows
    })
}

/// The first byte of a dense tensor, and how many there are.
fn extent_of(tensor: &Tensor) -> Result<(*mut u8, usize)> {
    if tensor.device() != Device::Cpu || !is_dense(tensor) {
        let (size, stride, device) = (tensor.size(), tensor.stride(), tensor.device());
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "a tensor of shape {size:?} with strides {stride:?} on {device:?} was to be moved to or from a file, \
                 and it must be on the CPU and without gaps"
            ),
        ));
    }
    Ok((tensor.data_ptr().cast(), tensor.numel() * tensor.kind().elt_size_in_bytes()))
}

/// Calls `some(bytes done)`, which moves some more of `num_bytes`, until all are done.
fn in_full(
    num_bytes: usize,
    at_end: ErrorKind,
    mut some: impl FnMut(usize) -> Result<usize>,
) -> Result<()> {
    let mut done = 0;
    while done < num_bytes {
        match some(done) {
            Ok(0) => return Err(at_end.into()),
            Ok(moved) => done += moved,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn position(offset: u64, done: usize) -> Result<i64> {
    i64::try_from(offset + done as u64).map_err(|_| ErrorKind::InvalidInput.into())
}
