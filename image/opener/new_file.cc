#include "image/opener/new_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"

namespace berth {
namespace {

absl::Status CreateError(int error, const std::string& path) {
  const std::string text = absl::StrCat("cannot create \"", path, "\"");
  switch (error) {
    case EEXIST:
      return absl::AlreadyExistsError(absl::StrCat("\"", path, "\" exists"));
    case ENOSPC:
      return absl::ResourceExhaustedError(absl::StrCat(text, ": the disk is full"));
    case EDQUOT:
      return absl::ResourceExhaustedError(absl::StrCat(text, ": the disk quota is used up"));
    default:
      return absl::ErrnoToStatus(error, text);
  }
}

absl::Status SyncDirectory(int directory, const std::string& path) {
  if (fsync(directory) == 0) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot make the name of \"", path, "\" durable"));
}

}  // namespace

absl::StatusOr<NewFile> NewFile::Create(const ImageRoots& roots, const std::string& path) {
  absl::StatusOr<ImageRoots::Place> place = roots.FindPlace(path);
  if (!place.ok()) return place.status();
  NewFile file(*std::move(place), path);
  const int directory = file.place_.directory.get();
  const char* const name = file.place_.name.c_str();
  file.fd_ = UniqueFd(openat(directory, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (file.fd_) {
    // Before the work: a name that is taken is the usual case of a repeated request.
    if (faccessat(directory, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0) return CreateError(EEXIST, path);
    return file;
  }
  if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL) return CreateError(errno, path);
  file.fd_ = UniqueFd(openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!file.fd_) return CreateError(errno, path);
  file.named_ = UniqueFd(fcntl(directory, F_DUPFD_CLOEXEC, 0));
  if (!file.named_) {
    const int error = errno;
    unlinkat(directory, name, 0);
    return CreateError(error, path);
  }
  return file;
}

NewFile::~NewFile() {
  if (named_) unlinkat(named_.get(), place_.name.c_str(), 0);
}

absl::Status NewFile::Publish() {
  if (fsync(fd()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot make \"", path_, "\" durable"));
  }
  if (!named_) {
    const std::string link = absl::StrCat("/proc/self/fd/", fd());
    if (linkat(AT_FDCWD, link.c_str(), place_.directory.get(), place_.name.c_str(), AT_SYMLINK_FOLLOW) != 0) {
      return CreateError(errno, path_);
    }
  }
  named_ = UniqueFd();
  return SyncDirectory(place_.directory.get(), path_);
}

absl::Status MakeNameDurable(const ImageRoots& roots, const std::string& path) {
  absl::StatusOr<ImageRoots::Place> place = roots.FindPlace(path);
  if (!place.ok()) return place.status();
  return SyncDirectory(place->directory.get(), path);
}

}  // namespace berth
