// Streams as they are at their slowest: what is computed is done at once, and a copy on a side stream only when somebody waits for it.
//
// Code that forgets to wait then reads what was there before, and code that gives memory back too early is caught doing so. On a real GPU both
// go well on most days.

#include "streams.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

namespace sterna::fake {
namespace {

// Either a copy, or waiting for another stream.
struct Task {
  void* to = nullptr;
  const void* from = nullptr;
  size_t nbytes = 0;
  Point after;
};

struct Queue {
  std::deque<Task> tasks;
  uint64_t num_given = 0;
  uint64_t num_done = 0;
};

std::recursive_mutex mutex;
std::map<StreamKey, Queue> queues;

bool computes(const StreamKey& stream) {
  return stream.second == 0;
}

bool overlap(const void* a, size_t a_bytes, const void* b, size_t b_bytes) {
  const auto* first = static_cast<const char*>(a);
  const auto* second = static_cast<const char*>(b);
  return first < second + b_bytes && second < first + a_bytes;
}

} // namespace

StreamKey key_of(const c10::Stream& stream) {
  return {stream.device_index(), stream.id()};
}

Point now(const StreamKey& stream) {
  const std::lock_guard lock(mutex);
  return {stream, computes(stream) ? 0 : queues[stream].num_given};
}

bool is_done(const Point& point) {
  const std::lock_guard lock(mutex);
  return computes(point.stream) || queues[point.stream].num_done >= point.num_tasks;
}

void run_until(const Point& point) {
  const std::lock_guard lock(mutex);
  if (computes(point.stream)) {
    return;
  }
  Queue& queue = queues[point.stream];
  while (queue.num_done < point.num_tasks) {
    const Task task = queue.tasks.front();
    run_until(task.after);
    if (task.nbytes > 0) {
      std::memcpy(task.to, task.from, task.nbytes);
    }
    queue.tasks.pop_front();
    queue.num_done += 1;
  }
}

void make_wait(const StreamKey& stream, const Point& point) {
  const std::lock_guard lock(mutex);
  if (computes(stream)) {
    run_until(point);
  } else {
    Task task;
    task.after = point;
    queues[stream].tasks.push_back(task);
    queues[stream].num_given += 1;
  }
}

void copy_later(const StreamKey& stream, void* to, const void* from, size_t nbytes) {
  const std::lock_guard lock(mutex);
  Task task;
  task.to = to;
  task.from = from;
  task.nbytes = nbytes;
  queues[stream].tasks.push_back(task);
  queues[stream].num_given += 1;
}

void run_all() {
  const std::lock_guard lock(mutex);
  for (const auto& entry : queues) {
    run_until(now(entry.first));
  }
}

void check_unused(const void* data, size_t nbytes) {
  const std::lock_guard lock(mutex);
  for (const auto& [stream, queue] : queues) {
    for (const Task& task : queue.tasks) {
      if (overlap(data, nbytes, task.to, task.nbytes) || overlap(data, nbytes, task.from, task.nbytes)) {
        std::fprintf(stderr, "memory of the fake device is freed while a copy of %zu bytes on stream %ld is to come\n", task.nbytes,
                     static_cast<long>(stream.second));
        std::abort();
      }
    }
  }
}

} // namespace sterna::fake
