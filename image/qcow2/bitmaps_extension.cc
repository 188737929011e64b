#include "image/qcow2/bitmaps_extension.h"

#include <algorithm>
#include <cerrno>
#include <vector>

#include "image/io/big_endian.h"

namespace berth::qcow2 {
namespace {

constexpr uint32_t kType = 0x23852875;
constexpr uint64_t kDataBytes = 24;
// Type and length, the data, and the mark of the end.
constexpr uint64_t kBytes = 8 + kDataBytes + 8;
constexpr uint64_t kBackingOffsetAt = 8;
constexpr uint64_t kAutoclearAt = 88;
constexpr uint64_t kHeaderLengthAt = 100;

uint64_t RoundUp8(uint64_t value) { return (value + 7) / 8 * 8; }

Task<IoResult> WriteAndFlush(BlockChannel& channel, uint64_t offset, absl::Span<const uint8_t> data) {
  IoResult result = co_await channel.Write(offset, data, WriteFlags::kNone);
  if (result.ok()) result = co_await channel.Flush();
  co_return result;
}

Task<IoResult> WriteWord(BlockChannel& channel, uint64_t offset, uint64_t value) {
  uint8_t bytes[8];
  Store64(bytes, value);
  co_return co_await WriteAndFlush(channel, offset, bytes);
}

Task<IoResult> WriteInPlace(BlockChannel& channel, absl::Span<const uint8_t> first_cluster,
                            const ExtensionPlace& place, const BitmapsExtension& extension) {
  uint8_t data[kDataBytes + 8] = {};
  Store32(data, extension.count);
  Store64(data + 8, extension.directory_size);
  Store64(data + 16, extension.directory_offset);
  if (place.exists) {
    co_return co_await WriteAndFlush(channel, place.offset + 8, absl::MakeConstSpan(data, kDataBytes));
  }
  IoResult result;
  if (place.name_bytes > 0) {
    result = co_await WriteAndFlush(channel, place.name_to,
                                    first_cluster.subspan(place.name_from, place.name_bytes));
    if (result.ok()) result = co_await WriteWord(channel, kBackingOffsetAt, place.name_to);
  }
  // Behind the mark of the end nobody reads; the word that was the mark brings it all at once.
  if (result.ok()) result = co_await WriteAndFlush(channel, place.offset + 8, data);
  if (result.ok()) result = co_await WriteWord(channel, place.offset, uint64_t{kType} << 32 | kDataBytes);
  co_return result;
}

}  // namespace

std::optional<ExtensionPlace> PlaceOfBitmapsExtension(absl::Span<const uint8_t> first_cluster) {
  const uint64_t name = Load64(&first_cluster[kBackingOffsetAt]);
  const uint64_t area_end = name != 0 ? name : first_cluster.size();
  ExtensionPlace place;
  place.offset = Load32(&first_cluster[kHeaderLengthAt]);
  while (place.offset + 8 <= area_end) {
    const uint32_t type = Load32(&first_cluster[place.offset]);
    if (type == 0) break;
    if (type == kType) {
      place.exists = true;
      return place;
    }
    place.offset += 8 + RoundUp8(Load32(&first_cluster[place.offset + 4]));
  }
  const uint64_t end = place.offset + kBytes;
  if (end > first_cluster.size()) return std::nullopt;
  if (name == 0 || name >= end) return place;
  place.name_from = name;
  place.name_bytes = Load32(&first_cluster[kBackingOffsetAt + 8]);
  place.name_to = RoundUp8(std::max(end, name + place.name_bytes));
  if (place.name_to + place.name_bytes > first_cluster.size()) return std::nullopt;
  return place;
}

Task<IoResult> WriteBitmapsExtension(BlockChannel& channel, uint64_t cluster_size,
                                     std::optional<BitmapsExtension> extension) {
  std::vector<uint8_t> first_cluster(cluster_size);
  IoResult result = co_await channel.Read(0, absl::MakeSpan(first_cluster));
  if (!result.ok()) co_return result;
  const std::optional<ExtensionPlace> place = PlaceOfBitmapsExtension(first_cluster);
  if (!place.has_value()) co_return IoResult::Error(ENOSPC);
  const uint64_t autoclear = Load64(&first_cluster[kAutoclearAt]);
  result = co_await WriteWord(channel, kAutoclearAt, autoclear & ~kBitmapsConsistent);
  if (!result.ok() || !extension.has_value()) co_return result;
  result = co_await WriteInPlace(channel, first_cluster, *place, *extension);
  if (result.ok()) result = co_await WriteWord(channel, kAutoclearAt, autoclear | kBitmapsConsistent);
  co_return result;
}

}  // namespace berth::qcow2
