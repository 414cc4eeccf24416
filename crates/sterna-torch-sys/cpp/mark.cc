#include "mark.h"

#include <c10/core/impl/VirtualGuardImpl.h>

namespace sterna {

std::unique_ptr<Mark> record_mark(int32_t device_index) {
  const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device_index));
  const c10::impl::VirtualGuardImpl guard(device.type());
  // What libtorch calls the backend's default is an event that keeps its time; its own default does not.
  auto mark = std::make_unique<Mark>(Mark{c10::Event(device.type(), c10::EventFlag::BACKEND_DEFAULT)});
  mark->event.record(guard.getStream(device));
  return mark;
}

double elapsed_ms(const Mark& start, const Mark& end) { return start.event.elapsedTime(end.event); }

void wait_for_mark(const Mark& mark) { mark.event.synchronize(); }

}  // namespace sterna
