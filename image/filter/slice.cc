#include "image/filter/slice.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace berth {
namespace {

class SliceChannel final : public ForwardingChannel {
 public:
  SliceChannel(std::unique_ptr<BlockChannel> next, uint64_t start)
      : ForwardingChannel(std::move(next)), start_(start) {}

  Task<IoResult> Read(uint64_t offset, absl::Span<uint8_t> out) override {
    return next().Read(start_ + offset, out);
  }
  Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) override {
    return next().Write(start_ + offset, data, flags);
  }
  Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) override {
    return next().Zero(start_ + offset, length, flags);
  }
  Task<IoResult> Discard(uint64_t offset, uint64_t length) override {
    return next().Discard(start_ + offset, length);
  }
  Task<IoResult> Prefetch(uint64_t offset, uint64_t length) override {
    return next().Prefetch(start_ + offset, length);
  }
  Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) override {
    return next().Extents(start_ + offset, length, out);
  }

 private:
  const uint64_t start_;
};

class SliceStatusChannel final : public StatusChannel {
 public:
  SliceStatusChannel(std::unique_ptr<StatusChannel> next, uint64_t start)
      : next_(std::move(next)), start_(start) {}

  Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<StatusExtent>* out) override {
    return next_->Extents(start_ + offset, length, out);
  }

 private:
  const std::unique_ptr<StatusChannel> next_;
  const uint64_t start_;
};

class SliceContext final : public StatusContext {
 public:
  SliceContext(std::shared_ptr<StatusContext> next, uint64_t start)
      : StatusContext(next->name(), next->wide()), next_(std::move(next)), start_(start) {}

  absl::StatusOr<std::unique_ptr<StatusChannel>> Open(Reactor& reactor) override {
    absl::StatusOr<std::unique_ptr<StatusChannel>> channel = next_->Open(reactor);
    if (!channel.ok()) return channel.status();
    return std::make_unique<SliceStatusChannel>(*std::move(channel), start_);
  }

 private:
  const std::shared_ptr<StatusContext> next_;
  const uint64_t start_;
};

// A slice that begins inside a unit of the next device has no alignment worth keeping but that of its offset.
BlockTraits TraitsAt(BlockTraits traits, uint64_t offset, bool fixed) {
  while (offset % traits.preferred_alignment != 0) traits.preferred_alignment /= 2;
  if (fixed) traits.resizable = false;
  return traits;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SliceDevice>> SliceDevice::Create(std::shared_ptr<BlockDevice> next,
                                                                 uint64_t offset, uint64_t length) {
  const uint64_t size = next->size();
  if (offset > size) {
    return absl::OutOfRangeError(
        absl::StrCat("offset ", offset, " lies past the end of the image, which has ", size, " bytes"));
  }
  if (length > size - offset) {
    return absl::OutOfRangeError(absl::StrCat("offset ", offset, " and length ", length,
                                              " reach past the end of the image, which has ", size,
                                              " bytes; the length may be at most ", size - offset));
  }
  return std::unique_ptr<SliceDevice>(new SliceDevice(std::move(next), offset, length));
}

SliceDevice::SliceDevice(std::shared_ptr<BlockDevice> next, uint64_t offset, uint64_t length)
    : ForwardingDevice(std::move(next)),
      offset_(offset),
      length_(length),
      traits_(TraitsAt(ForwardingDevice::traits(), offset, length != 0)) {}

uint64_t SliceDevice::size() const {
  if (length_ != 0) return length_;
  return std::max(next().size(), offset_) - offset_;
}

absl::StatusOr<std::unique_ptr<BlockChannel>> SliceDevice::OpenChannel(Reactor& reactor) {
  absl::StatusOr<std::unique_ptr<BlockChannel>> channel = next().OpenChannel(reactor);
  if (!channel.ok()) return channel.status();
  return std::make_unique<SliceChannel>(*std::move(channel), offset_);
}

std::vector<std::shared_ptr<StatusContext>> SliceDevice::contexts() const {
  std::vector<std::shared_ptr<StatusContext>> contexts = next().contexts();
  for (std::shared_ptr<StatusContext>& context : contexts) {
    context = std::make_shared<SliceContext>(std::move(context), offset_);
  }
  return contexts;
}

absl::Status SliceDevice::Resize(uint64_t new_size) {
  if (length_ != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("a slice of a fixed length (", length_, " bytes at offset ", offset_,
                     ") cannot be resized; a slice up to the end of the image can"));
  }
  if (new_size > std::numeric_limits<uint64_t>::max() - offset_) {
    return absl::OutOfRangeError(absl::StrCat("offset ", offset_, " and size ", new_size, " overflow"));
  }
  return next().Resize(offset_ + new_size);
}

}  // namespace berth
