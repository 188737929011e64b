#include "image/raw/raw_device.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/raw/raw_channel.h"

namespace berth {

int RawDevice::OpenFlags(const RawOptions& options) {
  return (options.read_only ? O_RDONLY : O_RDWR) | (UsesDirectIo(options.cache) ? O_DIRECT : 0);
}

absl::StatusOr<std::shared_ptr<RawDevice>> RawDevice::Open(const std::string& path,
                                                           const RawOptions& options) {
  if (path.empty()) return absl::InvalidArgumentError("the image's path is empty");
  absl::StatusOr<File> file = File::Open(path, OpenFlags(options));
  if (!file.ok()) return file.status();
  std::shared_ptr<RawDevice> device(new RawDevice(*std::move(file), options));
  if (absl::Status status = device->Initialize(); !status.ok()) return status;
  return device;
}

absl::StatusOr<std::shared_ptr<RawDevice>> RawDevice::Adopt(UniqueFd fd, const std::string& path,
                                                            const RawOptions& options) {
  absl::StatusOr<File> file = File::Adopt(std::move(fd), path);
  if (!file.ok()) return file.status();
  std::shared_ptr<RawDevice> device(new RawDevice(*std::move(file), options));
  if (absl::Status status = device->Initialize(); !status.ok()) return status;
  return device;
}

absl::Status RawDevice::Initialize() {
  struct stat info;
  if (fstat(file_.fd(), &info) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("fstat \"", file_.path(), "\""));
  }
  is_block_device_ = S_ISBLK(info.st_mode);
  absl::StatusOr<uint64_t> size = file_.Size();
  if (!size.ok()) return size.status();
  size_.store(*size);
  traits_.read_only = options_.read_only;
  traits_.resizable = !options_.read_only && !is_block_device_;
  traits_.preferred_alignment = 4096;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<BlockChannel>> RawDevice::OpenChannel(Reactor& reactor) {
  return std::make_unique<RawChannel>(*this, reactor);
}

absl::Status RawDevice::Resize(uint64_t new_size) {
  if (!traits_.resizable) {
    return absl::FailedPreconditionError(
        absl::StrCat("\"", file_.path(), "\" cannot be resized: it is ",
                     is_block_device_ ? "a block device" : "open read-only"));
  }
  MutexLock lock(&resize_mutex_);
  const uint64_t old_size = size();
  if (new_size < old_size) size_.store(new_size);
  if (ftruncate(file_.fd(), static_cast<off_t>(new_size)) != 0) {
    const int error = errno;
    size_.store(old_size);
    return absl::ErrnoToStatus(error, absl::StrCat("cannot resize \"", file_.path(), "\" from ", old_size,
                                                   " to ", new_size, " bytes"));
  }
  size_.store(new_size);
  return absl::OkStatus();
}

}  // namespace berth
