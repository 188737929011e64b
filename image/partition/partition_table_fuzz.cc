// The input is a disk; its first byte chooses the partition, and whether the disk goes on behind the input.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "absl/status/statusor.h"
#include "image/partition/partition_table.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const int number = data[0] % 16 + 1;
  const uint64_t disk = data[0] >= 128 ? uint64_t{1} << 40 : size - 1;
  const auto read = [data, size, disk](uint64_t offset, absl::Span<uint8_t> out) {
    if (offset > disk || out.size() > disk - offset) std::abort();
    std::memset(out.data(), 0, out.size());
    if (offset < size - 1)
      std::memcpy(out.data(), data + 1 + offset, std::min(out.size(), size - 1 - offset));
    return absl::OkStatus();
  };
  const absl::StatusOr<berth::Partition> found = berth::FindPartition(disk, read, number);
  if (found.ok() && (found->length == 0 || found->offset > disk || found->length > disk - found->offset)) {
    std::abort();
  }
  return 0;
}
