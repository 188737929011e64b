#include "image/opener/confined_open.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "absl/strings/str_split.h"

namespace berth {
namespace {

// openat2(2) gives up with EAGAIN when something on the way is renamed meanwhile.
constexpr int kAttempts = 16;

}  // namespace

UniqueFd OpenConfined(int directory, const std::string& path, int flags) {
  open_how how = {};
  how.flags = static_cast<unsigned>(flags | O_CLOEXEC);
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS;
  for (int i = 0; i < kAttempts; ++i) {
    const long fd = syscall(SYS_openat2, directory, path.c_str(), &how, sizeof(how));
    if (fd >= 0) return UniqueFd(static_cast<int>(fd));
    if (errno == ENOSYS || errno == EPERM) return OpenConfinedByWalking(directory, path, flags);
    if (errno != EAGAIN && errno != EINTR) break;
  }
  return UniqueFd();
}

UniqueFd OpenConfinedByWalking(int directory, const std::string& path, int flags) {
  UniqueFd above;
  const std::vector<std::string> names = absl::StrSplit(path, '/');
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i].empty() || names[i] == "..") {
      errno = EXDEV;
      return UniqueFd();
    }
    const bool last = i + 1 == names.size();
    const int how = last ? flags : O_PATH | O_DIRECTORY;
    UniqueFd next(openat(above ? above.get() : directory, names[i].c_str(), how | O_NOFOLLOW | O_CLOEXEC));
    if (!next) return UniqueFd();
    above = std::move(next);
  }
  return above;
}

}  // namespace berth
