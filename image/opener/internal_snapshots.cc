#include "image/opener/internal_snapshots.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "image/io/unique_fd.h"
#include "image/qcow2/format/header.h"
#include "image/qcow2/format/snapshot_table.h"
#include "image/qcow2/metadata_reader.h"
#include "image/qcow2/qcow2_device.h"
#include "image/raw/raw_device.h"

namespace berth {
namespace {

absl::StatusOr<std::vector<qcow2::Snapshot>> ReadSnapshots(const std::string& path, const ImageRoots& roots) {
  RawOptions options;
  options.read_only = true;
  options.lock = LockMode::kNone;
  options.may_be_empty = true;
  absl::StatusOr<UniqueFd> fd = roots.OpenFile(path, RawDevice::OpenFlags(options));
  if (!fd.ok()) return fd.status();
  absl::StatusOr<std::shared_ptr<RawDevice>> file = RawDevice::Adopt(*std::move(fd), path, options);
  if (!file.ok()) return file.status();
  absl::StatusOr<qcow2::Header> header = ReadQcow2Header(**file);
  if (!header.ok()) return header.status();
  const uint64_t size = (*file)->size();
  const uint64_t offset = std::min(header->snapshots_offset, size);
  std::vector<uint8_t> table(std::min(qcow2::SnapshotTableBytes(*header), size - offset));
  if (!table.empty()) {
    absl::Status status = qcow2::ReadMetadata(**file, offset, absl::MakeSpan(table));
    if (!status.ok()) return status;
  }
  return qcow2::DecodeSnapshotTable(table, *header, size);
}

}  // namespace

absl::StatusOr<std::string> FindInternalSnapshot(const std::string& path, const ImageRoots& roots,
                                                 const std::optional<std::string>& id,
                                                 const std::optional<std::string>& name) {
  absl::StatusOr<std::vector<qcow2::Snapshot>> snapshots = ReadSnapshots(path, roots);
  if (!snapshots.ok()) return snapshots.status();
  for (qcow2::Snapshot& snapshot : *snapshots) {
    if (id.value_or(snapshot.id) == snapshot.id && name.value_or(snapshot.name) == snapshot.name) {
      return std::move(snapshot.id);
    }
  }
  std::string wanted;
  if (id.has_value()) absl::StrAppend(&wanted, " the id \"", id->substr(0, 200), "\"");
  if (name.has_value())
    absl::StrAppend(&wanted, id ? " and" : "", " the name \"", name->substr(0, 200), "\"");
  return absl::NotFoundError(absl::StrCat("\"", path, "\" has no snapshot with", wanted,
                                          "; qemu-img snapshot -l lists those it has"));
}

}  // namespace berth
