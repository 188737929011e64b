// Arbitrary bytes as a qcow2 file: opening it and reading all of it, its map, bitmaps and snapshots must
// neither crash nor take memory or time that the file's size does not explain.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "image/memory/memory_device.h"
#include "image/qcow2/qcow2_device.h"
#include "tests/fuzz/fuzz_reactor.h"
#include "tests/fuzz/require.h"

namespace berth {
namespace {

// Of a disk that can have any size.
constexpr uint64_t kReadAtEachEnd = uint64_t{1} << 20;

Task<void> ReadAll(BlockDevice& device) {
  auto channel = device.OpenChannel(FuzzReactor());
  Require(channel.ok(), "no channel");
  const uint64_t size = device.size();
  std::vector<uint8_t> buffer(65'536);
  for (const uint64_t begin : {uint64_t{0}, size - std::min(size, kReadAtEachEnd)}) {
    for (uint64_t at = begin; at < std::min(size, begin + kReadAtEachEnd); at += buffer.size()) {
      const size_t length = std::min<uint64_t>(buffer.size(), size - at);
      (void)co_await (*channel)->Read(at, absl::MakeSpan(buffer).subspan(0, length));
    }
  }
  for (const std::shared_ptr<StatusContext>& context : device.contexts()) {
    auto status = context->Open(FuzzReactor());
    Require(status.ok(), "no status channel");
    std::vector<StatusExtent> extents;
    if (size == 0 || !(co_await (*status)->Extents(0, size, &extents)).ok()) continue;
    uint64_t covered = 0;
    for (const StatusExtent& extent : extents) covered += extent.length;
    Require(covered > 0 && covered <= size && extents.size() <= kMaxExtents, "statuses");
  }
  for (uint64_t at = 0, calls = 0; at < size && calls < 16; ++calls) {
    std::vector<Extent> extents;
    if (!(co_await (*channel)->Extents(at, size - at, &extents)).ok()) break;
    Require(!extents.empty() && extents.size() <= kMaxExtents, "number of extents");
    for (const Extent& extent : extents) {
      Require(extent.length > 0 && extent.length <= size - at, "length of an extent");
      at += extent.length;
    }
  }
}

// Writes, zeroes and discards here and there, and reads it back.
Task<void> ChangeSome(BlockDevice& device) {
  auto channel = device.OpenChannel(FuzzReactor());
  Require(channel.ok(), "no channel");
  const uint64_t size = device.size();
  const std::vector<uint8_t> data(3000, 0x5a);
  std::vector<uint8_t> read(data.size());
  for (uint64_t i = 0; i < 24; ++i) {
    const uint64_t offset = i % 3 == 2 ? size - std::min(size, (i + 1) * 3000) : i * 2500;
    if (offset >= size) break;
    const uint64_t length = std::min<uint64_t>(data.size(), size - offset);
    if (i % 5 == 3) {
      (void)co_await (*channel)->Zero(offset, length, ZeroFlags::kNone);
    } else if (i % 5 == 4) {
      (void)co_await (*channel)->Discard(offset, length);
    } else {
      const absl::Span<const uint8_t> part = absl::MakeConstSpan(data).subspan(0, length);
      if (!(co_await (*channel)->Write(offset, part, WriteFlags::kNone)).ok()) continue;
      const IoResult result = co_await (*channel)->Read(offset, absl::MakeSpan(read).subspan(0, length));
      Require(!result.ok() || absl::MakeConstSpan(read).subspan(0, length) == part, "what was written");
    }
    if (i % 7 == 6) (void)co_await (*channel)->Flush();
  }
}

void OpenAndRead(const std::shared_ptr<BlockDevice>& file, const std::string& snapshot,
                 bool writable = false) {
  const auto header = ReadQcow2Header(*file);
  if (!header.ok()) return;
  Qcow2Files files = {file, nullptr, nullptr};
  if (header->has_data_file()) files.data = *MemoryDevice::Create(1 << 20);
  if (!header->backing_file.empty()) files.backing = *MemoryDevice::Create(100'000);
  Qcow2Options options;
  options.snapshot = snapshot;
  options.l2_cache_bytes = 65'536;
  options.writable = writable;
  options.bitmaps = true;
  const auto device = Qcow2Device::Open(std::move(files), *header, options);
  if (!device.ok()) return;
  if (writable && (*device)->size() > 0) {
    const auto change = [&]() { return ChangeSome(**device); };
    RunOn(FuzzReactor(), change);
  }
  const auto read = [&]() { return ReadAll(**device); };
  RunOn(FuzzReactor(), read);
}

std::shared_ptr<BlockDevice> FileOf(absl::Span<const uint8_t> content) {
  std::shared_ptr<BlockDevice> file = *MemoryDevice::Create(content.size());
  const auto fill = [&]() -> Task<IoResult> {
    auto channel = file->OpenChannel(FuzzReactor());
    co_return co_await (*channel)->Write(0, content, WriteFlags::kNone);
  };
  Require(RunOn(FuzzReactor(), fill).ok(), "no memory");
  return file;
}

}  // namespace
}  // namespace berth

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::shared_ptr<berth::BlockDevice> file = berth::FileOf(absl::MakeConstSpan(data, size));
  berth::OpenAndRead(file, "");
  berth::OpenAndRead(file, "1");
  berth::OpenAndRead(file, "", /*writable=*/true);
  return 0;
}
