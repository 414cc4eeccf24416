// The key-value store through which ranks find each other: c10d::TCPStore and c10d::PrefixStore.
#pragma once

#include <memory>

#include <torch/csrc/distributed/c10d/Store.hpp>

#include "error.h"
#include "rust/cxx.h"

namespace sterna {

class Store {
 public:
  explicit Store(c10::intrusive_ptr<c10d::Store> inner) : inner_(std::move(inner)) {}

  const c10::intrusive_ptr<c10d::Store>& inner() const { return inner_; }

  std::unique_ptr<Store> prefixed(rust::Str prefix) const;
  std::unique_ptr<Store> reconnected() const;
  void set(rust::Str key, rust::Slice<const uint8_t> value) const;
  rust::Vec<uint8_t> get(rust::Str key) const;
  rust::Vec<uint8_t> compare_set(rust::Str key, rust::Slice<const uint8_t> expected,
                                 rust::Slice<const uint8_t> desired) const;
  int64_t add(rust::Str key, int64_t amount) const;
  bool contains(rust::Str key) const;

 private:
  c10::intrusive_ptr<c10d::Store> inner_;
};

// Serves the store on `listen_fd`, which it then owns, unless that is negative.
std::unique_ptr<Store> tcp_store(rust::Str host, uint16_t port, int32_t listen_fd, int64_t timeout_ms);

}  // namespace sterna
