// The fake devices themselves: how many there are, their streams and events, the hooks through which libtorch asks for CUDA, and what
// Rust calls.

#include "device.h"
#include "streams.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/from_blob.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>

namespace sterna::fake {
namespace {

// As many streams as the real pool has for a device.
constexpr c10::StreamId POOL_LEN = 32;

std::atomic<int> device_count{1};
thread_local c10::DeviceIndex thread_device = 0;
thread_local std::array<c10::StreamId, MAX_DEVICES> thread_streams{};

std::mutex syncs_mutex;
std::map<std::string, uint64_t> syncs;

c10::Device device_at(c10::DeviceIndex index) {
  return {c10::kCUDA, index};
}

struct Event {
  Point point;
  // When it was recorded.
  std::chrono::steady_clock::time_point at;
};

Event& event_of(void* event) {
  TORCH_CHECK(event != nullptr, "the event was never recorded");
  return *static_cast<Event*>(event);
}

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override {
    return c10::kCUDA;
  }

  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::DeviceIndex before = thread_device;
    setDevice(device);
    return device_at(before);
  }

  c10::Device getDevice() const override {
    return device_at(thread_device);
  }

  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() >= 0 && device.index() < num_devices(), "CUDA error: invalid device ordinal (", device, ", of ",
                static_cast<int>(num_devices()), ")");
    thread_device = device.index();
  }

  void uncheckedSetDevice(c10::Device device) const noexcept override {
    thread_device = device.index();
  }

  c10::Stream getStream(c10::Device device) const override {
    return stream(device, thread_streams.at(index_of(device)));
  }

  c10::Stream getDefaultStream(c10::Device device) const override {
    return stream(device, 0);
  }

  c10::Stream getStreamFromGlobalPool(c10::Device device, bool /*isHighPriority*/) const override {
    static std::atomic<c10::StreamId> next{0};
    return stream(device, 1 + next++ % POOL_LEN);
  }

  c10::Stream getNewStream(c10::Device device, int priority) const override {
    return getStreamFromGlobalPool(device, priority < 0);
  }

  c10::Stream exchangeStream(c10::Stream next) const override {
    auto& current = thread_streams.at(next.device_index());
    const c10::Stream before = stream(next.device(), current);
    current = next.id();
    return before;
  }

  // As with a real GPU: null for the default stream, something else for every other.
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return reinterpret_cast<void*>(stream.id());
  }

  void record(void** event, const c10::Stream& stream, c10::DeviceIndex /*index*/, c10::EventFlag /*flag*/) const override {
    if (*event == nullptr) {
      *event = new Event();
    }
    *static_cast<Event*>(*event) = {now(key_of(stream)), std::chrono::steady_clock::now()};
  }

  void block(void* event, const c10::Stream& stream) const override {
    make_wait(key_of(stream), event_of(event).point);
  }

  bool queryEvent(void* event) const override {
    return is_done(event_of(event).point);
  }

  void destroyEvent(void* event, c10::DeviceIndex /*index*/) const noexcept override {
    delete static_cast<Event*>(event);
  }

  double elapsedTime(void* start, void* end, c10::DeviceIndex /*index*/) const override {
    TORCH_CHECK(start != nullptr && end != nullptr, "both events must be recorded before the time between them is read");
    const auto between = static_cast<Event*>(end)->at - static_cast<Event*>(start)->at;
    return std::chrono::duration<double, std::milli>(between).count();
  }

  c10::DeviceIndex deviceCount() const noexcept override {
    return num_devices();
  }

  bool queryStream(const c10::Stream& stream) const override {
    return is_done(now(key_of(stream)));
  }

  void synchronizeStream(const c10::Stream& stream) const override {
    count_host_sync("stream synchronize");
    run_until(now(key_of(stream)));
  }

  void synchronizeEvent(void* event) const override {
    count_host_sync("event synchronize");
    run_until(event_of(event).point);
  }

  void synchronizeDevice(c10::DeviceIndex /*index*/) const override {
    count_host_sync("device synchronize");
    run_all();
  }

 private:
  static c10::DeviceIndex index_of(c10::Device device) {
    return device.has_index() ? device.index() : thread_device;
  }

  static c10::Stream stream(c10::Device device, c10::StreamId id) {
    return c10::Stream(c10::Stream::UNSAFE, device_at(index_of(device)), id);
  }
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

} // namespace

