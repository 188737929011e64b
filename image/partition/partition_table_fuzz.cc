// The input is a disk; its first byte chooses the partition, whether the disk goes on behind the input, and
// whether the checksums of a GPT are made right, so that what is behind them is reached.
#include <zlib.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "absl/status/statusor.h"
#include "image/partition/partition_table.h"

namespace {

uint64_t Little(const uint8_t* bytes, int count) {
  uint64_t number = 0;
  while (count-- > 0) number = number << 8 | bytes[count];
  return number;
}

void StoreLittle32(uint8_t* bytes, uint64_t number) {
  for (int i = 0; i < 4; ++i) bytes[i] = static_cast<uint8_t>(number >> (8 * i));
}

void MendSums(std::vector<uint8_t>* disk) {
  if (disk->size() < 1024) return;
  uint8_t* header = disk->data() + 512;
  const uint64_t at = Little(header + 72, 8);
  const uint64_t bytes = Little(header + 80, 4) * Little(header + 84, 4);
  if (at < disk->size() / 512 && bytes <= disk->size() - at * 512) {
    StoreLittle32(header + 88, crc32(0, disk->data() + at * 512, static_cast<uInt>(bytes)));
  }
  StoreLittle32(header + 16, 0);
  StoreLittle32(header + 16,
                crc32(0, header, static_cast<uInt>(std::min<uint64_t>(Little(header + 12, 4), 512))));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const int number = data[0] % 16 + 1;
  const uint64_t disk = data[0] >= 128 ? uint64_t{1} << 40 : size - 1;
  std::vector<uint8_t> bytes(data + 1, data + size);
  if ((data[0] & 64) != 0) MendSums(&bytes);
  const auto read = [&bytes, disk](uint64_t offset, absl::Span<uint8_t> out) {
    if (offset > disk || out.size() > disk - offset) std::abort();
    std::memset(out.data(), 0, out.size());
    if (offset < bytes.size())
      std::memcpy(out.data(), &bytes[offset], std::min(out.size(), bytes.size() - offset));
    return absl::OkStatus();
  };
  const absl::StatusOr<berth::Partition> found = berth::FindPartition(disk, read, number);
  if (found.ok() && (found->length == 0 || found->offset > disk || found->length > disk - found->offset)) {
    std::abort();
  }
  return 0;
}
