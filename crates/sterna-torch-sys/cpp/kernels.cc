#include "kernels.h"

#include <c10/core/Device.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <link.h>

namespace sterna {

uint64_t current_cuda_stream(int32_t device_index) {
  const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device_index));
  const c10::impl::VirtualGuardImpl guard(device.type());
  return reinterpret_cast<uint64_t>(guard.getStreamNativeHandle(guard.getStream(device)));
}

rust::String libtorch_folder() {
  void* library = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
  TORCH_CHECK(library != nullptr, "libtorch_cpu.so is not loaded: ", dlerror());
  const link_map* map = nullptr;
  const int status = dlinfo(library, RTLD_DI_LINKMAP, &map);
  const std::string path = status == 0 ? map->l_name : "";
  dlclose(library);
  TORCH_CHECK(status == 0, "the place of libtorch_cpu.so is unknown: ", dlerror());
  return path.substr(0, path.rfind('/'));
}

}  // namespace sterna
