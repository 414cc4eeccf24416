// A CUDA driver of one GPU that is the host: its modules are the kernels of sterna-torch-sys, compiled by g++.
//
// Built as libcuda.so.1 (build.rs). Exports those functions of the driver that sterna-torch-sys/src/kernels calls, with the
// names and types of cuda.h; opaque handles are pointers of ours.
#include "emulate.h"

#include "sterna.cu"

#include <cstdio>
#include <map>
#include <mutex>
#include <string_view>
#include <utility>

namespace {

enum Result : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kInvalidImage = 200,
  kNotFound = 500,
  kLaunchFailed = 719,
};

using Entry = void (*)(void** arguments);

struct Kernel {
  std::string_view name;
  Entry entry;
};

template <typename... Arguments, size_t... I>
void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<Arguments*>(arguments[I])...);
}

template <auto kernel, typename... Arguments>
void call_with(void (*)(Arguments...), void** arguments) {
  call(kernel, arguments, std::index_sequence_for<Arguments...>());
}

template <auto kernel>
void enter(void** arguments) {
  call_with<kernel>(kernel, arguments);
}

#define KERNEL(NAME) Kernel{#NAME, &enter<&NAME>}
#define BOTH(NAME) KERNEL(NAME##_bf16), KERNEL(NAME##_f32)

const Kernel kKernels[] = {
    BOTH(cross_entropy_forward),
    BOTH(cross_entropy_forward_backward),
    BOTH(fill_normal),
    BOTH(rms_norm_forward),
    BOTH(rms_norm_backward),
    BOTH(rms_norm_backward_weight),
    BOTH(rope),
    BOTH(swiglu_forward),
    BOTH(swiglu_backward),
    Kernel{"round_stochastically", &enter<&round_stochastically>},
};

constexpr int kMultiprocessors = 2;

std::mutex registered_mutex;
// Start to length of the host's memory that is pinned.
std::map<const char*, size_t> registered;

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) int

EXPORT cuInit(unsigned /*flags*/) { return kSuccess; }

// CUDA 13.0.
EXPORT cuDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}

EXPORT cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return kSuccess;
}

EXPORT cuDeviceGetName(char* name, int len, int /*device*/) {
  std::snprintf(name, static_cast<size_t>(len), "Fake GPU");
  return kSuccess;
}

// As the allocator of memory.cc has.
EXPORT cuDeviceTotalMem_v2(size_t* bytes, int /*device*/) {
  *bytes = size_t{16} << 30;
  return kSuccess;
}

// The number of the device, and zeros.
EXPORT cuDeviceGetUuid_v2(unsigned char* uuid, int device) {
  std::memset(uuid, 0, 16);
  uuid[15] = static_cast<unsigned char>(device);
  return kSuccess;
}

// The device has compute capability 9.0 and two multiprocessors, so that grids are smaller than the rows of most tests.
EXPORT cuDeviceGetAttribute(int* value, int attribute, int /*device*/) {
  constexpr int kMultiprocessorCount = 16;
  constexpr int kMajor = 75;
  constexpr int kMinor = 76;
  switch (attribute) {
    case kMultiprocessorCount:
      *value = kMultiprocessors;
      return kSuccess;
    case kMajor:
      *value = 9;
      return kSuccess;
    case kMinor:
      *value = 0;
      return kSuccess;
    default:
      return kInvalidValue;
  }
}

EXPORT cuDevicePrimaryCtxRetain(void** context, int /*device*/) {
  static int the_context;
  *context = &the_context;
  return kSuccess;
}

EXPORT cuCtxPushCurrent_v2(void* /*context*/) { return kSuccess; }

EXPORT cuCtxPopCurrent_v2(void** context) { return cuDevicePrimaryCtxRetain(context, 0); }

EXPORT cuMemHostRegister_v2(void* data, size_t nbytes, unsigned /*flags*/) {
  const std::lock_guard<std::mutex> lock(registered_mutex);
  return registered.emplace(static_cast<const char*>(data), nbytes).second ? kSuccess : kInvalidValue;
}

EXPORT cuMemHostUnregister(void* data) {
  const std::lock_guard<std::mutex> lock(registered_mutex);
  return registered.erase(static_cast<const char*>(data)) == 1 ? kSuccess : kInvalidValue;
}

EXPORT sterna_fake_is_registered(const void* data) {
  const auto* start = static_cast<const char*>(data);
  const std::lock_guard<std::mutex> lock(registered_mutex);
  const auto after = registered.upper_bound(start);
  return after != registered.begin() && start < std::prev(after)->first + std::prev(after)->second ? 1 : 0;
}

// Takes what either NVRTC makes: the real one an ELF image, nvrtc.cc its own mark.
EXPORT cuModuleLoadData(void** module, const void* image) {
  const auto starts_with = [&](std::string_view mark) {
    return std::strncmp(static_cast<const char*>(image), mark.data(), mark.size()) == 0;
  };
  if (!starts_with("\x7f" "ELF") && !starts_with("emulated")) {
    return kInvalidImage;
  }
  static int the_module;
  *module = &the_module;
  return kSuccess;
}

EXPORT cuModuleGetFunction(void** function, void* /*module*/, const char* name) {
  for (const Kernel& kernel : kKernels) {
    if (kernel.name == name) {
      *function = const_cast<Kernel*>(&kernel);
      return kSuccess;
    }
  }
  return kNotFound;
}

EXPORT cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned /*shared_bytes*/, void* /*stream*/,
                      void** arguments, void** /*extra*/) {
  const Kernel& kernel = *static_cast<const Kernel*>(function);
  const Index3 grid{grid_x, grid_y, grid_z};
  const Index3 threads{block_x, block_y, block_z};
  const std::string failure = emulate::block.run(grid, threads, [&] { kernel.entry(arguments); });
  if (!failure.empty()) {
    std::fprintf(stderr, "%s: %s\n", kernel.name.data(), failure.c_str());
    return kLaunchFailed;
  }
  return kSuccess;
}

EXPORT cuGetErrorName(int error, const char** name) {
  switch (error) {
    case kSuccess:
      *name = "CUDA_SUCCESS";
      return kSuccess;
    case kInvalidImage:
      *name = "CUDA_ERROR_INVALID_IMAGE";
      return kSuccess;
    case kNotFound:
      *name = "CUDA_ERROR_NOT_FOUND";
      return kSuccess;
    case kLaunchFailed:
      *name = "CUDA_ERROR_LAUNCH_FAILED";
      return kSuccess;
    default:
      *name = "CUDA_ERROR_INVALID_VALUE";
      return kSuccess;
  }
}

EXPORT cuGetErrorString(int error, const char** text) { return cuGetErrorName(error, text); }
