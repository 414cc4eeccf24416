// A driver with which nothing can be done but to load it: production code looks for libcuda.so.1 before libtorch's CUDA half.

extern "C" {

int cuInit(unsigned int /*flags*/) {
  return 0;
}

// CUDA 13.0.
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}

} // extern "C"
