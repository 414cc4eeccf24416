// The ops of the fake device: the few that only a device has, and for all others the CPU's kernels on the same memory.

#include "device.h"
#include "streams.h"

#include <ATen/Context.h>
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/Resize.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstring>
#include <sstream>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace sterna::fake {
namespace {

const c10::DispatchKeySet CPU_KEYS(c10::DispatchKey::CPU);
const c10::DispatchKeySet CUDA_KEYS(c10::DispatchKey::CUDA);

at::Tensor empty_on(c10::Device device, at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType dtype) {
  at::globalContext().lazyInitDevice(c10::kCUDA);
  const c10::DeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, device_allocator(), CUDA_KEYS, dtype);
}

// CPU tensors over the memory of CUDA tensors, and the way back. One of these lives as long as one call of an op.
class Aliases {
 public:
  at::Tensor to_cpu(const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) {
      return tensor;
    }
    TORCH_CHECK(tensor.layout() == at::kStrided && !tensor.is_conj() && !tensor.is_neg(), "the fake device has plain strided tensors only");
    note_device(tensor.device());
    auto* impl = tensor.unsafeGetTensorImpl();
    for (const auto& entry : tensors_) {
      if (entry.cuda.unsafeGetTensorImpl() == impl) {
        return entry.cpu;
      }
    }
    auto cpu = at::detail::make_tensor<c10::TensorImpl>(to_cpu(tensor.storage()), CPU_KEYS, tensor.dtype());
    auto* cpu_impl = cpu.unsafeGetTensorImpl();
    cpu_impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    if (impl->is_wrapped_number()) {
      cpu_impl->set_wrapped_number(true);
    }
    tensors_.push_back({tensor, cpu});
    return cpu;
  }

  c10::Storage to_cpu(const c10::Storage& storage) {
    if (!storage.device().is_cuda()) {
      return storage;
    }
    note_device(storage.device());
    for (const auto& entry : storages_) {
      if (entry.cuda.is_alias_of(storage)) {
        return entry.cpu;
      }
    }
    // The alias keeps the memory alive for as long as anything of the CPU refers to it.
    auto* owner = new c10::Storage(storage);
    c10::DataPtr data(storage.mutable_data(), owner, [](void* owner) { delete static_cast<c10::Storage*>(owner); }, c10::kCPU);
    const size_t nbytes = storage.nbytes();
    c10::Storage cpu(c10::Storage::use_byte_size_t(), nbytes, std::move(data), c10::GetCPUAllocator(), /*resizable=*/true);
    storages_.push_back({storage, cpu, nbytes});
    return cpu;
  }

  c10::Device to_cpu(c10::Device device) {
    if (!device.is_cuda()) {
      return device;
    }
    note_device(device.has_index() ? device : c10::Device(c10::kCUDA, current_device()));
    return c10::kCPU;
  }

  // The CUDA tensor for what an op returned.
  at::Tensor to_cuda(const at::Tensor& cpu) {
    if (!cpu.defined() || cpu.is_cuda()) {
      return cpu;
    }
    for (const auto& entry : tensors_) {
      if (entry.cpu.is_same(cpu)) {
        return entry.cuda;
      }
    }
    for (const auto& entry : storages_) {
      if (entry.cpu.is_alias_of(cpu.storage())) {
        // A view of an argument.
        auto view = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(entry.cuda), CUDA_KEYS, cpu.dtype());
        view.unsafeGetTensorImpl()->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
        return view;
      }
    }
    auto dense = cpu.is_non_overlapping_and_dense() ? cpu : cpu.contiguous();
    auto cuda = empty_on(device(), dense.sizes(), dense.strides(), dense.scalar_type());
    if (dense.nbytes() > 0) {
      std::memcpy(cuda.mutable_data_ptr(), dense.const_data_ptr(), dense.nbytes());
    }
    return cuda;
  }

  // Ops may have resized their arguments, or made them refer to other memory.
  void write_back() {
    for (auto& entry : storages_) {
      if (entry.cpu.nbytes() == entry.nbytes) {
        continue;
      }
      const c10::DeviceGuard guard(entry.cuda.device());
      auto data = device_allocator()->allocate(entry.cpu.nbytes());
      if (entry.cpu.nbytes() > 0) {
        std::memcpy(data.get(), entry.cpu.data(), entry.cpu.nbytes());
      }
      entry.cuda.set_data_ptr_noswap(std::move(data));
      entry.cuda.set_nbytes(entry.cpu.nbytes());
    }
    for (auto& entry : tensors_) {
      auto* cuda = entry.cuda.unsafeGetTensorImpl();
      if (const auto moved = cuda_storage(entry.cpu.storage()); moved && !moved->is_alias_of(entry.cuda.storage())) {
        cuda->set_storage_keep_dtype(*moved);
      }
      if (cuda->sizes() != entry.cpu.sizes() || cuda->strides() != entry.cpu.strides() ||
          cuda->storage_offset() != entry.cpu.storage_offset()) {
        cuda->set_sizes_and_strides(entry.cpu.sizes(), entry.cpu.strides(), entry.cpu.storage_offset());
      }
    }
  }

 private:
  struct TensorAlias {
    at::Tensor cuda;
    at::Tensor cpu;
  };

  struct StorageAlias {
    c10::Storage cuda;
    c10::Storage cpu;
    // Of both, before the call.
    size_t nbytes;
  };

  const c10::Storage* cuda_storage(const c10::Storage& cpu) const {
    for (const auto& entry : storages_) {
      if (entry.cpu.is_alias_of(cpu)) {
        return &entry.cuda;
      }
    }
    return nullptr;
  }

  void note_device(c10::Device device) {
    TORCH_CHECK(!device_ || *device_ == device, "Expected all tensors to be on the same device, but found at least two devices, ", *device_,
                " and ", device, "!");
    device_ = device;
  }

  c10::Device device() const {
    return device_.value_or(c10::Device(c10::kCUDA, current_device()));
  }

  std::optional<c10::Device> device_;
  std::vector<TensorAlias> tensors_;
  std::vector<StorageAlias> storages_;
};

