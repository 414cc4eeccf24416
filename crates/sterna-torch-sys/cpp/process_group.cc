#include "process_group.h"

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "nccl_library.h"
#include "sterna-torch-sys/src/bridge.rs.h"

namespace sterna {

namespace {

c10d::ReduceOp::RedOpType to_c10d(ReduceOp op) {
  switch (op) {
    case ReduceOp::Sum:
      return c10d::ReduceOp::SUM;
    case ReduceOp::Min:
      return c10d::ReduceOp::MIN;
    case ReduceOp::Max:
      return c10d::ReduceOp::MAX;
  }
  TORCH_CHECK(false, "unknown reduction ", static_cast<int>(op));
}

std::vector<int64_t> to_vector(rust::Slice<const int64_t> slice) { return {slice.begin(), slice.end()}; }

}  // namespace

bool Work::is_completed() const { return inner_->isCompleted(); }

bool Work::wait_for(int64_t timeout_ms) const {
  if (on_stream_) {
    // NCCL's wait with a time limit would block the host; its watchdog keeps the group's limit.
    inner_->synchronize();
    return true;
  }
  try {
    inner_->wait(std::chrono::milliseconds(timeout_ms));
    return true;
  } catch (...) {
    if (!inner_->isCompleted()) {
      return false;
    }
  }
  // Completed, perhaps just after the limit had passed: this rethrows the work's own exception, if it has one.
  inner_->wait();
  return true;
}

std::unique_ptr<Work> ProcessGroup::started(c10::intrusive_ptr<c10d::Work> work) const {
  return std::make_unique<Work>(std::move(work), on_stream_);
}

std::unique_ptr<Work> ProcessGroup::all_reduce(const at::Tensor& tensor, ReduceOp op) const {
  std::vector<at::Tensor> tensors{tensor};
  c10d::AllreduceOptions options;
  options.reduceOp = to_c10d(op);
  return started(inner_->allreduce(tensors, options));
}

std::unique_ptr<Work> ProcessGroup::all_to_all_single(const at::Tensor& output, const at::Tensor& input,
                                                      rust::Slice<const int64_t> output_splits,
                                                      rust::Slice<const int64_t> input_splits) const {
  at::Tensor out = output;
  at::Tensor in = input;
  std::vector<int64_t> out_counts = to_vector(output_splits);
  std::vector<int64_t> in_counts = to_vector(input_splits);
  return started(inner_->alltoall_base(out, in, out_counts, in_counts));
}

std::unique_ptr<Work> ProcessGroup::all_gather_into_tensor(const at::Tensor& output, const at::Tensor& input) const {
  at::Tensor out = output;
  at::Tensor in = input;
  return started(inner_->_allgather_base(out, in));
}

std::unique_ptr<Work> ProcessGroup::reduce_scatter_tensor(const at::Tensor& output, const at::Tensor& input,
                                                          ReduceOp op) const {
  at::Tensor out = output;
  at::Tensor in = input;
  c10d::ReduceScatterOptions options;
  options.reduceOp = to_c10d(op);
  return started(inner_->_reduce_scatter_base(out, in, options));
}

std::unique_ptr<Work> ProcessGroup::broadcast(const at::Tensor& tensor, int64_t root) const {
  std::vector<at::Tensor> tensors{tensor};
  c10d::BroadcastOptions options;
  options.rootRank = root;
  return started(inner_->broadcast(tensors, options));
}

std::unique_ptr<Work> ProcessGroup::barrier() const { return started(inner_->barrier()); }

std::unique_ptr<ProcessGroup> gloo_process_group(const Store& store, int32_t rank, int32_t size, int64_t timeout_ms,
                                                 rust::Str interface, rust::Str address) {
  using Gloo = c10d::ProcessGroupGloo;
  const c10::intrusive_ptr<Gloo::Options> options = Gloo::Options::create(std::chrono::milliseconds(timeout_ms));
  options->devices.push_back(interface.empty() ? Gloo::createDeviceForHostname(std::string(address))
                                               : Gloo::createDeviceForInterface(std::string(interface)));
  return std::make_unique<ProcessGroup>(c10::make_intrusive<Gloo>(store.inner(), rank, size, options),
                                        /*on_stream=*/false);
}

std::unique_ptr<ProcessGroup> nccl_process_group(const Store& store, int32_t rank, int32_t size, int64_t timeout_ms,
                                                 const char* constructor) {
  const auto construct = reinterpret_cast<decltype(&sterna_new_nccl_process_group)>(constructor);
  auto inner = c10::intrusive_ptr<c10d::Backend>::reclaim(construct(store.inner(), rank, size, timeout_ms));
  return std::make_unique<ProcessGroup>(std::move(inner), /*on_stream=*/true);
}

}  // namespace sterna
