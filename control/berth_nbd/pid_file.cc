#include "control/berth_nbd/pid_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace berth::control {
namespace {

absl::Status Failed(const std::string& path, const char* call) {
  return absl::ErrnoToStatus(errno, absl::StrCat("--pid-file is '", path, "': ", call));
}

}  // namespace

absl::StatusOr<PidFile> PidFile::Create(const std::string& path) {
  UniqueFd file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!file) return Failed(path, "open");
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  if (fcntl(file.get(), F_OFD_SETLK, &lock) != 0) {
    if (errno != EAGAIN && errno != EACCES) return Failed(path, "lock");
    return absl::FailedPreconditionError(
        absl::StrCat("--pid-file is '", path, "', which another process holds; choose another file"));
  }
  const std::string text = absl::StrCat(getpid(), "\n");
  if (ftruncate(file.get(), 0) != 0 ||
      pwrite(file.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
    return Failed(path, "write");
  }
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  return PidFile(std::move(file), error ? path : absolute.string());
}

PidFile::~PidFile() {
  if (!file_) return;
  struct stat mine;
  struct stat there;
  if (fstat(file_.get(), &mine) == 0 && stat(path_.c_str(), &there) == 0 && mine.st_dev == there.st_dev &&
      mine.st_ino == there.st_ino) {
    unlink(path_.c_str());
  }
}

}  // namespace berth::control
