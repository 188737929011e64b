#include "control/berth_nbd/background.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace berth::control {
namespace {

constexpr char kReady = 1;

absl::Status Detach() {
  if (setsid() < 0) return absl::ErrnoToStatus(errno, "setsid");
  const UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null) return absl::ErrnoToStatus(errno, "open /dev/null");
  if (dup2(null.get(), STDIN_FILENO) < 0 || dup2(null.get(), STDOUT_FILENO) < 0) {
    return absl::ErrnoToStatus(errno, "dup2");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Background> Background::Enter() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe2");
  UniqueFd child_says(ends[0]);
  UniqueFd to_parent(ends[1]);
  const pid_t child = fork();
  if (child < 0) return absl::ErrnoToStatus(errno, "fork");
  if (child > 0) {
    to_parent.Reset();
    char said = 0;
    ssize_t got;
    do {
      got = read(child_says.get(), &said, 1);
    } while (got < 0 && errno == EINTR);
    _exit(got == 1 && said == kReady ? 0 : 1);
  }
  UniqueFd output(fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3));
  if (absl::Status status = Detach(); !status.ok()) return status;
  return Background(std::move(to_parent), std::move(output));
}

void Background::Ready(bool keep_errors) {
  if (!keep_errors) dup2(STDOUT_FILENO, STDERR_FILENO);
  output_.Reset();
  [[maybe_unused]] const ssize_t written = write(parent_.get(), &kReady, 1);
  parent_.Reset();
}

}  // namespace berth::control
