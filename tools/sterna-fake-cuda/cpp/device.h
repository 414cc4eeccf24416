// What the sources of the fake device share.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>

#include <string>

namespace sterna::fake {

constexpr size_t MAX_DEVICES = 16;

// Number of fake devices, as CUDAHooksInterface::getNumGPUs reports it.
c10::DeviceIndex num_devices();

// The device of this thread.
c10::DeviceIndex current_device();

// Counts one time that a real GPU would have made the host wait; `what` names the op or call.
void count_host_sync(const std::string& what);

// The memory of a tensor of the device as a tensor of the host. Valid while the memory is.
at::Tensor on_host(const at::Tensor& x);

// Device memory: memory of the host, filled with 0xFF (a NaN in every float format) when it is handed out.
c10::Allocator* device_allocator();

// What libtorch does before its first tensor of a device. Until then the real allocator has neither memory nor figures.
void init_device_allocator();

// What each device has of it from now on; what is in use already stays.
void set_device_bytes(size_t nbytes);

// Pinned memory of the host.
c10::Allocator* pinned_allocator();
bool is_pinned(const void* ptr);

} // namespace sterna::fake