// Applies `f` to each tensor in `value`, which may be a list of them.
template <typename F>
c10::IValue map_tensors(const c10::IValue& value, F f) {
  if (value.isTensor()) {
    return f(value.toTensor());
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> mapped;
    for (const at::Tensor& tensor : value.toTensorVector()) {
      mapped.push_back(f(tensor));
    }
    return mapped;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> mapped;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
      mapped.push_back(tensor ? std::optional<at::Tensor>(f(*tensor)) : std::nullopt);
    }
    return mapped;
  }
  return value;
}

// Ops whose result has a size, or is a value, that only the device knows.
bool waits_for_the_device(const std::string& name) {
  static const std::unordered_set<std::string> names{
      "aten::_local_scalar_dense", "aten::_unique2",     "aten::equal",           "aten::is_nonzero",       "aten::masked_select",
      "aten::nonzero",             "aten::unique_dim",   "aten::bincount",        "aten::repeat_interleave", "aten::unique_consecutive",
  };
  return names.count(name) > 0;
}

// Refuses what a real GPU refuses: tensors of the host among those of the device. Values of the host (0-dim tensors) are passed with the
// launch, but nothing is written to them. In a list they are not: its kernels read addresses, and look at no device.
void check_devices(const c10::FunctionSchema& schema, size_t arg_idx, bool is_in_list, const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.is_cuda()) {
    return;
  }
  const auto& argument = schema.arguments()[arg_idx];
  const bool is_written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
  TORCH_CHECK(tensor.dim() == 0 && !is_written && !is_in_list, schema.operator_name(), ": expected all tensors to be on the same device, but argument `",
              argument.name(), "` of size ", tensor.sizes(), " is on ", tensor.device(), " and others are on cuda");
}

