//! Every backward against autograd in double precision and against finite differences; attention against an explicit softmax.

mod attention;
mod cross_entropy;
mod grad;
mod oracle;
mod tiled;
