#include "tests/conformance/block_device_conformance.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"

namespace berth {
namespace {

constexpr uint64_t kReadOnlySeed = 77;
constexpr size_t kPiece = size_t{1} << 20;

// The middle third stays as it is, so that there may be a hole.
bool IsFilled(uint64_t offset, uint64_t size) { return offset < size / 3 || offset >= size / 3 * 2; }

std::vector<uint8_t> ReadOnlyContent(uint64_t size) {
  std::vector<uint8_t> content = PatternBytes(0, size, kReadOnlySeed);
  for (uint64_t i = 0; i < size; ++i) {
    if (!IsFilled(i, size)) content[i] = 0;
  }
  return content;
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const ConformanceCase& test_case) {
  return out << test_case.name;
}

absl::Status FillForReadOnlyTests(BlockDevice& device) {
  absl::StatusOr<std::unique_ptr<ReactorPool>> pool = ReactorPool::Create(1);
  if (!pool.ok()) return pool.status();
  BlockingChannel channel(device, (*pool)->at(0));
  const std::vector<uint8_t> content = ReadOnlyContent(device.size());
  const absl::Span<const uint8_t> all(content);
  const uint64_t third = device.size() / 3;
  for (const auto& part :
       {std::make_pair(uint64_t{0}, third), std::make_pair(third * 2, device.size() - third * 2)}) {
    const IoResult result = channel.Write(part.first, all.subspan(part.first, part.second));
    if (!result.ok()) return absl::InternalError(absl::StrCat("write: errno ", result.error));
  }
  const IoResult result = channel.Flush();
  return result.ok() ? absl::OkStatus() : absl::InternalError(absl::StrCat("flush: errno ", result.error));
}

void BlockDeviceConformance::SetUp() {
  auto pool = ReactorPool::Create(kReactors);
  ASSERT_TRUE(pool.ok()) << pool.status();
  pool_ = *std::move(pool);
  auto device = GetParam().make(size());
  ASSERT_TRUE(device.ok()) << device.status();
  device_ = *std::move(device);
  ASSERT_EQ(device_->size(), size());
}

void BlockDeviceConformance::TearDown() {
  // A device that is a connection takes leave of its server on the reactors.
  device_.reset();
  pool_.reset();
}

ReferenceModel BlockDeviceConformance::InitialModel() const {
  ReferenceModel model(size(), GetParam().keeps_data);
  if (!writable()) model.Write(0, ReadOnlyContent(size()));
  return model;
}

uint64_t BlockDeviceConformance::Seed() {
  const char* chosen = getenv("BERTH_CONFORMANCE_SEED");
  return chosen == nullptr ? 20'240'229 : strtoull(chosen, nullptr, 10);
}

void BlockDeviceConformance::ExpectContent(BlockingChannel& channel, const ReferenceModel& model) {
  for (uint64_t offset = 0; offset < model.size(); offset += kPiece) {
    const size_t length = std::min<uint64_t>(kPiece, model.size() - offset);
    ASSERT_TRUE(model.Agrees(offset, channel.Read(offset, length)));
  }
}

void BlockDeviceConformance::ExpectValidExtents(BlockingChannel& channel, uint64_t offset, uint64_t length) {
  const uint64_t end = offset + length;
  // What is in the vector already is not the callee's to change, be it of the same kind or not.
  for (const Extent& before : {Extent{1, true, false}, Extent{1, false, true}}) {
    for (uint64_t at = offset; at < end;) {
      std::vector<Extent> extents = {before};
      ASSERT_TRUE(channel.Extents(at, end - at, &extents).ok());
      ASSERT_GE(extents.size(), 2u) << "no extent at " << at;
      ASSERT_EQ(extents[0], before);
      ASSERT_LE(extents.size() - 1, kMaxExtents);
      for (size_t i = 1; i < extents.size(); ++i) {
        const Extent& extent = extents[i];
        ASSERT_GT(extent.length, 0u);
        ASSERT_LE(extent.length, end - at) << "more than asked at " << at;
        ASSERT_FALSE(i > 1 && extent.SameKind(extents[i - 1])) << "neighbours of a kind at " << at;
        for (uint64_t done = 0; extent.zero && done < extent.length; done += kPiece) {
          const std::vector<uint8_t> bytes =
              channel.Read(at + done, std::min<uint64_t>(kPiece, extent.length - done));
          ASSERT_TRUE(bytes == std::vector<uint8_t>(bytes.size(), 0))
              << "an extent said to be zero is not: " << at << "+" << extent.length;
        }
        at += extent.length;
      }
    }
  }
}

}  // namespace berth
