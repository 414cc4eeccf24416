//! What can go wrong inside libtorch, told apart by what a caller would do about it.

use tch::Tensor;

/// A failure inside libtorch. The messages are libtorch's own, without its C++ stack.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A collective, or a request to the rendezvous store, was not answered within its time limit.
    #[error("timed out: {message}")]
    Timeout {
        /// libtorch's text.
        message: String,
    },
    /// A connection to a peer or to the rendezvous store was refused, reset or closed.
    #[error("connection failed: {message}")]
    Connection {
        /// libtorch's text.
        message: String,
    },
    /// The host or the device has no memory left for an allocation.
    #[error("out of memory: {message}")]
    OutOfMemory {
        /// libtorch's text.
        message: String,
    },
    /// A tensor is not what a kernel reads, which checks nothing itself.
    #[error("`{operand}` is {found}, must be {required}")]
    Operand {
        /// The argument.
        operand: &'static str,
        /// Its shape, dtype and device.
        found: String,
        /// What it has to be.
        required: &'static str,
    },
    /// A GPU was asked for, and something that it needs is missing.
    #[error(transparent)]
    Cuda(Box<crate::cuda::Error>),
    /// A CUDA kernel of ours cannot be compiled or launched.
    #[error(transparent)]
    Kernels(Box<crate::kernels::Error>),
    /// Anything else libtorch refuses: mostly shapes, dtypes or devices that do not fit together.
    #[error("libtorch: {message}")]
    Torch {
        /// libtorch's text.
        message: String,
    },
}

impl Error {
    pub(crate) fn operand(operand: &'static str, tensor: &Tensor, required: &'static str) -> Self {
        let gaps = if tensor.is_contiguous() { "" } else { ", not contiguous" };
        let (size, kind, device) = (tensor.size(), tensor.kind(), tensor.device());
        let found = format!("{size:?} {kind:?}{gaps} on {device:?}");
        Self::Operand { operand, found, required }
    }

    /// What the reader can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Timeout { .. } => {
                "a rank that is slow, stuck or gone keeps the others waiting: look for the first rank that logged an error"
            }
            Error::Connection { .. } => {
                "a peer process has most likely ended: look for the first rank that logged an error"
            }
            Error::OutOfMemory { .. } => {
                "use more sequence-parallel ranks, offload more, or shorten the sequence"
            }
            Error::Cuda(error) => return Some(error.hint()),
            Error::Kernels(error) => return error.hint(),
            Error::Operand { .. } | Error::Torch { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

impl From<crate::cuda::Error> for Error {
    fn from(error: crate::cuda::Error) -> Self {
        Self::Cuda(Box::new(error))
    }
}

impl From<crate::kernels::Error> for Error {
    fn from(error: crate::kernels::Error) -> Self {
        Self::Kernels(Box::new(error))
    }
}

impl From<cxx::Exception> for Error {
    /// Reads the kind that `cpp/error.h` put in front of the text.
    fn from(exception: cxx::Exception) -> Self {
        let text = exception.what();
        let mut characters = text.chars();
        let kind = characters.next();
        let message = characters.as_str().trim_end().to_owned();
        match kind {
            Some('t') => Error::Timeout { message },
            Some('c') => Error::Connection { message },
            Some('m') => Error::OutOfMemory { message },
            _ => Error::Torch { message },
        }
    }
}
