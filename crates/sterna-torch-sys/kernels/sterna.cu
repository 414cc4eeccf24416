// All kernels, one module.
#include "cross_entropy.cu"
#include "random.cu"
#include "rms_norm.cu"
#include "rope.cu"
#include "rounding.cu"
#include "swiglu.cu"
