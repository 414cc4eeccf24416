// What libtorch's device allocator is told and tells, through the interface that it has for all devices.
#pragma once

#include "error.h"
#include "rust/cxx.h"

namespace sterna {

struct DeviceMemory;

void set_device_allocator(rust::Str settings);
void init_devices();
DeviceMemory device_memory(int32_t device_index);
void reset_device_peak(int32_t device_index);
void set_device(int32_t device_index);

}  // namespace sterna
