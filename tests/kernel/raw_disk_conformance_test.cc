// The suite that every device has to pass, over raw images that are disks.
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "image/block/block_device.h"
#include "image/raw/raw_device.h"
#include "tests/conformance/block_device_conformance.h"
#include "tests/kernel/test_disk.h"

namespace berth {
namespace {

constexpr int kMiB = 4;
// Of the loop device: not a multiple of a page, so that the last one is a part.
constexpr uint64_t kOddSize = (uint64_t{3} << 20) + 1536;

// The disks, which take seconds to make: made once, gone with the machine.
TestDisk& ScsiDisk() {
  static TestDisk& disk = *new TestDisk(TestDisk::Scsi(kMiB, 4096));
  return disk;
}
TestDisk& LoopDisk() {
  static TestDisk& disk = *new TestDisk(TestDisk::Loop(kOddSize));
  return disk;
}

absl::StatusOr<std::shared_ptr<BlockDevice>> Make(const TestDisk& disk, const RawOptions& options) {
  Shell("blkdiscard --zeroout " + disk.path());
  if (options.read_only) {
    auto writable = RawDevice::Open(disk.path(), {});
    if (!writable.ok()) return writable.status();
    if (absl::Status status = FillForReadOnlyTests(**writable); !status.ok()) return status;
  }
  return RawDevice::Open(disk.path(), options);
}

ConformanceCase Case(const char* name, TestDisk& (*disk)(), const RawOptions& options) {
  ConformanceCase one;
  one.name = name;
  one.size = disk == LoopDisk ? kOddSize : uint64_t{kMiB} << 20;
  one.make = [disk, options](uint64_t) { return Make(disk(), options); };
  return one;
}

INSTANTIATE_TEST_SUITE_P(RawDisk, BlockDeviceConformance,
                         testing::Values(Case("Scsi", ScsiDisk, {.cache = CacheMode::kWriteback}),
                                         Case("ScsiDirect", ScsiDisk, {.cache = CacheMode::kNone}),
                                         Case("ScsiDirectsync", ScsiDisk, {.cache = CacheMode::kDirectsync}),
                                         Case("ScsiNoDiscard", ScsiDisk, {.discard = DiscardMode::kIgnore}),
                                         Case("ScsiReadOnlyDirect", ScsiDisk,
                                              {.read_only = true, .cache = CacheMode::kNone}),
                                         Case("Loop", LoopDisk, {.cache = CacheMode::kWriteback}),
                                         Case("LoopDirect", LoopDisk, {.cache = CacheMode::kNone})),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace berth
