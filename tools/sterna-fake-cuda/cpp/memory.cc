// The two allocators: of device memory, which is the host's, and of pinned memory.

#include "device.h"
#include "streams.h"

#include <ATen/core/CachingHostAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

// Of driver.cc, which is loaded first: whether memory of the host has been registered with the driver.
extern "C" int sterna_fake_is_registered(const void* data);

namespace sterna::fake {
namespace {

// The real allocator hands out multiples of this many bytes.
constexpr size_t GRANULE = 512;
// What each fake device claims to have.
std::atomic<size_t> device_bytes{size_t{16} << 30};

constexpr auto AGGREGATE = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);

size_t round_up(size_t nbytes) {
  return (nbytes + GRANULE - 1) / GRANULE * GRANULE;
}

void* allocate_aligned(size_t nbytes) {
  void* ptr = std::aligned_alloc(GRANULE, round_up(nbytes));
  TORCH_CHECK_WITH(OutOfMemoryError, ptr != nullptr, "the host has no ", nbytes, " bytes left for a fake device");
  return ptr;
}

class DeviceMemory final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t nbytes) override {
    check_initialized();
    const c10::DeviceIndex index = current_device();
    const c10::Device device(c10::kCUDA, index);
    if (nbytes == 0) {
      return {nullptr, nullptr, &deallocate, device};
    }
    const size_t rounded = round_up(nbytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& stats = stats_.at(index);
    const auto in_use = static_cast<size_t>(stats.allocated_bytes[AGGREGATE].current);
    if (in_use + rounded > device_bytes) {
      stats.num_ooms += 1;
      c10::reportOutOfMemoryToProfiler(static_cast<int64_t>(rounded), in_use, in_use, device);
      TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", nbytes, " bytes of the fake device; ", in_use,
                       " of ", device_bytes.load(), " are in use");
    }
    void* ptr = allocate_aligned(nbytes);
    // Whoever reads what nobody wrote reads NaN.
    std::memset(ptr, 0xFF, rounded);
    blocks_.emplace(ptr, Block{nbytes, index});
    for (auto* count : {&stats.allocation, &stats.active, &stats.segment}) {
      (*count)[AGGREGATE].increase(1);
    }
    for (auto* bytes : {&stats.allocated_bytes, &stats.active_bytes, &stats.reserved_bytes}) {
      (*bytes)[AGGREGATE].increase(rounded);
    }
    stats.requested_bytes[AGGREGATE].increase(nbytes);
    stats.num_device_alloc += 1;
    report(ptr, static_cast<int64_t>(rounded), index);
    return {ptr, ptr, &deallocate, device};
  }

  c10::DeleterFnPtr raw_deleter() const override {
    return &deallocate;
  }

  void copy_data(void* dest, const void* src, size_t count) const override {
    default_copy_data(dest, src, count);
  }

  bool initialized() override {
    return is_initialized_;
  }

  void init() {
    is_initialized_ = true;
  }

  // Nothing is cached.
  void emptyCache(c10::MempoolId_t /*mempool_id*/) override {}

  // All work is done when its call returns, so that no memory is freed under it.
  void recordStream(const c10::DataPtr& /*ptr*/, c10::Stream /*stream*/) override {}

  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    check_initialized();
    const std::lock_guard<std::mutex> lock(mutex_);
    return stats_.at(device);
  }

  void resetAccumulatedStats(c10::DeviceIndex device) override {
    for_each_stat(device, [](c10::CachingAllocator::Stat& stat) { stat.reset_accumulated(); });
  }

  void resetPeakStats(c10::DeviceIndex device) override {
    for_each_stat(device, [](c10::CachingAllocator::Stat& stat) { stat.reset_peak(); });
  }

  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto in_use = static_cast<size_t>(stats_.at(device).reserved_bytes[AGGREGATE].current);
    const size_t total = device_bytes;
    return {total - std::min(in_use, total), total};
  }

 private:
  struct Block {
    size_t nbytes;
    c10::DeviceIndex device;
  };

  // In the words of the real one.
  void check_initialized() const {
    TORCH_CHECK(is_initialized_, "Allocator not initialized for device ", static_cast<int>(current_device()), ": did you call init?");
  }

  static void deallocate(void* ptr);

  void free(void* ptr) {
    if (ptr == nullptr) {
      return;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = blocks_.find(ptr);
    TORCH_INTERNAL_ASSERT(found != blocks_.end(), "freed memory that is not the fake device's");
    const Block block = found->second;
    blocks_.erase(found);
    const size_t rounded = round_up(block.nbytes);
    check_unused(ptr, rounded);
    auto& stats = stats_.at(block.device);
    for (auto* count : {&stats.allocation, &stats.active, &stats.segment}) {
      (*count)[AGGREGATE].decrease(1);
    }
    for (auto* bytes : {&stats.allocated_bytes, &stats.active_bytes, &stats.reserved_bytes}) {
      (*bytes)[AGGREGATE].decrease(rounded);
    }
    stats.requested_bytes[AGGREGATE].decrease(block.nbytes);
    stats.num_device_free += 1;
    report(ptr, -static_cast<int64_t>(rounded), block.device);
    std::free(ptr);
  }

  void report(void* ptr, int64_t nbytes, c10::DeviceIndex index) {
    const auto& stats = stats_.at(index);
    c10::reportMemoryUsageToProfiler(ptr, nbytes, static_cast<size_t>(stats.allocated_bytes[AGGREGATE].current),
                                     static_cast<size_t>(stats.reserved_bytes[AGGREGATE].current), c10::Device(c10::kCUDA, index));
  }

  template <typename F>
  void for_each_stat(c10::DeviceIndex device, F apply) {
    check_initialized();
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& stats = stats_.at(device);
    for (auto* array : {&stats.allocation, &stats.active, &stats.segment, &stats.allocated_bytes, &stats.active_bytes, &stats.reserved_bytes,
                        &stats.requested_bytes}) {
      apply((*array)[AGGREGATE]);
    }
  }

  std::atomic<bool> is_initialized_{false};
  std::mutex mutex_;
  std::unordered_map<void*, Block> blocks_;
  std::array<c10::CachingDeviceAllocator::DeviceStats, MAX_DEVICES> stats_;
};

