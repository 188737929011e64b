// "Snapshots": the directory of internal snapshots. Pure; no I/O.
#ifndef BERTH_IMAGE_QCOW2_FORMAT_SNAPSHOT_TABLE_H_
#define BERTH_IMAGE_QCOW2_FORMAT_SNAPSHOT_TABLE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "image/qcow2/format/header.h"

namespace berth::qcow2 {

inline constexpr uint64_t kMaxSnapshotTableBytes = uint64_t{64} << 20;
inline constexpr uint32_t kMaxSnapshotExtraBytes = 1024;

struct Snapshot {
  std::string id;
  std::string name;
  uint64_t l1_table_offset = 0;
  uint32_t l1_size = 0;  // Entries.
  uint32_t date_seconds = 0;
  uint32_t date_nanoseconds = 0;
  uint64_t vm_clock_nanoseconds = 0;
  uint64_t vm_state_size = 0;         // Bytes.
  std::optional<uint64_t> disk_size;  // Bytes; none in old images: as the image's.
  std::optional<uint64_t> icount;
  std::vector<uint8_t> unknown_extra;  // Behind the fields above, kept as it is.

  bool operator==(const Snapshot&) const = default;
};

// At most how many bytes the table of `header` has; the file may end earlier.
uint64_t SnapshotTableBytes(const Header& header);

// `table` begins with the snapshot table and may go on behind it. INVALID_ARGUMENT names snapshot and field;
// L1 tables are checked with CheckL1Table().
absl::StatusOr<std::vector<Snapshot>> DecodeSnapshotTable(absl::Span<const uint8_t> table,
                                                          const Header& header, uint64_t file_size);

std::vector<uint8_t> EncodeSnapshotTable(const std::vector<Snapshot>& snapshots);

// The one with this id, else the first with this name; null where there is none.
const Snapshot* FindSnapshot(const std::vector<Snapshot>& snapshots, const std::string& id_or_name);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_FORMAT_SNAPSHOT_TABLE_H_
