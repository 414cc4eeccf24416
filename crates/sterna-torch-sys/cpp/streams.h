// Streams and events of a device, through the interface that libtorch has for all devices.
#pragma once

#include <memory>

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include "error.h"
#include "rust/cxx.h"

namespace sterna {

using Stream = c10::Stream;
using Event = c10::Event;

// The stream that ops of this thread run on.
std::unique_ptr<Stream> current_stream(int32_t device_index);
// One of libtorch's pool.
std::unique_ptr<Stream> new_stream(int32_t device_index);
// Makes `stream` the one that ops of this thread run on, and returns the one that was.
std::unique_ptr<Stream> exchange_stream(const Stream& stream);
// An event that happens when everything given to `stream` so far is done, and keeps its time if it `is_timed`.
std::unique_ptr<Event> record_event(const Stream& stream, bool is_timed);
// What is given to `stream` from here on begins after `event`.
void wait_event(const Stream& stream, const Event& event);
bool has_happened(const Event& event);
// Blocks the host.
void wait_on_host(const Event& event);
// Of two that are timed.
double elapsed_ms(const Event& start, const Event& end);
// Copies the elements of `source` on `stream`, and returns at once if the memory of the host is pinned.
void copy_on(const Stream& stream, const at::Tensor& target, const at::Tensor& source);

}  // namespace sterna
