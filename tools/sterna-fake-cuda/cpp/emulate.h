// Runs kernels written in CUDA C++ on the host, one block after the other.
//
// The threads of a block are fibers: each runs until it waits for its warp (a shuffle) or for its block (__syncthreads).
// A warp runs until it waits for its block, then the next one does, so that a missing barrier shows as a wrong result; the
// order turns round after each barrier. Threads that should wait together and do not are reported.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"

#define __global__
#define __device__
// One for all threads of a block, since a block has one thread of the host. It keeps what the last block left, as a GPU's.
#define __shared__ static thread_local
#define __launch_bounds__(...)

struct Index3 {
  unsigned x, y, z;
};

namespace emulate {

class Block {
 public:
  // Runs body once per thread; returns what went wrong, empty if nothing did.
  std::string run(Index3 grid, Index3 threads, const std::function<void()>& body) {
    grid_dim_ = grid;
    block_dim_ = threads;
    body_ = &body;
    failure_.clear();
    resize(threads.x * threads.y * threads.z);
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x && failure_.empty(); ++x) {
          block_index_ = {x, y, z};
          run_block();
        }
      }
    }
    return failure_;
  }

  enum class Place { kEnd, kBarrier, kShuffle };

  // Leaves the running thread until those that it waits for are at `place` too.
  void wait(Place place) {
    Fiber& fiber = *running_;
    fiber.place = place;
    fiber.flow.switch_to(scheduler_);
  }

  // Ends the launch with an error.
  void trap() {
    failure_ = "a thread of block " + std::to_string(block_index_.x) + " has trapped";
    // The scheduler does not come back.
    running_->flow.switch_to(scheduler_);
  }

  template <typename T>
  T exchange(T value, unsigned lane_mask) {
    static_assert(sizeof(T) == sizeof(uint32_t));
    const size_t me = running_ - fibers_.data();
    // A fast thread may be one exchange ahead of those that still read: two slots, in turn.
    const unsigned turn = running_->turn++ % 2;
    std::memcpy(&slots_[turn][me], &value, sizeof value);
    wait(Place::kShuffle);
    T other;
    std::memcpy(&other, &slots_[turn][me ^ lane_mask], sizeof other);
    return other;
  }

  Index3 thread_index() const { return running_->index; }
  Index3 block_index() const { return block_index_; }
  Index3 block_dim() const { return block_dim_; }
  Index3 grid_dim() const { return grid_dim_; }

 private:
  static constexpr size_t kStack = 64 << 10;
  static constexpr size_t kWarpLen = 32;

  struct Fiber {
    Flow flow;
    std::unique_ptr<char[]> stack{new char[kStack]};
    Index3 index;
    Place place;
    unsigned turn;
  };

  static void enter();

  void resize(size_t num_threads) {
    fibers_.resize(num_threads);
    for (auto& slots : slots_) {
      slots.resize(num_threads);
    }
  }

  void run_block() {
    for (size_t i = 0; i < fibers_.size(); ++i) {
      Fiber& fiber = fibers_[i];
      const auto at = static_cast<unsigned>(i);
      fiber.index = {at % block_dim_.x, at / block_dim_.x % block_dim_.y, at / block_dim_.x / block_dim_.y};
      fiber.turn = 0;
      fiber.flow.prepare(fiber.stack.get(), kStack, &Block::enter);
    }
    const size_t num_warps = (fibers_.size() + kWarpLen - 1) / kWarpLen;
    for (bool is_forward = true, goes_on = true; goes_on && failure_.empty(); is_forward = !is_forward) {
      for (size_t i = 0; i < num_warps && failure_.empty(); ++i) {
        run_warp(is_forward ? i : num_warps - 1 - i);
      }
      check_together(0, fibers_.size());
      goes_on = fibers_[0].place != Place::kEnd;
    }
  }

  // Until its threads wait for the block or end.
  void run_warp(size_t warp) {
    const size_t begin = warp * kWarpLen;
    const size_t end = std::min(begin + kWarpLen, fibers_.size());
    do {
      for (size_t i = begin; i < end && failure_.empty(); ++i) {
        running_ = &fibers_[i];
        running_->place = Place::kEnd;
        scheduler_.switch_to(running_->flow);
      }
      check_together(begin, end);
    } while (failure_.empty() && fibers_[begin].place == Place::kShuffle);
  }

  void check_together(size_t begin, size_t end) {
    static constexpr const char* kNames[] = {"its end", "__syncthreads", "a shuffle"};
    for (size_t i = begin; i < end && failure_.empty(); ++i) {
      const auto here = static_cast<size_t>(fibers_[i].place);
      const auto there = static_cast<size_t>(fibers_[begin].place);
      if (here != there) {
        failure_ = "thread " + std::to_string(i) + " of a block is at " + kNames[here] + " and thread " +
                   std::to_string(begin) + " at " + kNames[there];
      }
    }
  }

  Index3 grid_dim_{}, block_dim_{}, block_index_{};
  const std::function<void()>* body_ = nullptr;
  Flow scheduler_;
  std::vector<Fiber> fibers_;
  std::vector<uint32_t> slots_[2];
  Fiber* running_ = nullptr;
  std::string failure_;
};

inline thread_local Block block;

inline void Block::enter() {
  (*block.body_)();
  // The scheduler does not come back.
  block.wait(Place::kEnd);
}

}  // namespace emulate

#define threadIdx (emulate::block.thread_index())
#define blockIdx (emulate::block.block_index())
#define blockDim (emulate::block.block_dim())
#define gridDim (emulate::block.grid_dim())

inline void __syncthreads() { emulate::block.wait(emulate::Block::Place::kBarrier); }
inline void __trap() { emulate::block.trap(); }

template <typename T>
T __shfl_xor_sync(unsigned /*mask*/, T value, int lane_mask) {
  return emulate::block.exchange(value, static_cast<unsigned>(lane_mask));
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
