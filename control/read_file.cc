#include "control/read_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "image/io/unique_fd.h"

namespace berth::control {

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  constexpr size_t kMaxBytes = 1 << 20;
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  std::string content(kMaxBytes + 1, '\0');
  size_t length = 0;
  while (length < content.size()) {
    const ssize_t n = read(fd.get(), &content[length], content.size() - length);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
    if (n == 0) break;
    length += static_cast<size_t>(n);
  }
  if (length > kMaxBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is longer than ", kMaxBytes, " bytes"));
  }
  content.resize(length);
  return content;
}

}  // namespace berth::control
