#include "tests/conformance/blocking_channel.h"

#include <utility>

#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"

namespace berth {

BlockingChannel::BlockingChannel(BlockDevice& device, Reactor& reactor) : reactor_(reactor) {
  auto open = [&]() -> Task<void> {
    absl::StatusOr<std::unique_ptr<BlockChannel>> channel = device.OpenChannel(reactor);
    if (channel.ok()) {
      channel_ = *std::move(channel);
    } else {
      ADD_FAILURE() << channel.status();
    }
    co_return;
  };
  RunOn(reactor_, open);
}

BlockingChannel::~BlockingChannel() {
  auto close = [this]() -> Task<void> {
    channel_.reset();
    co_return;
  };
  RunOn(reactor_, close);
}

template <typename Operation>
IoResult BlockingChannel::Run(Operation operation) {
  auto run = [&]() -> Task<IoResult> { co_return co_await operation(*channel_); };
  return RunOn(reactor_, run);
}

IoResult BlockingChannel::Read(uint64_t offset, absl::Span<uint8_t> out) {
  return Run([&](BlockChannel& channel) { return channel.Read(offset, out); });
}

std::vector<uint8_t> BlockingChannel::Read(uint64_t offset, size_t length) {
  std::vector<uint8_t> bytes(length, 0xee);
  const IoResult result = Read(offset, absl::MakeSpan(bytes));
  EXPECT_TRUE(result.ok()) << "read of " << offset << "+" << length << ": errno " << result.error;
  if (!result.ok()) bytes.clear();
  return bytes;
}

IoResult BlockingChannel::Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) {
  return Run([&](BlockChannel& channel) { return channel.Write(offset, data, flags); });
}

IoResult BlockingChannel::Flush() {
  return Run([](BlockChannel& channel) { return channel.Flush(); });
}

IoResult BlockingChannel::Zero(uint64_t offset, uint64_t length, ZeroFlags flags) {
  return Run([&](BlockChannel& channel) { return channel.Zero(offset, length, flags); });
}

IoResult BlockingChannel::Discard(uint64_t offset, uint64_t length) {
  return Run([&](BlockChannel& channel) { return channel.Discard(offset, length); });
}

IoResult BlockingChannel::Prefetch(uint64_t offset, uint64_t length) {
  return Run([&](BlockChannel& channel) { return channel.Prefetch(offset, length); });
}

IoResult BlockingChannel::Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) {
  return Run([&](BlockChannel& channel) { return channel.Extents(offset, length, out); });
}

}  // namespace berth
