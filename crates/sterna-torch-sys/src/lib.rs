//! The C++ boundary: c10d, vector-Jacobian products, and the libtorch kernels tch lacks. All unsafe code lives here.
