// An NVRTC that compiles nothing: g++ has compiled the kernels already (driver.cc). It says that it is version 0.0, so that
// nothing it makes is taken for a real one's. Built as libnvrtc.so.13 (build.rs).
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

constexpr char kCubin[] = "emulated";

std::atomic<uint64_t> num_compilations{0};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) int

EXPORT nvrtcVersion(int* major, int* minor) {
  *major = 0;
  *minor = 0;
  return 0;
}

EXPORT nvrtcCreateProgram(void** program, const char* /*source*/, const char* /*name*/, int /*num_headers*/,
                          const char* const* /*headers*/, const char* const* /*names*/) {
  static int the_program;
  *program = &the_program;
  return 0;
}

EXPORT nvrtcCompileProgram(void* /*program*/, int /*num_options*/, const char* const* /*options*/) {
  num_compilations += 1;
  return 0;
}

EXPORT nvrtcGetProgramLogSize(void* /*program*/, size_t* size) {
  *size = 1;
  return 0;
}

EXPORT nvrtcGetProgramLog(void* /*program*/, char* log) {
  *log = '\0';
  return 0;
}

EXPORT nvrtcGetCUBINSize(void* /*program*/, size_t* size) {
  *size = sizeof kCubin;
  return 0;
}

EXPORT nvrtcGetCUBIN(void* /*program*/, char* cubin) {
  std::memcpy(cubin, kCubin, sizeof kCubin);
  return 0;
}

EXPORT nvrtcDestroyProgram(void** program) {
  *program = nullptr;
  return 0;
}

extern "C" __attribute__((visibility("default"))) uint64_t sterna_fake_nvrtc_num_compilations() { return num_compilations; }
