#include "device_books.h"

#include <torch/csrc/profiler/orchestration/observer.h>

#include "sterna-torch-sys/src/bridge.rs.h"

namespace sterna {

namespace {

namespace profiler = torch::profiler::impl;

// Whoever asks libtorch whether this thread is profiled takes what stands in this place for a profiler: it has to be one, and to
// say that it is switched off.
class DeviceBooks final : public profiler::ProfilerStateBase {
 public:
  DeviceBooks() : ProfilerStateBase(profiler::ProfilerConfig(profiler::ProfilerState::Disabled)) {}

  profiler::ActiveProfilerType profilerType() override { return profiler::ActiveProfilerType::NONE; }

  void reportMemoryUsage(void* ptr, int64_t size, size_t allocated, size_t reserved, c10::Device device) override {
    if (device.is_cuda()) {
      on_device_block(reinterpret_cast<size_t>(ptr), size, allocated, reserved, device.index());
    }
  }

  void reportOutOfMemory(int64_t size, size_t allocated, size_t reserved, c10::Device device) override {
    if (device.is_cuda()) {
      on_device_refusal(size, allocated, reserved, device.index());
    }
  }
};

}  // namespace

void keep_device_books() {
  constexpr auto kPlace = c10::DebugInfoKind::PROFILER_STATE;
  static const auto books = std::make_shared<DeviceBooks>();
  if (c10::ThreadLocalDebugInfo::get(kPlace) == nullptr) {
    c10::ThreadLocalDebugInfo::_push(kPlace, books);
  }
}

size_t storage_address(const at::Tensor& tensor) {
  const bool has_storage = tensor.defined() && tensor.has_storage();
  return has_storage ? reinterpret_cast<size_t>(tensor.storage().data()) : 0;
}

}  // namespace sterna
