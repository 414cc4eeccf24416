// gloo's exception for a lost or late peer. See ../README.md.
#pragma once

#include <stdexcept>

namespace gloo {

struct Exception : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct IoException : public Exception {
  using Exception::Exception;
};

}  // namespace gloo
