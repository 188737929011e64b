#include "image/opener/qcow2_check.h"

#include <memory>
#include <utility>

#include "image/io/unique_fd.h"
#include "image/qcow2/qcow2_device.h"
#include "image/raw/raw_device.h"

namespace berth {

absl::StatusOr<qcow2::CheckResult> CheckQcow2Image(const ImageRoots& roots, const std::string& path,
                                                   qcow2::Repair repair, Progress& progress) {
  RawOptions options;
  options.read_only = repair == qcow2::Repair::kNone;
  absl::StatusOr<UniqueFd> fd = roots.OpenFile(path, RawDevice::OpenFlags(options));
  if (!fd.ok()) return fd.status();
  const absl::StatusOr<std::shared_ptr<RawDevice>> file = RawDevice::Adopt(*std::move(fd), path, options);
  if (!file.ok()) return file.status();
  const absl::StatusOr<qcow2::Header> header = ReadQcow2Header(**file);
  if (!header.ok()) return header.status();
  return CheckImage(**file, *header, repair, progress);
}

}  // namespace berth
