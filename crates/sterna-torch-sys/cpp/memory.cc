#include "memory.h"

#include <c10/core/CPUAllocator.h>

#include "sterna-torch-sys/src/bridge.rs.h"

namespace sterna {

namespace {

static_assert(c10::gAlignment <= 64, "src/memory/block.rs aligns to 64 bytes");

void release(void* data) {
  if (data != nullptr) {
    release_block(static_cast<uint8_t*>(data));
  }
}

class RustAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t nbytes) override {
    // A tensor without elements still has a deleter, so that its storage can be told from a foreign one when it grows.
    void* data = nbytes == 0 ? nullptr : allocate_block(nbytes);
    if (nbytes != 0 && data == nullptr) {
      TORCH_CHECK_WITH(OutOfMemoryError, false, std::string(refusal(nbytes)));
    }
    return {data, data, &release, at::Device(at::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* dest, const void* src, size_t count) const override { default_copy_data(dest, src, count); }
};

}  // namespace

void install_cpu_allocator() {
  // Never destroyed: libtorch keeps the pointer, and tensors may outlive static destructors.
  static c10::Allocator* const allocator = new RustAllocator();
  c10::SetCPUAllocator(allocator, /*priority=*/1);
}

const uint8_t* rust_block(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) {
    return nullptr;
  }
  const c10::DataPtr& data = tensor.storage().data_ptr();
  return data.get_deleter() == &release ? static_cast<const uint8_t*>(data.get()) : nullptr;
}

}  // namespace sterna
