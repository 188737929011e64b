// Thousands of random operations, one after the other, on several channels, compared with the reference
// model.
#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/conformance/block_device_conformance.h"

namespace berth {
namespace {

constexpr int kSteps = 4000;

// Numbers that are the same with every standard library, unlike those of <random>'s distributions.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  uint64_t Below(uint64_t limit) { return engine_() % limit; }

  // A range inside `size`: mostly small, at times large, half of the time on sector boundaries.
  std::pair<uint64_t, uint64_t> Range(uint64_t size) {
    uint64_t length = 1 + Below(uint64_t{1} << (1 + Below(Below(20) == 0 ? 20 : 16)));
    length = std::min(length, size);
    uint64_t offset = Below(size - length + 1);
    if (Below(2) == 0) {
      const uint64_t unit = Below(2) == 0 ? 512 : 4096;
      offset = offset / unit * unit;
      length = std::min(std::max(unit, length / unit * unit), size - offset);
    }
    return {offset, length};
  }

 private:
  std::mt19937_64 engine_;
};

TEST_P(BlockDeviceConformance, RandomProgram) {
  const uint64_t seed = Seed();
  Random random(seed);
  ReferenceModel model = InitialModel();
  std::vector<std::unique_ptr<BlockingChannel>> channels;
  for (int i = 0; i < 2 * kReactors; ++i) {
    channels.push_back(std::make_unique<BlockingChannel>(*device_, pool_->at(i % kReactors)));
  }
  for (int step = 0; step < kSteps; ++step) {
    BlockingChannel& channel = *channels[random.Below(channels.size())];
    const auto [offset, length] = random.Range(model.size());
    const uint64_t choice = random.Below(100);
    SCOPED_TRACE(absl::StrCat("BERTH_CONFORMANCE_SEED=", seed, ", step ", step, ", choice ", choice, ", ",
                              offset, "+", length, " of ", model.size()));
    if (choice < 30 || (!writable() && choice < 90)) {
      ASSERT_TRUE(model.Agrees(offset, channel.Read(offset, length)));
    } else if (choice < 60) {
      const std::vector<uint8_t> data = PatternBytes(offset, length, step);
      const WriteFlags flags = random.Below(8) == 0 ? WriteFlags::kFua : WriteFlags::kNone;
      ASSERT_TRUE(channel.Write(offset, data, flags).ok());
      model.Write(offset, data);
    } else if (choice < 75) {
      const auto flags = static_cast<ZeroFlags>(random.Below(8));
      const IoResult result = channel.Zero(offset, length, flags);
      if (Has(flags, ZeroFlags::kFastOnly) && result.error == ENOTSUP) continue;
      ASSERT_TRUE(result.ok()) << "errno " << result.error;
      model.Zero(offset, length);
    } else if (choice < 83) {
      ASSERT_TRUE(channel.Discard(offset, length).ok());
      model.Discard(offset, length);
    } else if (choice < 89) {
      ASSERT_TRUE(channel.Flush().ok());
    } else if (choice < 95) {
      ExpectValidExtents(channel, offset, length);
      if (HasFatalFailure()) return;
    } else if (choice < 98) {
      ASSERT_TRUE(channel.Prefetch(offset, length).ok());
    } else if (device_->traits().resizable) {
      const uint64_t new_size = size() / 2 / 512 * 512 + random.Below(size() / 512) * 512;
      const absl::Status status = device_->Resize(new_size);
      ASSERT_TRUE(status.ok()) << status;
      model.Resize(new_size);
      ASSERT_EQ(device_->size(), new_size);
    }
  }
  SCOPED_TRACE(absl::StrCat("BERTH_CONFORMANCE_SEED=", seed, ", at the end"));
  for (const std::unique_ptr<BlockingChannel>& channel : channels) ExpectContent(*channel, model);
}

}  // namespace
}  // namespace berth
