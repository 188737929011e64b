#include "image/io/file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>

#include <cerrno>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace berth {
namespace {

// Above this a memory-to-memory call is long enough to keep other connections waiting; tmpfs allocates and
// zeroes pages.
constexpr uint64_t kLongestInlineAllocate = uint64_t{1} << 20;

// A read of one byte with RWF_NOWAIT tells whether the file system knows the flag; what it reads does not
// matter.
bool KnowsNowait(int fd) {
  char byte;
  iovec vector = {&byte, 1};
  return preadv2(fd, &vector, 1, 0, RWF_NOWAIT) >= 0 || errno == EAGAIN;
}

// The file system would have to wait, or cannot tell (ext4 does not know RWF_NOWAIT for buffered writes): ask
// the ring.
bool IsRefusal(ssize_t result) {
  return result < 0 && (errno == EAGAIN || errno == EOPNOTSUPP || errno == EINVAL || errno == EINTR);
}

}  // namespace

File::File(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {
  const int flags = fcntl(fd_.get(), F_GETFL);
  // The ring does not wait on a non-blocking file of a simpler file system: it answers EAGAIN for ever.
  if ((flags & O_NONBLOCK) != 0) fcntl(fd_.get(), F_SETFL, flags & ~O_NONBLOCK);
  struct statfs info;
  if (fstatfs(fd_.get(), &info) == 0) {
    in_memory_ = info.f_type == TMPFS_MAGIC || info.f_type == RAMFS_MAGIC;
  }
  struct stat type;
  if (fstat(fd_.get(), &type) != 0 || !S_ISREG(type.st_mode)) in_memory_ = false;
  const bool cached = (flags & O_DIRECT) == 0;
  const bool synchronous = (flags & O_DSYNC) != 0;
  if (in_memory_) {
    inline_reads_ = true;
    inline_writes_ = true;
  } else if (cached && KnowsNowait(fd_.get())) {
    inline_reads_ = true;
    inline_writes_ = !synchronous;
    nowait_ = RWF_NOWAIT;
  }
}

File::File(File&& other) noexcept
    : fd_(std::move(other.fd_)),
      path_(std::move(other.path_)),
      in_memory_(other.in_memory_),
      inline_reads_(other.inline_reads_),
      inline_writes_(other.inline_writes_.load(std::memory_order_relaxed)),
      nowait_(other.nowait_) {}

absl::Status File::OpenError(int error, int flags, const std::string& path) {
  if (error == EINVAL && (flags & O_DIRECT) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cannot open \"", path, "\": its file system has no O_DIRECT; use a cache mode that caches"));
  }
  if (error == EISDIR) {
    return absl::InvalidArgumentError(absl::StrCat("\"", path, "\" is a directory, not an image file"));
  }
  if (error == ELOOP) {
    return absl::FailedPreconditionError(absl::StrCat(
        "cannot open \"", path, "\": its symbolic links lead in a circle, or are not followed here"));
  }
  if (error == EROFS) {
    return absl::FailedPreconditionError(absl::StrCat(
        "cannot open \"", path, "\" for writing: its file system is read-only; open it read-only"));
  }
  return absl::ErrnoToStatus(error, absl::StrCat("cannot open \"", path, "\""));
}

absl::Status File::CheckType(const struct stat& info, const std::string& path) {
  if (S_ISREG(info.st_mode) || S_ISBLK(info.st_mode)) return absl::OkStatus();
  const char* type = S_ISDIR(info.st_mode)    ? "a directory"
                     : S_ISFIFO(info.st_mode) ? "a fifo"
                     : S_ISSOCK(info.st_mode) ? "a socket"
                     : S_ISCHR(info.st_mode)  ? "a character device"
                                              : "of an unknown type";
  return absl::InvalidArgumentError(
      absl::StrCat("\"", path, "\" is ", type, "; an image is a regular file or a block device"));
}

absl::StatusOr<File> File::Open(const std::string& path, int flags) {
  if (path.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("a file name must not contain a zero byte; this one does after \"", path.c_str(), "\""));
  }
  // Looked at before it is opened, as opening a character device may start something (a watchdog, a tape's
  // rewind), and after it, as the name may mean another file by then.
  struct stat info;
  if (stat(path.c_str(), &info) == 0) {
    if (absl::Status status = CheckType(info, path); !status.ok()) return status;
  }
  // O_NONBLOCK keeps open(2) from waiting for a fifo's other end.
  UniqueFd fd(open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) return OpenError(errno, flags, path);
  return Adopt(std::move(fd), path);
}

absl::StatusOr<File> File::Adopt(UniqueFd fd, std::string path) {
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("fstat \"", path, "\""));
  if (absl::Status status = CheckType(info, path); !status.ok()) return status;
  return File(std::move(fd), std::move(path));
}

