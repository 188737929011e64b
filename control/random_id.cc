#include "control/random_id.h"

#include <sys/random.h>

#include <cerrno>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"

namespace berth::control {

absl::StatusOr<std::string> RandomId() {
  char random[16];
  if (getrandom(random, sizeof(random), 0) != sizeof(random)) {
    return absl::ErrnoToStatus(errno, "cannot get random bytes from the kernel");
  }
  return absl::BytesToHexString(absl::string_view(random, sizeof(random)));
}

}  // namespace berth::control
