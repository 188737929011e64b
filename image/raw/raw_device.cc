#include "image/raw/raw_device.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/raw/image_lock.h"
#include "image/raw/raw_channel.h"

namespace berth {
namespace {

constexpr int kBlockingThreads = 4;
constexpr uint32_t kPage = 4096;

// For lseek, fadvise and slow ioctls of every raw image. Made once and never destroyed: devices may live
// until the process ends.
BlockingPool& FilePool() {
  static BlockingPool& pool = *new BlockingPool(kBlockingThreads);
  return pool;
}

absl::StatusOr<File> Reopen(const File& file, bool read_only) {
  const std::string link = absl::StrCat("/proc/self/fd/", file.fd());
  UniqueFd fd(open(link.c_str(), (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK));
  if (!fd) {
    const int error = errno;
    return absl::ErrnoToStatus(error, absl::StrCat("cannot open \"", file.path(), "\" once more through ",
                                                   link, " (is /proc mounted?)"));
  }
  return File(std::move(fd), file.path());
}

absl::Status CheckWritable(const File& file) {
  int read_only = 0;
  if (ioctl(file.fd(), BLKROGET, &read_only) == 0 && read_only != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("\"", file.path(), "\" is a read-only block device; open it read-only"));
  }
  return absl::OkStatus();
}

bool IsDirect(const RawOptions& options, const File& file) {
  return UsesDirectIo(options.cache) && !file.in_memory();
}

bool Flushes(const RawOptions& options, const File& file) {
  return !options.read_only && options.cache != CacheMode::kUnsafe && !file.in_memory();
}

}  // namespace

int RawDevice::OpenFlags(const RawOptions& options) {
  return (options.read_only ? O_RDONLY : O_RDWR) | (UsesDirectIo(options.cache) ? O_DIRECT : 0);
}

absl::StatusOr<std::shared_ptr<RawDevice>> RawDevice::Open(const std::string& path,
                                                           const RawOptions& options) {
  if (path.empty()) return absl::InvalidArgumentError("the image's path is empty");
  absl::StatusOr<File> file = File::Open(path, OpenFlags(options));
  if (!file.ok()) return file.status();
  return Create(*std::move(file), options);
}

absl::StatusOr<std::shared_ptr<RawDevice>> RawDevice::Adopt(UniqueFd fd, const std::string& path,
                                                            const RawOptions& options) {
  absl::StatusOr<File> file = File::Adopt(std::move(fd), path);
  if (!file.ok()) return file.status();
  return Create(*std::move(file), options);
}

absl::StatusOr<std::shared_ptr<RawDevice>> RawDevice::Create(File file, const RawOptions& options) {
  const DiskFacts facts = ReadDiskFacts(file.fd());
  if (facts.is_block_device && !options.read_only) {
    if (absl::Status status = CheckWritable(file); !status.ok()) return status;
  }
  absl::Status status = LockImage(file.fd(), file.path(), options.lock, options.read_only);
  if (!status.ok()) return status;
  absl::StatusOr<uint64_t> size = file.Size();
  if (!size.ok()) return size.status();
  if (*size == 0 && !options.may_be_empty) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", file.path(), "\" is empty; an image has at least one byte"));
  }
  std::optional<File> cached;
  if (IsDirect(options, file) || Flushes(options, file)) {
    absl::StatusOr<File> reopened = Reopen(file, options.read_only);
    if (!reopened.ok()) return reopened.status();
    cached.emplace(*std::move(reopened));
  }
  return std::shared_ptr<RawDevice>(new RawDevice(std::move(file), std::move(cached), facts, *size, options));
}

RawDevice::RawDevice(File file, std::optional<File> cached, const DiskFacts& facts, uint64_t size,
                     const RawOptions& options)
    : options_(options),
      file_(std::move(file)),
      cached_(std::move(cached)),
      facts_(facts),
      size_(size),
      space_(file_, facts, !options.read_only, FilePool()) {
  const bool unmap = options.discard == DiscardMode::kUnmap;
  traits_.read_only = options.read_only;
  traits_.resizable = !options.read_only && !facts.is_block_device;
  traits_.rotational = facts.rotational;
  traits_.can_discard = !options.read_only && unmap && space_.can_discard();
  traits_.fast_zero = space_.zeroes_fast(unmap);
  traits_.preferred_alignment = kPage;
  if (Flushes(options, file_)) flushes_.emplace(*cached_);
  if (IsDirect(options, file_)) {
    const DirectAlignment alignment = ReadDirectAlignment(file_.fd());
    direct_.emplace(file_, *cached_, alignment);
    traits_.preferred_alignment = alignment.offset;
  }
}

absl::StatusOr<std::unique_ptr<BlockChannel>> RawDevice::OpenChannel(Reactor& reactor) {
  return std::make_unique<RawChannel>(*this, reactor, FilePool());
}

absl::Status RawDevice::Resize(uint64_t new_size) {
  if (!traits_.resizable) {
    return absl::FailedPreconditionError(
        absl::StrCat("\"", file_.path(), "\" cannot be resized: it is ",
                     facts_.is_block_device ? "a block device" : "open read-only"));
  }
  if (new_size == 0 || new_size > uint64_t{std::numeric_limits<off_t>::max()}) {
    return absl::InvalidArgumentError(absl::StrCat("cannot resize \"", file_.path(), "\" to ", new_size,
                                                   " bytes: a file has between 1 and ",
                                                   std::numeric_limits<off_t>::max()));
  }
  MutexLock lock(&resize_mutex_);
  if (options_.lock != LockMode::kSharedWriter) return ResizeFile(new_size);
  if (absl::Status status = LockForResize(file_.fd(), file_.path()); !status.ok()) return status;
  absl::Status status = ResizeFile(new_size);
  UnlockAfterResize(file_.fd());
  return status;
}

absl::Status RawDevice::ResizeFile(uint64_t new_size) {
  const uint64_t old_size = size();
  // Nobody may write behind the new end any more when the file is cut, nor before it is longer.
  if (new_size < old_size) size_.store(new_size);
  if (ftruncate(file_.fd(), static_cast<off_t>(new_size)) != 0) {
    const int error = errno;
    size_.store(old_size);
    const std::string text =
        absl::StrCat("cannot resize \"", file_.path(), "\" from ", old_size, " to ", new_size, " bytes");
    if (error == EFBIG) {
      return absl::InvalidArgumentError(absl::StrCat(text, ": larger than its file system allows"));
    }
    return absl::ErrnoToStatus(error, text);
  }
  size_.store(new_size);
  extents_.Clear();
  // Through the descriptor of the data: the other one is FlushGroup's alone.
  if (flushes_.has_value() && fsync(file_.fd()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("\"", file_.path(), "\" has its new size of ", new_size,
                                                   " bytes, but it could not be made durable"));
  }
  return absl::OkStatus();
}

void RawDevice::CutAgain() {
  MutexLock lock(&resize_mutex_);
  const absl::StatusOr<uint64_t> now = file_.Size();
  // Failing leaves bytes behind the end that nobody can read; the next resize gives them back.
  if (now.ok() && *now > size()) (void)!ftruncate(file_.fd(), static_cast<off_t>(size()));
}

}  // namespace berth