// Never destroyed: tensors that live in statics are freed after it would be.
DeviceMemory& device_memory() {
  static auto* const memory = new DeviceMemory();
  return *memory;
}

void DeviceMemory::deallocate(void* ptr) {
  device_memory().free(ptr);
}

class PinnedMemory final : public at::HostAllocator {
 public:
  c10::DataPtr allocate(size_t nbytes) override {
    if (nbytes == 0) {
      return {nullptr, nullptr, &deallocate, c10::kCPU};
    }
    void* ptr = allocate_aligned(nbytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_.emplace(static_cast<const char*>(ptr), nbytes);
    stats_.active_requests.increase(1);
    stats_.active_bytes.increase(nbytes);
    stats_.allocations.increase(1);
    stats_.allocated_bytes.increase(nbytes);
    stats_.num_host_alloc += 1;
    return {ptr, ptr, &deallocate, c10::kCPU};
  }

  c10::DeleterFnPtr raw_deleter() const override {
    return &deallocate;
  }

  void copy_data(void* dest, const void* src, size_t count) const override {
    default_copy_data(dest, src, count);
  }

  bool contains(const void* data) {
    const auto* ptr = static_cast<const char*>(data);
    const std::lock_guard<std::mutex> lock(mutex_);
    auto after = blocks_.upper_bound(ptr);
    if (after == blocks_.begin()) {
      return false;
    }
    --after;
    return ptr < after->first + after->second;
  }

  bool record_event(void* ptr, void* /*ctx*/, c10::Stream /*stream*/) override {
    return contains(ptr);
  }

  // Nothing is cached.
  void empty_cache() override {}

  at::HostStats get_stats() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return stats_;
  }

  void reset_accumulated_stats() override {
    for_each_stat([](c10::CachingAllocator::Stat& stat) { stat.reset_accumulated(); });
  }

  void reset_peak_stats() override {
    for_each_stat([](c10::CachingAllocator::Stat& stat) { stat.reset_peak(); });
  }

 private:
  static void deallocate(void* ptr);

  void free(void* ptr) {
    if (ptr == nullptr) {
      return;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = blocks_.find(static_cast<const char*>(ptr));
    TORCH_INTERNAL_ASSERT(found != blocks_.end(), "freed memory that is not pinned");
    stats_.active_requests.decrease(1);
    stats_.active_bytes.decrease(found->second);
    stats_.allocations.decrease(1);
    stats_.allocated_bytes.decrease(found->second);
    stats_.num_host_free += 1;
    blocks_.erase(found);
    std::free(ptr);
  }

  template <typename F>
  void for_each_stat(F apply) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto* stat : {&stats_.active_requests, &stats_.active_bytes, &stats_.allocations, &stats_.allocated_bytes}) {
      apply(*stat);
    }
  }

  std::mutex mutex_;
  // Start to length.
  std::map<const char*, size_t> blocks_;
  at::HostStats stats_;
};

PinnedMemory& pinned_memory() {
  static auto* const memory = new PinnedMemory();
  return *memory;
}

void PinnedMemory::deallocate(void* ptr) {
  pinned_memory().free(ptr);
}

struct Registration {
  Registration() {
    c10::SetAllocator(c10::kCUDA, &device_memory());
    at::setHostAllocator(c10::kCUDA, &pinned_memory());
  }
} registration;

} // namespace

void init_device_allocator() {
  device_memory().init();
}

void set_device_bytes(size_t nbytes) {
  device_bytes = nbytes;
}

c10::Allocator* device_allocator() {
  return &device_memory();
}

c10::Allocator* pinned_allocator() {
  return &pinned_memory();
}

bool is_pinned(const void* ptr) {
  return pinned_memory().contains(ptr) || sterna_fake_is_registered(ptr) != 0;
}

} // namespace sterna::fake
