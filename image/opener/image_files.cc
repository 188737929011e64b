#include "image/opener/image_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/block/error_reason.h"
#include "image/io/file.h"
#include "image/opener/disk_space.h"
#include "image/opener/image_file_info.h"
#include "image/opener/new_file.h"
#include "image/raw/image_lock.h"

namespace berth {
namespace {

// The image that is there already: an answer to a repeated request, or in the way.
absl::StatusOr<ImageFileInfo> TakeExisting(const ImageRoots& roots, const std::string& path, uint64_t size,
                                           bool preallocate, Progress& progress) {
  absl::StatusOr<File> file = OpenRegular(roots, path, preallocate ? O_RDWR : O_RDONLY);
  if (!file.ok()) {
    return absl::AlreadyExistsError(
        absl::StrCat("\"", path, "\" exists and is not such an image: ", file.status().message()));
  }
  absl::StatusOr<ImageFileInfo> info = InspectFile(*file);
  if (!info.ok()) return info.status();
  if (info->size != size) {
    return absl::AlreadyExistsError(
        absl::StrCat("\"", path, "\" exists with ", info->size, " bytes, not ", size));
  }
  if (!preallocate || info->allocated >= size) return info;
  absl::Status status = SetSpaceAside(file->fd(), path, size, /*write_zeroes=*/false, progress);
  if (!status.ok()) return status;
  return InspectFile(*file);
}

}  // namespace

absl::StatusOr<ImageFileInfo> CreateRawImage(const ImageRoots& roots, const std::string& path, uint64_t size,
                                             bool preallocate, Progress* progress) {
  if (absl::Status status = CheckImageSize(path, size); !status.ok()) return status;
  Progress unseen;
  if (progress == nullptr) progress = &unseen;
  progress->SetTotal(size);
  absl::StatusOr<NewFile> file = NewFile::Create(roots, path);
  absl::Status status = file.status();
  if (status.ok()) {
    status = SetFileSize(file->fd(), path, size);
    if (status.ok() && preallocate) status = SetSpaceAside(file->fd(), path, size, false, *progress);
    if (!status.ok()) return status;
    status = file->Publish();
  } else if (absl::IsAlreadyExists(status)) {
    // Whoever made it may have died before this.
    if (absl::Status durable = MakeNameDurable(roots, path); !durable.ok()) return durable;
  }
  if (absl::IsAlreadyExists(status)) return TakeExisting(roots, path, size, preallocate, *progress);
  if (!status.ok()) return status;
  return InspectRawImage(roots, path);
}

absl::StatusOr<ImageFileInfo> InspectRawImage(const ImageRoots& roots, const std::string& path) {
  absl::StatusOr<File> file = OpenRegular(roots, path, O_RDONLY);
  if (!file.ok()) return file.status();
  return InspectFile(*file);
}

absl::StatusOr<ImageFileInfo> ResizeRawImage(const ImageRoots& roots, const std::string& path, uint64_t size,
                                             bool allow_shrink) {
  if (absl::Status status = CheckImageSize(path, size); !status.ok()) return status;
  absl::StatusOr<File> file = OpenRegular(roots, path, O_RDWR);
  if (!file.ok()) return file.status();
  absl::Status locked = LockImage(file->fd(), path, LockMode::kExclusive, /*read_only=*/false);
  if (!locked.ok()) return locked;
  struct stat status;
  if (fstat(file->fd(), &status) != 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("fstat \"", path, "\""));
  if (S_ISBLK(status.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat("\"", path, "\" is a block device; its size is fixed"));
  }
  const uint64_t old_size = static_cast<uint64_t>(status.st_size);
  if (size < old_size && !allow_shrink) {
    return WithReason(absl::FailedPreconditionError(
                          absl::StrCat("\"", path, "\" has ", old_size, " bytes; ", size,
                                       " would cut off its end, which must be allowed explicitly")),
                      kReasonWouldShrink);
  }
  if (absl::Status resized = SetFileSize(file->fd(), path, size); !resized.ok()) return resized;
  if (fsync(file->fd()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot make the new size of \"", path, "\" durable"));
  }
  return InspectFile(*file);
}

}  // namespace berth
