// gloo's exceptions, to tell a lost peer from a late one. See ../README.md.
#pragma once

#include <stdexcept>

namespace gloo {

struct Exception : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct IoException : public Exception {
  using Exception::Exception;
};

struct TimeoutException : public IoException {
  using IoException::IoException;
};

}  // namespace gloo
