// The two interfaces that every image format, filter and transport is built on.
//
// BlockDevice is an open image: its facts and its control plane. BlockChannel is the way to its data from one
// reactor.
//
// A filter (slice, read-only, rate limit) is a BlockDevice that holds the next BlockDevice and overrides what
// it changes. What a device cannot do stands in its traits; there are no default implementations that fail.
#ifndef BERTH_IMAGE_BLOCK_BLOCK_DEVICE_H_
#define BERTH_IMAGE_BLOCK_BLOCK_DEVICE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "image/block/extent.h"
#include "image/block/status_context.h"
#include "image/io/io_result.h"
#include "image/io/reactor.h"
#include "image/io/task.h"

namespace berth {

// What is true of a device for as long as it is open.
struct BlockTraits {
  bool read_only = false;
  bool resizable = false;
  // The disk below has a seek time (NBD_FLAG_ROTATIONAL).
  bool rotational = false;
  // Discard gives space back. Where false it succeeds and does nothing.
  bool can_discard = false;
  // Zero without kNoUnmap, or with it, is faster than writing zeroes; ZeroFlags::kFastOnly is honoured.
  bool fast_zero = false;
  // A flush through any channel covers the completed writes of all (NBD_FLAG_CAN_MULTI_CONN).
  bool flush_covers_all_channels = true;
  // Requests of this multiple of bytes are served without a read-modify-write; a power of two. Any request is
  // served.
  uint32_t preferred_alignment = 1;
};

enum class WriteFlags : uint8_t {
  kNone = 0,
  kFua = 1,  // On stable storage before it completes (NBD_CMD_FLAG_FUA).
};

enum class ZeroFlags : uint8_t {
  kNone = 0,      // The range may become a hole.
  kFua = 1,       // As WriteFlags::kFua.
  kNoUnmap = 2,   // The range must keep its space (NBD_CMD_FLAG_NO_HOLE).
  kFastOnly = 4,  // ENOTSUP at once, where it would be no faster than a write (NBD_CMD_FLAG_FAST_ZERO).
};

constexpr ZeroFlags operator|(ZeroFlags a, ZeroFlags b) {
  return static_cast<ZeroFlags>(static_cast<uint8_t>(a) | static_cast<uint8_t>(b));
}
constexpr bool Has(ZeroFlags flags, ZeroFlags bit) {
  return (static_cast<uint8_t>(flags) & static_cast<uint8_t>(bit)) != 0;
}

// The data plane. Thread: confined to the reactor it was opened for, its destructor too. Lifetime: no
// operation is under way when it is destroyed, and its device outlives it.
//
// Callers keep to the contract, which was checked at the edge: ranges are not empty, lie inside the device's
// size and do not overflow; buffers stay valid until completion; a read-only device gets no Write, Zero or
// Discard. Operations may be under way in any number and complete in any order; overlapping ones have no
// order. All of the range, or an error. Errors are errno values: ENOSPC, EIO, EPERM, ENOTSUP, ENOMEM,
// ESHUTDOWN.
//
// A device may shrink while requests are under way; those that then lie outside fail with EIO, as on a
// truncated file.
class BlockChannel {
 public:
  virtual ~BlockChannel() = default;

  virtual Task<IoResult> Read(uint64_t offset, absl::Span<uint8_t> out) = 0;
  virtual Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) = 0;
  // Everything that completed before this was called, through any channel where the traits say so, is on
  // stable storage.
  virtual Task<IoResult> Flush() = 0;
  // The range reads as zeroes afterwards.
  virtual Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) = 0;
  // The range's content is no longer needed; afterwards it reads as anything.
  virtual Task<IoResult> Discard(uint64_t offset, uint64_t length) = 0;
  // Brings the range into the cache below, where there is one. Best effort.
  virtual Task<IoResult> Prefetch(uint64_t offset, uint64_t length) = 0;
  // Appends the extents from `offset` on to `out`: at least one, neighbours of a kind merged, covering
  // `length` bytes or, where looking further would be slow or take more than kMaxExtents of them, fewer.
  // Never more than `length`. Unknown is reported as allocated and not zero.
  virtual Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) = 0;
};

// The control plane. Thread-safe. Lifetime: outlives its channels; closing is the destructor, which may block
// and so runs on an ordinary thread.
class BlockDevice {
 public:
  virtual ~BlockDevice() = default;

  virtual const BlockTraits& traits() const = 0;
  // Bytes now. Changes only through Resize().
  virtual uint64_t size() const = 0;
  // A way to the data from `reactor`, whose thread calls it. Does not block.
  virtual absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) = 0;
  // What the device can say of its bytes beside where space is allocated; at most kMaxStatusContexts. Does
  // not block.
  virtual std::vector<std::shared_ptr<StatusContext>> contexts() const { return {}; }
  // Changes the size. New space reads as zeroes. FAILED_PRECONDITION where the traits say it cannot; may
  // block.
  virtual absl::Status Resize(uint64_t new_size) = 0;
};

}  // namespace berth

#endif  // BERTH_IMAGE_BLOCK_BLOCK_DEVICE_H_
