#include "image/opener/image_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/block/error_reason.h"
#include "image/io/file.h"
#include "image/io/unique_fd.h"
#include "image/raw/image_lock.h"

namespace berth {
namespace {

constexpr uint64_t kLargestFile = std::numeric_limits<off_t>::max();

// Space is set aside in pieces of a hundredth of the file, so that progress can be seen and a cancellation is
// heard; within these bounds, so that a file system finds long extents and no piece takes long.
constexpr uint64_t kSmallestPiece = uint64_t{64} << 20;
constexpr uint64_t kLargestPiece = uint64_t{1} << 30;
constexpr uint64_t kPieceGrain = uint64_t{1} << 20;

absl::Status CheckSize(const std::string& path, uint64_t size) {
  if (size >= 1 && size <= kLargestFile) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("a size of ", size, " bytes is not possible for \"", path,
                                                 "\": an image has between 1 and ", kLargestFile, " bytes"));
}

// The most that the file `fd` can take of its file system, with what it has already; nothing where that is
// not known.
std::optional<uint64_t> RoomFor(int fd) {
  struct statvfs info;
  struct stat own;
  if (fstatvfs(fd, &info) != 0 || fstat(fd, &own) != 0) return std::nullopt;
  return uint64_t{info.f_bavail} * info.f_frsize + static_cast<uint64_t>(own.st_blocks) * 512;
}

absl::Status SizeError(int error, int fd, const std::string& path, uint64_t size) {
  const std::string text = absl::StrCat("cannot make \"", path, "\" ", size, " bytes long");
  switch (error) {
    case EFBIG:
    case EINVAL:
      return absl::InvalidArgumentError(absl::StrCat(text, ": its file system has no files of that size"));
    case ENOSPC: {
      const std::optional<uint64_t> room = RoomFor(fd);
      return absl::ResourceExhaustedError(
          room.has_value() ? absl::StrCat(text, ": the disk has ", *room, " bytes left for it")
                           : absl::StrCat(text, ": the disk is full"));
    }
    case EDQUOT:
      return absl::ResourceExhaustedError(absl::StrCat(text, ": the disk quota is used up"));
    case EOPNOTSUPP:
      return absl::FailedPreconditionError(
          absl::StrCat(text, ": its file system cannot set space aside; create it without preallocation"));
    default:
      return absl::ErrnoToStatus(error, text);
  }
}

// Sets aside the space of the whole file.
absl::Status Preallocate(int fd, const std::string& path, uint64_t size, Progress& progress) {
  const uint64_t hundredth = (size / 100 + kPieceGrain - 1) / kPieceGrain * kPieceGrain;
  const uint64_t piece = std::clamp(hundredth, kSmallestPiece, kLargestPiece);
  // What cannot fit does not take the space of others, or in tmpfs the memory, before it fails.
  if (const std::optional<uint64_t> room = RoomFor(fd); room.has_value() && *room < size) {
    return SizeError(ENOSPC, fd, path, size);
  }
  for (uint64_t done = 0; done < size;) {
    if (progress.cancelled()) {
      return absl::CancelledError(
          absl::StrCat("setting aside \"", path, "\" was cancelled after ", done, " of ", size, " bytes"));
    }
    const uint64_t length = std::min(piece, size - done);
    if (fallocate(fd, 0, static_cast<off_t>(done), static_cast<off_t>(length)) != 0) {
      if (errno == EINTR) continue;
      return SizeError(errno, fd, path, size);
    }
    done += length;
    progress.SetDone(done);
  }
  return absl::OkStatus();
}

// Gives the new file `fd` its size, on disk.
absl::Status Fill(int fd, const std::string& path, uint64_t size, bool preallocate, Progress& progress) {
  if (ftruncate(fd, static_cast<off_t>(size)) != 0) return SizeError(errno, fd, path, size);
  if (preallocate) {
    if (absl::Status status = Preallocate(fd, path, size, progress); !status.ok()) return status;
  }
  if (fsync(fd) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot make \"", path, "\" durable"));
  return absl::OkStatus();
}

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
  if (absl::Status status = Preallocate(file->fd(), path, size, progress); !status.ok()) return status;
  return InspectFile(*file);
}

