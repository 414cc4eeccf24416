#include "store.h"

#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace sterna {

namespace {

std::vector<uint8_t> to_bytes(rust::Slice<const uint8_t> slice) { return {slice.begin(), slice.end()}; }

rust::Vec<uint8_t> from_bytes(const std::vector<uint8_t>& bytes) {
  rust::Vec<uint8_t> result;
  result.reserve(bytes.size());
  std::copy(bytes.begin(), bytes.end(), std::back_inserter(result));
  return result;
}

}  // namespace

std::unique_ptr<Store> tcp_store(rust::Str host, uint16_t port, int32_t listen_fd, int64_t timeout_ms) {
  c10d::TCPStoreOptions options;
  options.port = port;
  options.isServer = listen_fd >= 0;
  if (options.isServer) options.masterListenFd = listen_fd;
  options.waitWorkers = false;
  options.timeout = std::chrono::milliseconds(timeout_ms);
  // Reads TORCH_CPP_LOG_LEVEL, which otherwise only the Python module does.
  c10::initLogging();
  return std::make_unique<Store>(c10::make_intrusive<c10d::TCPStore>(std::string(host), options));
}

std::unique_ptr<Store> Store::prefixed(rust::Str prefix) const {
  return std::make_unique<Store>(c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), inner_));
}

std::unique_ptr<Store> Store::reconnected() const { return std::make_unique<Store>(inner_->clone()); }

void Store::set(rust::Str key, rust::Slice<const uint8_t> value) const {
  inner_->set(std::string(key), to_bytes(value));
}

rust::Vec<uint8_t> Store::get(rust::Str key) const { return from_bytes(inner_->get(std::string(key))); }

rust::Vec<uint8_t> Store::compare_set(rust::Str key, rust::Slice<const uint8_t> expected,
                                      rust::Slice<const uint8_t> desired) const {
  return from_bytes(inner_->compareSet(std::string(key), to_bytes(expected), to_bytes(desired)));
}

int64_t Store::add(rust::Str key, int64_t amount) const { return inner_->add(std::string(key), amount); }

bool Store::contains(rust::Str key) const { return inner_->check({std::string(key)}); }

}  // namespace sterna
