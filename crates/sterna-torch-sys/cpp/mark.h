// Moments of a device's current stream, with the time between two of them.
#pragma once

#include <memory>

#include <c10/core/Event.h>

#include "error.h"

namespace sterna {

struct Mark {
  c10::Event event;
};

std::unique_ptr<Mark> record_mark(int32_t device_index);
double elapsed_ms(const Mark& start, const Mark& end);
void wait_for_mark(const Mark& mark);

}  // namespace sterna
