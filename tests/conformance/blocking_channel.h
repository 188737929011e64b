// BlockingChannel: a BlockChannel for a test's own thread: each call runs on the channel's reactor and waits.
//
// Thread: any but the reactor's; one at a time. Lifetime: ends before its device and reactor.
#ifndef BERTH_TESTS_CONFORMANCE_BLOCKING_CHANNEL_H_
#define BERTH_TESTS_CONFORMANCE_BLOCKING_CHANNEL_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "image/block/block_device.h"
#include "image/io/reactor.h"

namespace berth {

class BlockingChannel {
 public:
  // Fails the test where the device opens no channel.
  BlockingChannel(BlockDevice& device, Reactor& reactor);
  BlockingChannel(const BlockingChannel&) = delete;
  BlockingChannel& operator=(const BlockingChannel&) = delete;
  ~BlockingChannel();

  IoResult Read(uint64_t offset, absl::Span<uint8_t> out);
  // The bytes, or none after a failure, which is a failure of the test.
  std::vector<uint8_t> Read(uint64_t offset, size_t length);
  IoResult Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags = WriteFlags::kNone);
  IoResult Flush();
  IoResult Zero(uint64_t offset, uint64_t length, ZeroFlags flags = ZeroFlags::kNone);
  IoResult Discard(uint64_t offset, uint64_t length);
  IoResult Prefetch(uint64_t offset, uint64_t length);
  IoResult Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out);

 private:
  template <typename Operation>
  IoResult Run(Operation operation);

  Reactor& reactor_;
  std::unique_ptr<BlockChannel> channel_;  // Used and destroyed on the reactor.
};

}  // namespace berth

#endif  // BERTH_TESTS_CONFORMANCE_BLOCKING_CHANNEL_H_