absl::StatusOr<uint64_t> File::Size() const {
  struct stat info;
  if (fstat(fd(), &info) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("fstat \"", path_, "\""));
  if (!S_ISBLK(info.st_mode)) return static_cast<uint64_t>(info.st_size);
  uint64_t bytes = 0;
  if (ioctl(fd(), BLKGETSIZE64, &bytes) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("BLKGETSIZE64 of \"", path_, "\""));
  }
  return bytes;
}

Task<IoResult> File::Read(Reactor& reactor, uint64_t offset, absl::Span<uint8_t> out) const {
  if (inline_reads_) {
    iovec vector = {out.data(), out.size()};
    const ssize_t count = preadv2(fd(), &vector, 1, static_cast<off_t>(offset), nowait_);
    if (count == static_cast<ssize_t>(out.size())) return Task<IoResult>(IoResult::Ok());
    if (count > 0) {
      offset += static_cast<uint64_t>(count);
      out.remove_prefix(static_cast<size_t>(count));
    } else if (count < 0 && !IsRefusal(count)) {
      return Task<IoResult>(IoResult::Error(errno));
    }
  }
  return ReadThroughRing(reactor, offset, out);
}

Task<IoResult> File::ReadThroughRing(Reactor& reactor, uint64_t offset, absl::Span<uint8_t> out) const {
  while (!out.empty()) {
    const int count = co_await reactor.Read(fd(), out.data(), out.size(), offset);
    if (count == -EINTR || count == -EAGAIN) continue;
    if (count < 0) co_return IoResult::Error(-count);
    if (count == 0) co_return IoResult::Error(EIO);
    offset += static_cast<uint64_t>(count);
    out.remove_prefix(static_cast<size_t>(count));
  }
  co_return IoResult::Ok();
}

Task<IoResult> File::Write(Reactor& reactor, uint64_t offset, absl::Span<const uint8_t> data,
                           int rw_flags) const {
  // In memory there is nothing more durable to wait for.
  if (in_memory_) rw_flags = 0;
  if (rw_flags == 0 && inline_writes_.load(std::memory_order_relaxed)) {
    iovec vector = {const_cast<uint8_t*>(data.data()), data.size()};
    const ssize_t count = pwritev2(fd(), &vector, 1, static_cast<off_t>(offset), nowait_);
    if (count == static_cast<ssize_t>(data.size())) return Task<IoResult>(IoResult::Ok());
    if (count > 0) {
      offset += static_cast<uint64_t>(count);
      data.remove_prefix(static_cast<size_t>(count));
    } else if (count < 0 && !IsRefusal(count)) {
      return Task<IoResult>(IoResult::Error(errno));
    } else if (count < 0 && errno == EOPNOTSUPP) {
      inline_writes_.store(false, std::memory_order_relaxed);
    }
  }
  return WriteThroughRing(reactor, offset, data, rw_flags);
}

Task<IoResult> File::WriteThroughRing(Reactor& reactor, uint64_t offset, absl::Span<const uint8_t> data,
                                      int rw_flags) const {
  while (!data.empty()) {
    const int count = co_await reactor.Write(fd(), data.data(), data.size(), offset, rw_flags);
    if (count == -EINTR || count == -EAGAIN) continue;
    if (count < 0) co_return IoResult::Error(-count);
    if (count == 0) co_return IoResult::Error(ENOSPC);
    offset += static_cast<uint64_t>(count);
    data.remove_prefix(static_cast<size_t>(count));
  }
  co_return IoResult::Ok();
}

Task<IoResult> File::Sync(Reactor& reactor) const {
  if (in_memory_) {
    return Task<IoResult>(fdatasync(fd()) == 0 ? IoResult::Ok() : IoResult::Error(errno));
  }
  return [](Reactor& ring, int fd) -> Task<IoResult> {
    int result = -EINTR;
    while (result == -EINTR) result = co_await ring.Fdatasync(fd);
    co_return result < 0 ? IoResult::Error(-result) : IoResult::Ok();
  }(reactor, fd());
}

Task<IoResult> File::Allocate(Reactor& reactor, int mode, uint64_t offset, uint64_t length) const {
  if (in_memory_ && length <= kLongestInlineAllocate) {
    const int result = fallocate(fd(), mode, static_cast<off_t>(offset), static_cast<off_t>(length));
    return Task<IoResult>(result == 0 ? IoResult::Ok() : IoResult::Error(errno));
  }
  return [](Reactor& ring, int fd, int how, uint64_t begin, uint64_t bytes) -> Task<IoResult> {
    int result = -EINTR;
    while (result == -EINTR) result = co_await ring.Fallocate(fd, how, begin, bytes);
    co_return result < 0 ? IoResult::Error(-result) : IoResult::Ok();
  }(reactor, fd(), mode, offset, length);
}

}  // namespace berth
