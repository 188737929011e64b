// StatusContext: something a device can say of every byte, beside whether it is allocated: whether it changed
// since a bitmap was started, in which image of a chain it lies. NBD calls it a metadata context (proto.md,
// "Metadata querying").
//
// A device lists its own in BlockDevice::contexts(). A filter that moves offsets wraps them.
#ifndef BERTH_IMAGE_BLOCK_STATUS_CONTEXT_H_
#define BERTH_IMAGE_BLOCK_STATUS_CONTEXT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "image/io/io_result.h"
#include "image/io/reactor.h"
#include "image/io/task.h"

namespace berth {

// The most that a device offers, and the longest name, in bytes: what a client is told of them is bounded.
inline constexpr size_t kMaxStatusContexts = 1024;
inline constexpr size_t kMaxStatusContextName = 1200;

struct StatusExtent {
  uint64_t length = 0;  // Bytes, never 0.
  uint64_t status = 0;  // What the context defines.

  constexpr bool operator==(const StatusExtent&) const = default;
};

// The way to a context's extents from one reactor. Thread and lifetime: as BlockChannel.
class StatusChannel {
 public:
  virtual ~StatusChannel() = default;

  // As BlockChannel::Extents: appends at least one extent and at most kMaxExtents, neighbours of one status
  // merged, covering `length` bytes or fewer, never more.
  virtual Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<StatusExtent>* out) = 0;
};

// Thread-safe. Does not keep its device alive, whose destructor may block; nobody opens it after the device
// is gone. It may outlive what it tells of: a bitmap that was deleted answers with an error.
class StatusContext {
 public:
  // `name` is a namespace, a colon and a leaf name in UTF-8, and no other of the device's. `wide`: a status
  // takes more than 32 bits, which only clients with extended headers can be given.
  StatusContext(std::string name, bool wide) : name_(std::move(name)), wide_(wide) {}
  virtual ~StatusContext() = default;

  const std::string& name() const { return name_; }
  bool wide() const { return wide_; }

  // From `reactor`, whose thread calls it. Does not block.
  virtual absl::StatusOr<std::unique_ptr<StatusChannel>> Open(Reactor& reactor) = 0;

 private:
  const std::string name_;
  const bool wide_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_BLOCK_STATUS_CONTEXT_H_
