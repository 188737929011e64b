// Each filter over memory, and stacks of them.
#include <memory>
#include <utility>

#include "image/filter/detect_zeroes.h"
#include "image/filter/rate_limit.h"
#include "image/filter/read_only.h"
#include "image/filter/slice.h"
#include "image/memory/memory_device.h"
#include "tests/conformance/block_device_conformance.h"

namespace berth {
namespace {

using DeviceOr = absl::StatusOr<std::shared_ptr<BlockDevice>>;

DeviceOr Memory(uint64_t size) { return MemoryDevice::Create(size); }

DeviceOr FilledMemory(uint64_t size) {
  DeviceOr device = Memory(size);
  if (!device.ok()) return device;
  if (absl::Status status = FillForReadOnlyTests(**device); !status.ok()) return status;
  return device;
}

// A slice in the middle of what would otherwise show whatever leaks out of it.
DeviceOr Slice(uint64_t size) {
  DeviceOr memory = Memory(size + 12'345 + 4096);
  if (!memory.ok()) return memory;
  return SliceDevice::Create(*memory, 12'345, size);
}

DeviceOr SliceToTheEnd(uint64_t size) {
  DeviceOr memory = Memory(size + 65'536);
  if (!memory.ok()) return memory;
  return SliceDevice::Create(*memory, 65'536, 0);
}

DeviceOr ReadOnly(uint64_t size) {
  DeviceOr memory = FilledMemory(size);
  if (!memory.ok()) return memory;
  return std::make_shared<ReadOnlyDevice>(*memory);
}

DeviceOr Detect(uint64_t size, ZeroDetection detection) {
  DeviceOr memory = Memory(size);
  if (!memory.ok()) return memory;
  return std::make_shared<DetectZeroesDevice>(*memory, detection);
}

DeviceOr Limit(const DeviceOr& next, const RateLimits& limits) {
  if (!next.ok()) return next;
  return std::make_shared<RateLimitDevice>(*next, limits);
}

// So much a second that the tests run into the limits all the time and still end soon.
constexpr RateLimits kTight = {.operations_per_second = 100'000,
                               .bytes_per_second = uint64_t{1} << 30,
                               .burst_operations = 4,
                               .burst_bytes = 16'384};

DeviceOr Stack(uint64_t size) {
  DeviceOr slice = Limit(Slice(size + 1024), kTight);
  if (!slice.ok()) return slice;
  return SliceDevice::Create(*slice, 512, size);
}

DeviceOr ReadOnlyStack(uint64_t size) {
  DeviceOr slice = Slice(size);
  if (!slice.ok()) return slice;
  if (absl::Status status = FillForReadOnlyTests(**slice); !status.ok()) return status;
  return Limit(std::make_shared<ReadOnlyDevice>(*slice), kTight);
}

INSTANTIATE_TEST_SUITE_P(
    Filters, BlockDeviceConformance,
    testing::Values(
        ConformanceCase{.name = "slice", .make = Slice},
        ConformanceCase{.name = "slice to the end", .make = SliceToTheEnd},
        ConformanceCase{.name = "read-only", .make = ReadOnly},
        ConformanceCase{.name = "detect zeroes",
                        .make = [](uint64_t size) { return Detect(size, ZeroDetection::kOn); }},
        ConformanceCase{.name = "detect zeroes and unmap",
                        .make = [](uint64_t size) { return Detect(size, ZeroDetection::kUnmap); }},
        ConformanceCase{.name = "no limit", .make = [](uint64_t size) { return Limit(Memory(size), {}); }},
        ConformanceCase{.name = "rate limit",
                        .make = [](uint64_t size) { return Limit(Memory(size), kTight); }},
        ConformanceCase{.name = "slice over rate limit over slice", .make = Stack},
        ConformanceCase{.name = "rate limit over read-only over slice", .make = ReadOnlyStack}));

}  // namespace
}  // namespace berth
