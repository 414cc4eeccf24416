//! Tensor functions and their vector-Jacobian products. An op never communicates.
