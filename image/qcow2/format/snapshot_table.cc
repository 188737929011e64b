#include "image/qcow2/format/snapshot_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/io/big_endian.h"

namespace berth::qcow2 {
namespace {

constexpr size_t kFixedBytes = 40;
constexpr size_t kMaxStringBytes = 65'535;
// Of the extra data: the size of the VM state, the disk's size, and the instruction counter.
constexpr size_t kKnownExtraBytes = 24;
constexpr uint32_t kRequiredExtraBytesV3 = 16;

size_t RoundUp8(size_t bytes) { return (bytes + 7) / 8 * 8; }

template <typename... Parts>
absl::Status Broken(size_t index, const Parts&... parts) {
  return absl::InvalidArgumentError(
      absl::StrCat("broken qcow2 image: entry ", index, " of the snapshot table ", parts...));
}

void DecodeExtra(absl::Span<const uint8_t> extra, Snapshot* snapshot) {
  if (extra.size() >= 8) snapshot->vm_state_size = Load64(&extra[0]);
  if (extra.size() >= 16) snapshot->disk_size = Load64(&extra[8]);
  if (extra.size() >= kKnownExtraBytes) {
    snapshot->icount = Load64(&extra[16]);
    snapshot->unknown_extra.assign(extra.begin() + kKnownExtraBytes, extra.end());
  }
}

std::vector<uint8_t> EncodeExtra(const Snapshot& snapshot) {
  std::vector<uint8_t> extra(8);
  Store64(&extra[0], snapshot.vm_state_size);
  if (!snapshot.disk_size.has_value()) return extra;
  extra.resize(16);
  Store64(&extra[8], *snapshot.disk_size);
  if (!snapshot.icount.has_value()) return extra;
  extra.resize(24);
  Store64(&extra[16], *snapshot.icount);
  extra.insert(extra.end(), snapshot.unknown_extra.begin(), snapshot.unknown_extra.end());
  return extra;
}

std::string Text(absl::Span<const uint8_t> bytes) { return std::string(bytes.begin(), bytes.end()); }

}  // namespace

uint64_t SnapshotTableBytes(const Header& header) {
  constexpr uint64_t kMaxEntry = kFixedBytes + kMaxSnapshotExtraBytes + 2 * kMaxStringBytes + 7;
  return std::min(kMaxSnapshotTableBytes, header.snapshot_count * kMaxEntry);
}

absl::StatusOr<std::vector<Snapshot>> DecodeSnapshotTable(absl::Span<const uint8_t> table,
                                                          const Header& header, uint64_t file_size) {
  std::vector<Snapshot> snapshots;
  for (size_t i = 0; i < header.snapshot_count; ++i) {
    if (table.size() < kFixedBytes) return Broken(i, "lies behind the end of the file");
    Snapshot snapshot;
    snapshot.l1_table_offset = Load64(&table[0]);
    snapshot.l1_size = Load32(&table[8]);
    const size_t id_bytes = Load16(&table[12]);
    const size_t name_bytes = Load16(&table[14]);
    snapshot.date_seconds = Load32(&table[16]);
    snapshot.date_nanoseconds = Load32(&table[20]);
    snapshot.vm_clock_nanoseconds = Load64(&table[24]);
    snapshot.vm_state_size = Load32(&table[32]);
    const uint32_t extra_bytes = Load32(&table[36]);
    if (extra_bytes > kMaxSnapshotExtraBytes) {
      return Broken(i, "has ", extra_bytes, " bytes of extra data; at most ", kMaxSnapshotExtraBytes,
                    " are possible");
    }
    if (header.version >= 3 && extra_bytes < kRequiredExtraBytesV3) {
      return Broken(i, "has ", extra_bytes, " bytes of extra data; version 3 has at least ",
                    kRequiredExtraBytesV3);
    }
    const size_t bytes = kFixedBytes + extra_bytes + id_bytes + name_bytes;
    if (bytes > table.size()) {
      return Broken(i, "has ", bytes, " bytes and ends behind the file, or behind the ",
                    kMaxSnapshotTableBytes, " bytes that the table may have");
    }
    DecodeExtra(table.subspan(kFixedBytes, extra_bytes), &snapshot);
    snapshot.id = Text(table.subspan(kFixedBytes + extra_bytes, id_bytes));
    snapshot.name = Text(table.subspan(kFixedBytes + extra_bytes + id_bytes, name_bytes));
    const absl::Status status = CheckL1Table(
        header, absl::StrCat("the L1 table of entry ", i, " of the snapshot table"), snapshot.l1_table_offset,
        snapshot.l1_size, snapshot.disk_size.value_or(header.size), file_size);
    if (!status.ok()) return status;
    snapshots.push_back(std::move(snapshot));
    table.remove_prefix(std::min(table.size(), RoundUp8(bytes)));
  }
  return snapshots;
}

std::vector<uint8_t> EncodeSnapshotTable(const std::vector<Snapshot>& snapshots) {
  std::vector<uint8_t> table;
  for (const Snapshot& snapshot : snapshots) {
    const std::vector<uint8_t> extra = EncodeExtra(snapshot);
    const size_t at = table.size();
    table.resize(at + kFixedBytes);
    uint8_t* const entry = &table[at];
    Store64(entry, snapshot.l1_table_offset);
    Store32(entry + 8, snapshot.l1_size);
    Store16(entry + 12, static_cast<uint16_t>(snapshot.id.size()));
    Store16(entry + 14, static_cast<uint16_t>(snapshot.name.size()));
    Store32(entry + 16, snapshot.date_seconds);
    Store32(entry + 20, snapshot.date_nanoseconds);
    Store64(entry + 24, snapshot.vm_clock_nanoseconds);
    // The extra data has all of it.
    Store32(entry + 32, static_cast<uint32_t>(std::min<uint64_t>(snapshot.vm_state_size, ~uint32_t{0})));
    Store32(entry + 36, static_cast<uint32_t>(extra.size()));
    table.insert(table.end(), extra.begin(), extra.end());
    table.insert(table.end(), snapshot.id.begin(), snapshot.id.end());
    table.insert(table.end(), snapshot.name.begin(), snapshot.name.end());
    table.resize(RoundUp8(table.size()));
  }
  return table;
}

const Snapshot* FindSnapshot(const std::vector<Snapshot>& snapshots, const std::string& id_or_name) {
  for (const Snapshot& snapshot : snapshots) {
    if (snapshot.id == id_or_name) return &snapshot;
  }
  for (const Snapshot& snapshot : snapshots) {
    if (snapshot.name == id_or_name) return &snapshot;
  }
  return nullptr;
}

}  // namespace berth::qcow2
