// c10d::ProcessGroupNCCL, in a library of its own: it needs libtorch_cuda, which the program loads only where there is a GPU.
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "../nccl_library.h"

extern "C" c10d::Backend* sterna_new_nccl_process_group(const c10::intrusive_ptr<c10d::Store>& store, int32_t rank,
                                                        int32_t size, int64_t timeout_ms) {
  using Nccl = c10d::ProcessGroupNCCL;
  // Waiting for work makes the current stream wait and not the host; high priority lets transfers start beside compute.
  const c10::intrusive_ptr<Nccl::Options> options = Nccl::Options::create(/*is_high_priority_stream=*/true);
  options->timeout = std::chrono::milliseconds(timeout_ms);
  return c10::make_intrusive<Nccl>(store, rank, size, options).release();
}
