#include "image/opener/temporary_overlay.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "image/io/big_endian.h"
#include "image/io/unique_fd.h"
#include "image/qcow2/format/header.h"
#include "image/qcow2/qcow2_device.h"
#include "image/raw/raw_device.h"

namespace berth {
namespace {

// Where things are in the new file, in clusters.
constexpr uint64_t kRefcountTable = 1;
constexpr uint64_t kRefcountBlock = 2;
constexpr uint64_t kL1Table = 3;

absl::StatusOr<UniqueFd> MakeFile(const std::string& directory, int flags) {
  UniqueFd file(open(directory.c_str(), O_TMPFILE | flags, 0600));
  if (file) return file;
  // Not every file system has files without names.
  std::string path = directory + "/berth-overlay-XXXXXX";
  file.Reset(mkostemp(path.data(), flags & ~O_ACCMODE));
  if (!file) {
    return absl::ErrnoToStatus(errno, absl::StrCat("make a temporary file in \"", directory,
                                                   "\"; TMPDIR chooses another directory"));
  }
  unlink(path.c_str());
  return file;
}

absl::Status Write(const UniqueFd& file, uint64_t offset, absl::Span<const uint8_t> bytes) {
  const ssize_t written = pwrite(file.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
  if (written == static_cast<ssize_t>(bytes.size())) return absl::OkStatus();
  return absl::ErrnoToStatus(written < 0 ? errno : ENOSPC, "write the temporary overlay");
}

// An image with an empty map.
absl::StatusOr<qcow2::Header> WriteEmptyImage(const UniqueFd& file, uint64_t size) {
  qcow2::Header header;
  const uint64_t cluster = header.cluster_size();
  header.size = size;
  header.l1_size = static_cast<uint32_t>((size + header.l2_coverage() - 1) / header.l2_coverage());
  header.l1_table_offset = kL1Table * cluster;
  header.refcount_table_offset = kRefcountTable * cluster;
  header.refcount_table_clusters = 1;
  header.backing_file = "the image below";
  header.backing_format = "raw";
  const absl::StatusOr<std::vector<uint8_t>> bytes = qcow2::EncodeHeader(header);
  if (!bytes.ok()) return bytes.status();
  if (absl::Status status = Write(file, 0, *bytes); !status.ok()) return status;
  std::vector<uint8_t> entry(8);
  Store64(entry.data(), kRefcountBlock * cluster);
  if (absl::Status status = Write(file, kRefcountTable * cluster, entry); !status.ok()) return status;
  const uint64_t clusters = kL1Table + (uint64_t{header.l1_size} * 8 + cluster - 1) / cluster;
  std::vector<uint8_t> refcounts;
  for (uint64_t i = 0; i < clusters; ++i) refcounts.insert(refcounts.end(), {0, 1});
  if (absl::Status status = Write(file, kRefcountBlock * cluster, refcounts); !status.ok()) return status;
  if (ftruncate(file.get(), static_cast<off_t>(clusters * cluster)) != 0) {
    return absl::ErrnoToStatus(errno, "size the temporary overlay");
  }
  return header;
}

}  // namespace

absl::StatusOr<std::shared_ptr<BlockDevice>> OpenTemporaryOverlay(std::shared_ptr<BlockDevice> below,
                                                                  const std::string& directory) {
  RawOptions options;
  options.cache = CacheMode::kUnsafe;
  absl::StatusOr<UniqueFd> file = MakeFile(directory, RawDevice::OpenFlags(options));
  if (!file.ok()) return file.status();
  const absl::StatusOr<qcow2::Header> header = WriteEmptyImage(*file, below->size());
  if (!header.ok()) return header.status();
  Qcow2Files files;
  files.backing = std::move(below);
  absl::StatusOr<std::shared_ptr<RawDevice>> image =
      RawDevice::Adopt(*std::move(file), absl::StrCat(directory, "/(temporary overlay)"), options);
  if (!image.ok()) return image.status();
  files.image = *std::move(image);
  Qcow2Options qcow2;
  qcow2.writable = true;
  absl::StatusOr<std::shared_ptr<Qcow2Device>> device = Qcow2Device::Open(std::move(files), *header, qcow2);
  if (!device.ok()) return device.status();
  return std::shared_ptr<BlockDevice>(*std::move(device));
}

}  // namespace berth
