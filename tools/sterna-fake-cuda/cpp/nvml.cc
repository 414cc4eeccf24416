// The management library of a machine with fake GPUs: what `nvidia-smi` would ask.
//
// Built as libnvidia-ml.so.1 (build.rs). Exports those functions of NVML that the crate nvml-wrapper calls for us, with the names and
// types of nvml.h. Devices are as the driver of driver.cc describes them: the last byte of a UUID is the number.

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

enum Result : int {
  kSuccess = 0,
  kInvalidArgument = 2,
  kNotFound = 6,
  kInsufficientSize = 7,
};

struct Memory {
  unsigned version;
  unsigned long long total;
  unsigned long long reserved;
  unsigned long long free;
  unsigned long long used;
};

struct Process {
  unsigned pid;
  unsigned long long used;
  unsigned gpu_instance;
  unsigned compute_instance;
};

constexpr unsigned long long kGiB = 1ULL << 30;

// As many as STERNA_FAKE_NUM_GPUS says, else one: tests that start processes choose by that variable.
unsigned num_devices() {
  const char* text = std::getenv("STERNA_FAKE_NUM_GPUS");
  return text == nullptr ? 1 : static_cast<unsigned>(std::atoi(text));
}

// Handles are numbers from 1: null is none.
void* handle(unsigned index) { return reinterpret_cast<void*>(static_cast<size_t>(index) + 1); }

void write_uuid(char* text, unsigned len, unsigned index) {
  std::snprintf(text, len, "GPU-00000000-0000-0000-0000-%012x", index);
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int nvmlInit_v2() { return kSuccess; }

EXPORT int nvmlShutdown() { return kSuccess; }

EXPORT const char* nvmlErrorString(int /*result*/) { return "an error of the fake management library"; }

EXPORT int nvmlSystemGetDriverVersion(char* text, unsigned len) {
  std::snprintf(text, len, "580.00.00");
  return kSuccess;
}

EXPORT int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = num_devices();
  return kSuccess;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  if (index >= num_devices()) {
    return kInvalidArgument;
  }
  *device = handle(index);
  return kSuccess;
}

EXPORT int nvmlDeviceGetHandleByUUID(const char* uuid, void** device) {
  for (unsigned index = 0; index < num_devices(); ++index) {
    char text[64];
    write_uuid(text, sizeof(text), index);
    if (std::strcmp(text, uuid) == 0) {
      *device = handle(index);
      return kSuccess;
    }
  }
  return kNotFound;
}

EXPORT int nvmlDeviceGetUUID(void* device, char* text, unsigned len) {
  write_uuid(text, len, static_cast<unsigned>(reinterpret_cast<size_t>(device)) - 1);
  return kSuccess;
}

// A quarter is in use.
EXPORT int nvmlDeviceGetMemoryInfo_v2(void* /*device*/, Memory* memory) {
  memory->total = 16 * kGiB;
  memory->reserved = 0;
  memory->used = 4 * kGiB;
  memory->free = 12 * kGiB;
  return kSuccess;
}

// One process, whose number no process of a test has.
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void* /*device*/, unsigned* count, Process* processes) {
  const bool fits = *count >= 1;
  *count = 1;
  if (!fits) {
    return kInsufficientSize;
  }
  processes[0] = {1, 3 * kGiB, 0, 0};
  return kSuccess;
}
