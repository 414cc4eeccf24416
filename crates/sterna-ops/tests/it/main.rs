//! Every backward against autograd in double precision and against finite differences; attention against an explicit softmax.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as a test does")]

mod attention;
mod cross_entropy;
mod delta_rule;
mod grad;
mod half;
mod oracle;
mod streamed;
mod tiled;
