// What every filter starts from: a device that hands everything on to the next one. A filter derives from
// these and overrides what it changes.
#ifndef BERTH_IMAGE_FILTER_FORWARDING_H_
#define BERTH_IMAGE_FILTER_FORWARDING_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "image/block/block_device.h"

namespace berth {

// Thread: as BlockChannel. It costs a virtual call and no coroutine frame: the next channel's task is
// returned.
class ForwardingChannel : public BlockChannel {
 public:
  explicit ForwardingChannel(std::unique_ptr<BlockChannel> next) : next_(std::move(next)) {}

  Task<IoResult> Read(uint64_t offset, absl::Span<uint8_t> out) override { return next_->Read(offset, out); }
  Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) override {
    return next_->Write(offset, data, flags);
  }
  Task<IoResult> Flush() override { return next_->Flush(); }
  Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) override {
    return next_->Zero(offset, length, flags);
  }
  Task<IoResult> Discard(uint64_t offset, uint64_t length) override { return next_->Discard(offset, length); }
  Task<IoResult> Prefetch(uint64_t offset, uint64_t length) override {
    return next_->Prefetch(offset, length);
  }
  Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) override {
    return next_->Extents(offset, length, out);
  }

 protected:
  BlockChannel& next() { return *next_; }

 private:
  const std::unique_ptr<BlockChannel> next_;
};

// Thread-safe as BlockDevice is. Keeps the next device alive.
class ForwardingDevice : public BlockDevice {
 public:
  explicit ForwardingDevice(std::shared_ptr<BlockDevice> next) : next_(std::move(next)) {}

  const BlockTraits& traits() const override { return next_->traits(); }
  uint64_t size() const override { return next_->size(); }
  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override {
    return next_->OpenChannel(reactor);
  }
  std::vector<std::shared_ptr<StatusContext>> contexts() const override { return next_->contexts(); }
  absl::Status Resize(uint64_t new_size) override { return next_->Resize(new_size); }

 protected:
  BlockDevice& next() const { return *next_; }

 private:
  const std::shared_ptr<BlockDevice> next_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_FILTER_FORWARDING_H_
