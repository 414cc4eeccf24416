// What is left to do on the side streams.

#pragma once

#include <c10/core/Stream.h>

#include <cstdint>
#include <utility>

namespace sterna::fake {

using StreamKey = std::pair<c10::DeviceIndex, c10::StreamId>;

// The end of the first so many tasks of a stream. The default stream computes at once, and has none.
struct Point {
  StreamKey stream{0, 0};
  uint64_t num_tasks = 0;
};

StreamKey key_of(const c10::Stream& stream);
Point now(const StreamKey& stream);
bool is_done(const Point& point);
void run_until(const Point& point);
// What `stream` is given from here on comes after `point`.
void make_wait(const StreamKey& stream, const Point& point);
void copy_later(const StreamKey& stream, void* to, const void* from, size_t nbytes);
void run_all();
// Ends the process if a task still uses this memory.
void check_unused(const void* data, size_t nbytes);

} // namespace sterna::fake