c10::DeviceIndex num_devices() {
  return static_cast<c10::DeviceIndex>(device_count.load());
}

c10::DeviceIndex current_device() {
  return thread_device;
}

at::Tensor on_host(const at::Tensor& x) {
  return at::from_blob(x.mutable_data_ptr(), x.sizes(), x.strides(), x.options().device(at::kCPU));
}

void count_host_sync(const std::string& what) {
  const std::lock_guard<std::mutex> lock(syncs_mutex);
  syncs[what] += 1;
}

} // namespace sterna::fake

namespace at {

using namespace sterna::fake;

// libtorch looks this class up by its name.
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs /*args*/) {}

  void init() const override {
    init_device_allocator();
  }

  bool isBuilt() const override {
    return true;
  }

  bool isAvailable() const override {
    return num_devices() > 0;
  }

  bool hasCUDA() const override {
    return num_devices() > 0;
  }

  bool hasPrimaryContext(DeviceIndex index) const override {
    return index >= 0 && index < num_devices();
  }

  int getNumGPUs() const override {
    return num_devices();
  }

  DeviceIndex deviceCount() const override {
    return num_devices();
  }

  DeviceIndex current_device() const override {
    return sterna::fake::current_device();
  }

  DeviceIndex getCurrentDevice() const override {
    return sterna::fake::current_device();
  }

  void setCurrentDevice(DeviceIndex index) const override {
    c10::impl::getDeviceGuardImpl(c10::kCUDA)->setDevice(c10::Device(c10::kCUDA, index));
  }

  DeviceIndex exchangeDevice(DeviceIndex index) const override {
    return c10::impl::getDeviceGuardImpl(c10::kCUDA)->exchangeDevice(c10::Device(c10::kCUDA, index)).index();
  }

  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override {
    return exchangeDevice(index);
  }

  bool isPinnedPtr(const void* data) const override {
    return is_pinned(data);
  }

  Allocator* getPinnedMemoryAllocator() const override {
    return pinned_allocator();
  }

  Allocator* getCUDADeviceAllocator() const override {
    return device_allocator();
  }

  // Random numbers come from the CPU's kernels, which take the CPU's generators.
  const Generator& getDefaultGenerator(DeviceIndex /*index*/) const override {
    static const Generator generator = at::detail::createCPUGenerator();
    return generator;
  }

  Generator getNewGenerator(DeviceIndex /*index*/) const override {
    return at::detail::createCPUGenerator();
  }

  void deviceSynchronize(DeviceIndex /*index*/) const override {
    count_host_sync("device synchronize");
    run_all();
  }
};

using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks)

} // namespace at

using namespace sterna::fake;

extern "C" {

void sterna_fake_cuda_set_num_devices(int count) {
  device_count = count;
}

void sterna_fake_cuda_set_device_bytes(uint64_t nbytes) {
  set_device_bytes(nbytes);
}

// Bytes that tensors of device `index` hold, and held at most. Asked as production code asks, through c10's interface.
void sterna_fake_cuda_allocated_bytes(int index, uint64_t* current, uint64_t* peak) {
  init_device_allocator();
  const auto stats = c10::getDeviceAllocator(c10::kCUDA)->getDeviceStats(static_cast<c10::DeviceIndex>(index));
  const auto& bytes = stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
  *current = static_cast<uint64_t>(bytes.current);
  *peak = static_cast<uint64_t>(bytes.peak);
}

uint64_t sterna_fake_cuda_host_syncs() {
  const std::lock_guard<std::mutex> lock(syncs_mutex);
  uint64_t sum = 0;
  for (const auto& [what, count] : syncs) {
    sum += count;
  }
  return sum;
}

void sterna_fake_cuda_reset_host_syncs() {
  const std::lock_guard<std::mutex> lock(syncs_mutex);
  syncs.clear();
}

// Calls `visit` with each cause of synchronisations and how many there were of it.
void sterna_fake_cuda_visit_host_syncs(void* context, void (*visit)(void* context, const char* what, size_t len, uint64_t count)) {
  const std::lock_guard<std::mutex> lock(syncs_mutex);
  for (const auto& [what, count] : syncs) {
    visit(context, what.data(), what.size(), count);
  }
}

} // extern "C"
