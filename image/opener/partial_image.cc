#include "image/opener/partial_image.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/block/image_modes.h"
#include "image/io/unique_fd.h"
#include "image/raw/image_lock.h"

namespace berth {
namespace {

constexpr char kSuffix[] = ".berth-part";

absl::Status Taken(const std::string& path) {
  return absl::AlreadyExistsError(
      absl::StrCat("\"", path, "\" exists; choose another name, or take it away first"));
}

// What an earlier try left, unless somebody is at it.
absl::Status TakeAway(const ImageRoots& roots, const ImageRoots::Place& place, const std::string& name,
                      const std::string& path) {
  if (faccessat(place.directory.get(), name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) != 0) return absl::OkStatus();
  const absl::StatusOr<UniqueFd> fd = roots.OpenFile(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (!fd.ok()) return fd.status();
  const absl::Status locked = LockImage(fd->get(), path, LockMode::kExclusive, /*read_only=*/false);
  if (!locked.ok() && !absl::IsUnimplemented(locked)) return locked;
  if (unlinkat(place.directory.get(), name.c_str(), 0) == 0 || errno == ENOENT) return absl::OkStatus();
  return absl::ErrnoToStatus(errno,
                             absl::StrCat("cannot take away \"", path, "\", which an earlier try left"));
}

}  // namespace

PartialImage::PartialImage(ImageRoots::Place place, const std::string& path)
    : place_(std::move(place)),
      path_(path),
      partial_name_(absl::StrCat(".", place_.name, kSuffix)),
      partial_path_(absl::StrCat(path.substr(0, path.find_last_of('/') + 1), partial_name_)) {}

absl::StatusOr<PartialImage> PartialImage::Begin(const ImageRoots& roots, const std::string& path) {
  absl::StatusOr<ImageRoots::Place> place = roots.FindPlace(path);
  if (!place.ok()) return place.status();
  if (faccessat(place->directory.get(), place->name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
    return Taken(path);
  }
  PartialImage image(*std::move(place), path);
  absl::Status status = TakeAway(roots, image.place_, image.partial_name_, image.partial_path_);
  if (!status.ok()) {
    image.partial_name_.clear();
    return status;
  }
  return image;
}

PartialImage::~PartialImage() {
  if (place_.directory && !partial_name_.empty()) {
    unlinkat(place_.directory.get(), partial_name_.c_str(), 0);
  }
}

absl::Status PartialImage::Publish() {
  const int directory = place_.directory.get();
  // A link, as not every file system can rename without replacing.
  if (linkat(directory, partial_name_.c_str(), directory, place_.name.c_str(), 0) != 0) {
    if (errno == EEXIST) return Taken(path_);
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot give the new image its name \"", path_, "\""));
  }
  unlinkat(directory, partial_name_.c_str(), 0);
  partial_name_.clear();
  if (fsync(directory) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot make the name of \"", path_, "\" durable"));
  }
  return absl::OkStatus();
}

}  // namespace berth
