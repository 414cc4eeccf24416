// Collectives: c10d::ProcessGroupGloo, and the work it starts.
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
  explicit Work(c10::intrusive_ptr<c10d::Work> inner) : inner_(std::move(inner)) {}

  bool is_completed() const;
  // False if the work is still running after `timeout_ms`; throws what the work threw.
  bool wait_for(int64_t timeout_ms) const;

 private:
  c10::intrusive_ptr<c10d::Work> inner_;
};

class ProcessGroup {
 public:
  explicit ProcessGroup(c10::intrusive_ptr<c10d::Backend> inner) : inner_(std::move(inner)) {}

  std::unique_ptr<Work> all_reduce(const at::Tensor& tensor, ReduceOp op) const;
  std::unique_ptr<Work> all_to_all_single(const at::Tensor& output, const at::Tensor& input,
                                          rust::Slice<const int64_t> output_splits,
                                          rust::Slice<const int64_t> input_splits) const;
  std::unique_ptr<Work> broadcast(const at::Tensor& tensor, int64_t root) const;
  std::unique_ptr<Work> barrier() const;

 private:
  c10::intrusive_ptr<c10d::Backend> inner_;
};

// `interface` empty: bind to `address`, a host name or an IP address of this machine.
std::unique_ptr<ProcessGroup> gloo_process_group(const Store& store, int32_t rank, int32_t size, int64_t timeout_ms,
                                                 rust::Str interface, rust::Str address);

}  // namespace sterna