StreamKey current_stream(c10::Device device) {
  return key_of(c10::impl::getDeviceGuardImpl(c10::kCUDA)->getStream(device));
}

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t num_args = schema.arguments().size();
  const size_t begin = stack->size() - num_args;
  Aliases aliases;
  for (size_t i = 0; i < num_args; ++i) {
    auto& value = (*stack)[begin + i];
    if (value.isDevice()) {
      value = aliases.to_cpu(value.toDevice());
    } else if (value.isStorage()) {
      value = aliases.to_cpu(value.toStorage());
    } else {
      const bool is_list = value.isTensorList();
      value = map_tensors(value, [&](const at::Tensor& tensor) {
        check_devices(schema, i, is_list, tensor);
        return aliases.to_cpu(tensor);
      });
    }
  }
  // What a side stream computes comes after the copies that it was given.
  run_until(now(current_stream(c10::Device(c10::kCUDA, current_device()))));
  if (waits_for_the_device(schema.name())) {
    count_host_sync(schema.name());
  }
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(CPU_KEYS, stack);
  }
  aliases.write_back();
  const size_t num_returns = schema.returns().size();
  for (size_t i = stack->size() - num_returns; i < stack->size(); ++i) {
    (*stack)[i] = map_tensors((*stack)[i], [&](const at::Tensor& tensor) { return aliases.to_cuda(tensor); });
  }
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout, std::optional<at::Device> device,
                 std::optional<bool> pin_memory, std::optional<at::MemoryFormat> memory_format) {
  TORCH_CHECK(!pin_memory.value_or(false), "Only dense CPU tensors can be pinned");
  TORCH_CHECK(layout.value_or(at::kStrided) == at::kStrided, "the fake device has plain strided tensors only");
  at::globalContext().lazyInitDevice(c10::kCUDA);
  at::globalContext().lazyInitDevice(c10::kCUDA);
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, device_allocator(), CUDA_KEYS, c10::dtype_or_default(dtype), memory_format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                         std::optional<at::Device> device, std::optional<bool> pin_memory) {
  TORCH_CHECK(!pin_memory.value_or(false), "Only dense CPU tensors can be pinned");
  TORCH_CHECK(layout.value_or(at::kStrided) == at::kStrided, "the fake device has plain strided tensors only");
  at::globalContext().lazyInitDevice(c10::kCUDA);
  at::globalContext().lazyInitDevice(c10::kCUDA);
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, device_allocator(), CUDA_KEYS, c10::dtype_or_default(dtype));
}

// Whether a copy between host and device runs beside the host: it asks for that, and its memory is pinned. Any other makes the host wait.
bool runs_beside(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (to.is_cuda() == from.is_cuda() || from.numel() == 0) {
    return false;
  }
  const at::Tensor& host = to.is_cuda() ? from : to;
  if (non_blocking && is_pinned(host.storage().data())) {
    return true;
  }
  std::ostringstream what;
  what << "aten::copy_ " << (to.is_cuda() ? "to" : "from") << " the device, " << from.scalar_type() << " " << from.sizes();
  count_host_sync(what.str());
  return false;
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& src, bool non_blocking) {
  if (runs_beside(self, src, non_blocking)) {
    const auto stream = current_stream(self.is_cuda() ? self.device() : src.device());
    const bool is_plain = self.is_contiguous() && src.is_contiguous() && self.scalar_type() == src.scalar_type();
    if (stream.second != 0 && is_plain) {
      copy_later(stream, self.mutable_data_ptr(), src.const_data_ptr(), src.nbytes());
      return self;
    }
  }
  for (const auto& tensor : {self, src}) {
    if (tensor.is_cuda()) {
      run_until(now(current_stream(tensor.device())));
    }
  }
  // Devices differ in a copy and nowhere else, hence an alias map of its own for each side.
  Aliases to;
  Aliases from;
  auto cpu = to.to_cpu(self);
  const at::AutoDispatchBelowADInplaceOrView guard;
  cpu.copy_(from.to_cpu(src));
  return self;
}

// All work on the memory is done already.
void record_stream(at::Tensor& /*self*/, at::Stream /*stream*/) {}

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

// For an op that no kernel of CUDA is registered for, the dispatcher prefers its definition by other ops to the fallback above, and rounds
// otherwise than the kernel would. Every op that the CPU has a kernel for goes there.
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findOp(name);
    const bool has_definition = op && (op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd) ||
                                       op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd));
    if (name.name.rfind("aten::", 0) == 0 && has_definition && op->hasKernelForDispatchKey(c10::DispatchKey::CPU)) {
      const std::string overload = name.overload_name.empty() ? "" : "." + name.overload_name;
      m.impl((name.name + overload).c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
    }
  }
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("copy_", TORCH_FN(copy_));
  m.impl("record_stream", TORCH_FN(record_stream));
}

} // namespace
} // namespace sterna::fake
