// The suite that every device has to pass, over raw images in every cache mode, on a disk and in memory.
#include <memory>
#include <string>
#include <vector>

#include "image/raw/raw_device.h"
#include "image/raw/temporary_image.h"
#include "tests/conformance/block_device_conformance.h"

namespace berth {
namespace {

// A file and the device on it, which goes first.
struct Fixture {
  Fixture(const std::string& directory, uint64_t size) : image(directory, size) {}
  TemporaryImage image;
  std::shared_ptr<RawDevice> device;
};

absl::StatusOr<std::shared_ptr<BlockDevice>> Make(const std::string& directory, uint64_t size,
                                                  const RawOptions& options) {
  auto fixture = std::make_shared<Fixture>(directory, size);
  if (options.read_only) {
    auto writable = RawDevice::Open(fixture->image.path(), {});
    if (!writable.ok()) return writable.status();
    if (absl::Status status = FillForReadOnlyTests(**writable); !status.ok()) return status;
  }
  auto device = RawDevice::Open(fixture->image.path(), options);
  if (!device.ok()) return device.status();
  fixture->device = *std::move(device);
  return std::shared_ptr<BlockDevice>(fixture, fixture->device.get());
}

std::vector<ConformanceCase> Cases() {
  struct Mode {
    const char* name;
    RawOptions options;
  };
  const Mode modes[] = {
      {"Writeback", {.cache = CacheMode::kWriteback}},
      {"Writethrough", {.cache = CacheMode::kWritethrough}},
      {"None", {.cache = CacheMode::kNone}},
      {"Directsync", {.cache = CacheMode::kDirectsync}},
      {"Unsafe", {.cache = CacheMode::kUnsafe}},
      {"NoDiscard", {.discard = DiscardMode::kIgnore}},
      {"ReadOnly", {.read_only = true}},
      {"ReadOnlyDirect", {.read_only = true, .cache = CacheMode::kNone}},
  };
  std::vector<ConformanceCase> cases;
  for (const Mode& mode : modes) {
    for (const bool in_memory : {false, true}) {
      const std::string directory = in_memory ? MemoryDirectory() : DiskDirectory();
      ConformanceCase one;
      one.name = std::string(mode.name) + (in_memory ? "InMemory" : "OnDisk");
      one.make = [directory, options = mode.options](uint64_t size) {
        return Make(directory, size, options);
      };
      cases.push_back(one);
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Raw, BlockDeviceConformance, testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace berth
