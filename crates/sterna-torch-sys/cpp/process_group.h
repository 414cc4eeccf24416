// Collectives: c10d::ProcessGroupGloo or ProcessGroupNCCL, and the work they start.
#pragma once

#include <memory>

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "error.h"
#include "store.h"
#include "tensor.h"

namespace sterna {

enum class ReduceOp : uint8_t;

class Work {
 public:
  Work(c10::intrusive_ptr<c10d::Work> inner, bool on_stream) : inner_(std::move(inner)), on_stream_(on_stream) {}

  bool is_completed() const;
  // False if the work is still running after `timeout_ms`; throws what the work threw.
  // Work on a stream is waited for by the current stream, never by the host.
  bool wait_for(int64_t timeout_ms) const;

 private:
  c10::intrusive_ptr<c10d::Work> inner_;
  bool on_stream_;
};

class ProcessGroup {
 public:
  ProcessGroup(c10::intrusive_ptr<c10d::Backend> inner, bool on_stream)
      : inner_(std::move(inner)), on_stream_(on_stream) {}

  std::unique_ptr<Work> all_reduce(const at::Tensor& tensor, ReduceOp op) const;
  std::unique_ptr<Work> all_to_all_single(const at::Tensor& output, const at::Tensor& input,
                                          rust::Slice<const int64_t> output_splits,
                                          rust::Slice<const int64_t> input_splits) const;
  std::unique_ptr<Work> all_gather_into_tensor(const at::Tensor& output, const at::Tensor& input) const;
  std::unique_ptr<Work> reduce_scatter_tensor(const at::Tensor& output, const at::Tensor& input, ReduceOp op) const;
  std::unique_ptr<Work> broadcast(const at::Tensor& tensor, int64_t root) const;
  std::unique_ptr<Work> barrier() const;
  // Ends what is under way, from any thread. Does nothing for Gloo.
  void abort() const { inner_->abort(); }
  // The same group, for another thread to abort.
  std::unique_ptr<ProcessGroup> shared() const { return std::make_unique<ProcessGroup>(inner_, on_stream_); }

 private:
  std::unique_ptr<Work> started(c10::intrusive_ptr<c10d::Work> work) const;

  c10::intrusive_ptr<c10d::Backend> inner_;
  // Whether work runs on a stream of the device (NCCL) or on threads of the host (Gloo).
  bool on_stream_;
};

// `interface` empty: bind to `address`, a host name or an IP address of this machine.
std::unique_ptr<ProcessGroup> gloo_process_group(const Store& store, int32_t rank, int32_t size, int64_t timeout_ms,
                                                 rust::Str interface, rust::Str address);

// `constructor` is the address of sterna_new_nccl_process_group, see nccl_library.h.
std::unique_ptr<ProcessGroup> nccl_process_group(const Store& store, int32_t rank, int32_t size, int64_t timeout_ms,
                                                 const char* constructor);

}  // namespace sterna
