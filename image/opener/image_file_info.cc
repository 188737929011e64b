#include "image/opener/image_file_info.h"

#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/io/unique_fd.h"
#include "image/raw/image_lock.h"

namespace berth {

absl::StatusOr<ImageFileInfo> InspectFile(const File& file) {
  ImageFileInfo info;
  absl::StatusOr<uint64_t> size = file.Size();
  if (!size.ok()) return size.status();
  info.size = *size;
  struct stat status;
  if (fstat(file.fd(), &status) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("fstat \"", file.path(), "\""));
  }
  info.allocated = S_ISBLK(status.st_mode) ? info.size : static_cast<uint64_t>(status.st_blocks) * 512;
  absl::StatusOr<bool> in_use = IsOpenForWriting(file.fd(), file.path());
  // A file system without such locks has no users that we could know of.
  info.in_use = in_use.ok() && *in_use;
  return info;
}

absl::StatusOr<File> OpenRegular(const ImageRoots& roots, const std::string& path, int flags) {
  absl::StatusOr<UniqueFd> fd = roots.OpenFile(path, flags);
  if (!fd.ok()) return fd.status();
  return File::Adopt(*std::move(fd), path);
}

}  // namespace berth
