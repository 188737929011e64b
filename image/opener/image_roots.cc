#include "image/opener/image_roots.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "image/block/error_reason.h"
#include "image/io/file.h"
#include "image/opener/confined_open.h"

namespace berth {
namespace {

constexpr size_t kShownPathBytes = 200;

// realpath(3), or an errno.
int Resolve(const std::string& path, std::string* resolved) {
  char buffer[PATH_MAX];
  if (realpath(path.c_str(), buffer) == nullptr) return errno;
  *resolved = buffer;
  return 0;
}

std::string Directory(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

absl::Status CheckPath(const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("the image's path is empty");
  if (path.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError("the image's path contains a NUL byte");
  }
  if (path.size() >= PATH_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("the image's path has ", path.size(), " bytes; at most ",
                                                   PATH_MAX - 1, " are possible (it begins with \"",
                                                   path.substr(0, kShownPathBytes), "\")"));
  }
  return absl::OkStatus();
}

}  // namespace

// Where a path leads: `relative`, which holds no link, below `directory`.
struct ImageRoots::Located {
  int directory;
  std::string relative;
};

ImageRoots ImageRoots::Anywhere() {
  ImageRoots roots;
  roots.anywhere_ = true;
  return roots;
}

absl::StatusOr<ImageRoots> ImageRoots::Within(const std::vector<std::string>& directories) {
  auto opened = std::make_shared<std::vector<Root>>();
  for (const std::string& directory : directories) {
    if (absl::Status status = CheckPath(directory); !status.ok()) return status;
    Root root;
    if (const int error = Resolve(directory, &root.path); error != 0) {
      return absl::ErrnoToStatus(error, absl::StrCat("image root \"", directory, "\""));
    }
    root.directory.Reset(open(root.path.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!root.directory) {
      return absl::ErrnoToStatus(errno, absl::StrCat("image root \"", directory, "\""));
    }
    opened->push_back(std::move(root));
  }
  ImageRoots roots;
  roots.roots_ = std::move(opened);
  return roots;
}

const ImageRoots::Root* ImageRoots::RootOf(const std::string& resolved) const {
  for (const Root& root : *roots_) {
    if (resolved == root.path || root.path == "/" || absl::StartsWith(resolved, root.path + "/")) {
      return &root;
    }
  }
  return nullptr;
}

absl::Status ImageRoots::Refusal(const std::string& path) const {
  if (roots_->empty()) {
    return WithReason(absl::PermissionDeniedError(
                          absl::StrCat("\"", path, "\" may not be opened: no image root is configured")),
                      kReasonOutsideImageRoots);
  }
  std::vector<std::string> paths;
  for (const Root& root : *roots_) paths.push_back(absl::StrCat("\"", root.path, "\""));
  return WithReason(absl::PermissionDeniedError(absl::StrCat(
                        "\"", path, "\" is not inside an image root (", absl::StrJoin(paths, ", "),
                        "), or a symbolic link on its way leads out of it")),
                    kReasonOutsideImageRoots);
}

absl::StatusOr<ImageRoots::Located> ImageRoots::Locate(const std::string& path) const {
  if (path[0] != '/') {
    return absl::InvalidArgumentError(absl::StrCat("\"", path, "\" is not an absolute path"));
  }
  std::string resolved;
  if (const int error = Resolve(path, &resolved); error != 0) {
    // The nearest directory that can be resolved says whether the reason may be told.
    std::string above = path;
    while (Resolve(above = Directory(above), &resolved) != 0) {
    }
    if (RootOf(resolved) == nullptr) return Refusal(path);
    return File::OpenError(error, O_PATH, path);
  }
  const Root* root = RootOf(resolved);
  if (root == nullptr) return Refusal(path);
  std::string relative = resolved.substr(root->path == "/" ? 1 : root->path.size());
  if (absl::StartsWith(relative, "/")) relative.erase(0, 1);
  return Located{root->directory.get(), relative.empty() ? "." : std::move(relative)};
}

absl::StatusOr<UniqueFd> ImageRoots::OpenFile(const std::string& path, int flags) const {
  if (absl::Status status = CheckPath(path); !status.ok()) return status;
  Located located = {AT_FDCWD, path};
  if (!anywhere_) {
    absl::StatusOr<Located> found = Locate(path);
    if (!found.ok()) return found.status();
    located = *std::move(found);
  }
  const auto open_located = [&](int how) {
    return anywhere_ ? UniqueFd(open(path.c_str(), how | O_CLOEXEC))
                     : OpenConfined(located.directory, located.relative, how);
  };
  const auto failed = [&](int error) {
    return !anywhere_ && (error == ELOOP || error == EXDEV) ? Refusal(path)
                                                            : File::OpenError(error, flags, path);
  };
  // The first open only looks: opening a fifo or a character device for good may have effects.
  const UniqueFd look = open_located(O_PATH);
  struct stat info;
  if (!look || fstat(look.get(), &info) != 0) return failed(errno);
  if (absl::Status status = File::CheckType(info, path); !status.ok()) return status;
  UniqueFd fd = open_located(flags | O_NONBLOCK | O_NOCTTY);
  if (!fd) return failed(errno);
  return fd;
}

absl::StatusOr<ImageRoots::Place> ImageRoots::FindPlace(const std::string& path) const {
  if (absl::Status status = CheckPath(path); !status.ok()) return status;
  Place place;
  place.name = path.substr(path.find_last_of('/') + 1);
  if (place.name.empty() || place.name == "." || place.name == "..") {
    return absl::InvalidArgumentError(absl::StrCat("\"", path, "\" does not end in the name of a file"));
  }
  if (place.name.size() > NAME_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("the file's name has ", place.name.size(),
                                                   " bytes; at most ", NAME_MAX, " are possible"));
  }
  const std::string directory = Directory(path);
  constexpr int kFlags = O_RDONLY | O_DIRECTORY;
  if (anywhere_) {
    place.directory.Reset(open(directory.c_str(), kFlags | O_CLOEXEC));
  } else {
    absl::StatusOr<Located> located = Locate(directory);
    if (!located.ok()) return located.status();
    place.directory = OpenConfined(located->directory, located->relative, kFlags);
  }
  if (place.directory) return place;
  const int error = errno;
  if (!anywhere_ && (error == ELOOP || error == EXDEV)) return Refusal(path);
  return absl::ErrnoToStatus(error, absl::StrCat("cannot open the directory \"", directory, "\""));
}

}  // namespace berth
