#include "streams.h"

#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "sterna-torch-sys/src/bridge.rs.h"

namespace sterna {

namespace {

c10::Device cuda(int32_t device_index) {
  return {c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device_index)};
}

}  // namespace

std::unique_ptr<Stream> current_stream(int32_t device_index) {
  const c10::Device device = cuda(device_index);
  return std::make_unique<Stream>(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
}

std::unique_ptr<Stream> new_stream(int32_t device_index) {
  const c10::Device device = cuda(device_index);
  return std::make_unique<Stream>(c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device));
}

std::unique_ptr<Stream> exchange_stream(const Stream& stream) {
  return std::make_unique<Stream>(c10::impl::VirtualGuardImpl(stream.device_type()).exchangeStream(stream));
}

std::unique_ptr<Event> record_event(const Stream& stream, bool is_timed) {
  // What libtorch calls the backend's default is an event that keeps its time; its own default does not.
  const auto flag = is_timed ? c10::EventFlag::BACKEND_DEFAULT : c10::EventFlag::PYTORCH_DEFAULT;
  auto event = std::make_unique<Event>(stream.device_type(), flag);
  event->record(stream);
  return event;
}

void wait_event(const Stream& stream, const Event& event) { event.block(stream); }

bool has_happened(const Event& event) { return event.query(); }

void wait_on_host(const Event& event) { event.synchronize(); }

double elapsed_ms(const Event& start, const Event& end) { return start.elapsedTime(end); }

void copy_on(const Stream& stream, const at::Tensor& target, const at::Tensor& source) {
  const c10::StreamGuard guard(stream);
  target.copy_(source, /*non_blocking=*/true);
}

}  // namespace sterna
