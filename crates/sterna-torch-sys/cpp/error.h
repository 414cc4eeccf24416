// Turns a C++ exception into the kind and the text that src/error.rs reads.
//
// cxx carries one string across the boundary; its first character is the kind (see Error::from_tagged in src/error.rs).
#pragma once

#include <exception>
#include <new>
#include <string>

#include <c10/util/Exception.h>
#include <gloo/common/error.h>
#include <torch/csrc/distributed/c10d/exception.h>

namespace sterna {

inline std::string tagged(char kind, const char* message) { return kind + std::string(message); }

// The allocator of host memory raises a plain c10::Error, so its text is the only sign of what went wrong.
inline char kind_of(const c10::Error& error) {
  return error.msg().find("DefaultCPUAllocator") == std::string::npos ? 'x' : 'm';
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
} catch (const c10::DistError& error) {
  fail(sterna::tagged('c', error.what_without_backtrace()));
} catch (const c10::Error& error) {
  fail(sterna::tagged(sterna::kind_of(error), error.what_without_backtrace()));
} catch (const gloo::TimeoutException& error) {
  fail(sterna::tagged('t', error.what()));
} catch (const gloo::IoException& error) {
  fail(sterna::tagged('c', error.what()));
} catch (const std::bad_alloc& error) {
  fail(sterna::tagged('m', error.what()));
} catch (const std::exception& error) {
  fail(sterna::tagged('x', error.what()));
} catch (...) {
  fail(sterna::tagged('x', "an exception that is no std::exception"));
}

}  // namespace rust::behavior
