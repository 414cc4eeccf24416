#include "device.h"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <c10/core/AllocatorConfig.h>

#include "sterna-torch-sys/src/bridge.rs.h"

namespace sterna {

void set_device_allocator(rust::Str settings) {
  c10::CachingAllocator::setAllocatorSettings(std::string(settings));
}

// The allocator's figures exist from here on: libtorch itself does this at its first tensor of a device, and not before.
void init_devices() {
  auto& context = at::globalContext();
  context.lazyInitDevice(c10::DeviceType::CUDA);
  context.setAllowBF16ReductionCuBLAS(/*allow_reduced_precision=*/false);
  context.setAllowFP16ReductionCuBLAS(/*allow_reduced_precision=*/false);
}

DeviceMemory device_memory(int32_t device_index) {
  const auto index = static_cast<c10::DeviceIndex>(device_index);
  const auto stats = at::accelerator::getDeviceStats(index);
  const auto [free, total] = at::accelerator::getMemoryInfo(index);
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const auto& allocated = stats.allocated_bytes[kAll];
  const auto& reserved = stats.reserved_bytes[kAll];
  const auto bytes = [](int64_t count) { return static_cast<uint64_t>(count); };
  return {bytes(allocated.current), bytes(allocated.peak), bytes(reserved.current), bytes(reserved.peak), free, total};
}

void reset_device_peak(int32_t device_index) {
  at::accelerator::resetPeakStats(static_cast<c10::DeviceIndex>(device_index));
}

void set_device(int32_t device_index) { at::accelerator::setDeviceIndex(static_cast<c10::DeviceIndex>(device_index)); }

}  // namespace sterna
