#include "image/opener/disk_space.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"

namespace berth {
namespace {

// Space is set aside in pieces of a hundredth of the file, so that progress can be seen and a cancellation is
// heard; within these bounds, so that a file system finds long extents and no piece takes long.
constexpr uint64_t kSmallestPiece = uint64_t{64} << 20;
constexpr uint64_t kLargestPiece = uint64_t{1} << 30;
constexpr uint64_t kPieceGrain = uint64_t{1} << 20;
constexpr size_t kZeroBytes = size_t{1} << 20;

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

// Writes zeroes to the holes in [begin, end), which keeps what is there already. 0, or an errno.
int FillHoles(int fd, uint64_t begin, uint64_t end) {
  static const std::vector<uint8_t>& zeroes = *new std::vector<uint8_t>(kZeroBytes);
  while (begin < end) {
    const off_t hole = lseek(fd, static_cast<off_t>(begin), SEEK_HOLE);
    if (hole < 0 || static_cast<uint64_t>(hole) >= end) return hole < 0 && errno != ENXIO ? errno : 0;
    const off_t data = lseek(fd, hole, SEEK_DATA);
    if (data < 0 && errno != ENXIO) return errno;
    const uint64_t hole_end = data < 0 ? end : std::min(end, static_cast<uint64_t>(data));
    for (begin = static_cast<uint64_t>(hole); begin < hole_end;) {
      const size_t length = std::min<uint64_t>(zeroes.size(), hole_end - begin);
      const ssize_t written = pwrite(fd, zeroes.data(), length, static_cast<off_t>(begin));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return errno;
      begin += static_cast<uint64_t>(written);
    }
  }
  return 0;
}

}  // namespace

absl::Status CheckImageSize(const std::string& path, uint64_t size) {
  if (size >= 1 && size <= kLargestFile) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("a size of ", size, " bytes is not possible for \"", path,
                                                 "\": an image has between 1 and ", kLargestFile, " bytes"));
}

absl::Status SetFileSize(int fd, const std::string& path, uint64_t size) {
  if (size > kLargestFile) return SizeError(EFBIG, fd, path, size);
  if (ftruncate(fd, static_cast<off_t>(size)) != 0) return SizeError(errno, fd, path, size);
  return absl::OkStatus();
}

absl::Status SetSpaceAside(int fd, const std::string& path, uint64_t size, bool write_zeroes,
                           Progress& progress) {
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
    int error = 0;
    if (write_zeroes) {
      error = FillHoles(fd, done, done + length);
    } else if (fallocate(fd, 0, static_cast<off_t>(done), static_cast<off_t>(length)) != 0) {
      error = errno;
    }
    if (error == EINTR) continue;
    if (error != 0) return SizeError(error, fd, path, size);
    done += length;
    progress.SetDone(done);
  }
  return absl::OkStatus();
}

}  // namespace berth