// Makes the file under its name at once, for file systems without O_TMPFILE; taken away again where it cannot
// be filled. An errno, EEXIST among them, or the status of what came after.
absl::StatusOr<UniqueFd> CreateNamed(const ImageRoots::Place& place, const std::string& path, uint64_t size,
                                     bool preallocate, Progress& progress, int* error) {
  UniqueFd fd(openat(place.directory.get(), place.name.c_str(),
                     O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd) {
    *error = errno;
    return fd;
  }
  absl::Status status = Fill(fd.get(), path, size, preallocate, progress);
  if (status.ok()) return fd;
  unlinkat(place.directory.get(), place.name.c_str(), 0);
  return status;
}

// Makes the file without a name, and gives it its name when it is whole.
absl::StatusOr<UniqueFd> CreateWhole(const ImageRoots::Place& place, const std::string& path, uint64_t size,
                                     bool preallocate, Progress& progress, int* error) {
  UniqueFd fd(openat(place.directory.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!fd) {
    if (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL) {
      return CreateNamed(place, path, size, preallocate, progress, error);
    }
    *error = errno;
    return fd;
  }
  // Before the work: a name that is taken is the usual case of a repeated request.
  if (faccessat(place.directory.get(), place.name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
    *error = EEXIST;
    return UniqueFd();
  }
  if (absl::Status status = Fill(fd.get(), path, size, preallocate, progress); !status.ok()) return status;
  const std::string link = absl::StrCat("/proc/self/fd/", fd.get());
  if (linkat(AT_FDCWD, link.c_str(), place.directory.get(), place.name.c_str(), AT_SYMLINK_FOLLOW) != 0) {
    *error = errno;
    return UniqueFd();
  }
  return fd;
}

}  // namespace

absl::StatusOr<ImageFileInfo> CreateRawImage(const ImageRoots& roots, const std::string& path, uint64_t size,
                                             bool preallocate, Progress* progress) {
  if (absl::Status status = CheckSize(path, size); !status.ok()) return status;
  Progress unseen;
  if (progress == nullptr) progress = &unseen;
  progress->SetTotal(size);
  absl::StatusOr<ImageRoots::Place> place = roots.FindPlace(path);
  if (!place.ok()) return place.status();
  int error = 0;
  absl::StatusOr<UniqueFd> fd = CreateWhole(*place, path, size, preallocate, *progress, &error);
  if (!fd.ok()) return fd.status();
  if (error == ENOSPC || error == EDQUOT) return SizeError(error, place->directory.get(), path, size);
  if (error != 0 && error != EEXIST) {
    return absl::ErrnoToStatus(error, absl::StrCat("cannot create \"", path, "\""));
  }
  // For what exists already too: whoever made it may have died before this.
  if (fsync(place->directory.get()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot make the name of \"", path, "\" durable"));
  }
  if (error == EEXIST) return TakeExisting(roots, path, size, preallocate, *progress);
  return InspectFile(File(*std::move(fd), path));
}

absl::StatusOr<ImageFileInfo> InspectRawImage(const ImageRoots& roots, const std::string& path) {
  absl::StatusOr<File> file = OpenRegular(roots, path, O_RDONLY);
  if (!file.ok()) return file.status();
  return InspectFile(*file);
}

absl::StatusOr<ImageFileInfo> ResizeRawImage(const ImageRoots& roots, const std::string& path, uint64_t size,
                                             bool allow_shrink) {
  if (absl::Status status = CheckSize(path, size); !status.ok()) return status;
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
  if (ftruncate(file->fd(), static_cast<off_t>(size)) != 0) return SizeError(errno, file->fd(), path, size);
  if (fsync(file->fd()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot make the new size of \"", path, "\" durable"));
  }
  return InspectFile(*file);
}

}  // namespace berth
