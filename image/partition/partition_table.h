// FindPartition: where a partition lies on a disk, by its number.
//
// Master boot records (1 to 4 are their own, logical partitions in extended ones count from 5 on) and GPT,
// with blocks of 512 or 4096 bytes; where the first GPT is damaged, its copy at the end. Everything on the
// disk is hostile: what is read is bounded, and nothing is told of that does not lie on the disk.
#ifndef BERTH_IMAGE_PARTITION_PARTITION_TABLE_H_
#define BERTH_IMAGE_PARTITION_PARTITION_TABLE_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace berth {

// Bytes.
struct Partition {
  uint64_t offset = 0;
  uint64_t length = 0;

  bool operator==(const Partition&) const = default;
};

// Fills `out` from `offset` on; both lie inside the disk.
using ReadDisk = absl::FunctionRef<absl::Status(uint64_t offset, absl::Span<uint8_t> out)>;

// The partition `number`, from 1 on, of a disk of `size` bytes. NOT_FOUND where there is no table or no such
// partition, INVALID_ARGUMENT where the table or the partition's entry is broken, or what `read` says.
absl::StatusOr<Partition> FindPartition(uint64_t size, ReadDisk read, int number);

}  // namespace berth

#endif  // BERTH_IMAGE_PARTITION_PARTITION_TABLE_H_
