// Turns a C++ exception into the kind and the text that src/error.rs reads.
//
// cxx carries one string across the boundary; its first character is the kind (see Error::from_tagged in src/error.rs).
#pragma once

#include <cstring>
#include <exception>
#include <new>
#include <string>

#include <c10/util/Exception.h>
#include <gloo/common/error.h>
#include <torch/csrc/distributed/c10d/exception.h>

namespace sterna {

inline std::string tagged(char kind, const char* message) { return kind + std::string(message); }

// Where libtorch has no type for a kind, its text is the only sign of what went wrong.
inline char kind_or(char kind, char special, const char* text, const char* message) {
  return std::strstr(message, text) != nullptr ? special : kind;
}

}  // namespace sterna

namespace rust::behavior {

// cxx calls this, found by name, around every function declared `-> Result`.
// The order matters: a more derived type must be caught before its base.
template <typename Try, typename Fail>
static void trycatch(Try&& func, Fail&& fail) noexcept try {
  func();
} catch (const c10::OutOfMemoryError& error) {
  fail(sterna::tagged('m', error.what_without_backtrace()));
} catch (const c10d::TimeoutError& error) {
  fail(sterna::tagged('t', error.what_without_backtrace()));
} catch (const c10::DistStoreError& error) {
  const char* message = error.what_without_backtrace();
  fail(sterna::tagged(sterna::kind_or('c', 't', "wait timeout", message), message));
} catch (const c10::DistError& error) {
  fail(sterna::tagged('c', error.what_without_backtrace()));
} catch (const c10::Error& error) {
  const char* message = error.what_without_backtrace();
  fail(sterna::tagged(sterna::kind_or('x', 'm', "DefaultCPUAllocator", message), message));
} catch (const gloo::IoException& error) {
  fail(sterna::tagged(sterna::kind_or('c', 't', "Timed out waiting", error.what()), error.what()));
} catch (const std::bad_alloc& error) {
  fail(sterna::tagged('m', error.what()));
} catch (const std::exception& error) {
  fail(sterna::tagged('x', error.what()));
} catch (...) {
  fail(sterna::tagged('x', "an exception that is no std::exception"));
}

}  // namespace rust::behavior
