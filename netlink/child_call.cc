#include "netlink/child_call.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace berth::netlink {
namespace {

constexpr size_t kMaxMessage = 2000;
constexpr int kAnswerFd = 3;

// One write, which a pipe takes whole.
struct Answer {
  int code;
  std::array<char, kMaxMessage> message;
};

[[noreturn]] void RunAsChild(int answer_fd, absl::FunctionRef<absl::Status()> call) {
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  if (answer_fd != kAnswerFd && dup2(answer_fd, kAnswerFd) < 0) _exit(1);
  if (close_range(kAnswerFd + 1, ~0U, 0) != 0) _exit(1);
  const absl::Status status = call();
  Answer answer = {};
  answer.code = static_cast<int>(status.code());
  const size_t length = std::min(status.message().size(), kMaxMessage);
  // Without a message there is nothing to copy from.
  if (length > 0) memcpy(answer.message.data(), status.message().data(), length);
  const size_t size = offsetof(Answer, message) + length;
  _exit(write(kAnswerFd, &answer, size) == static_cast<ssize_t>(size) ? 0 : 1);
}

}  // namespace

absl::Status RunInChild(absl::FunctionRef<absl::Status()> call) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot make a pipe: ", strerror(errno)));
  }
  const pid_t child = fork();
  if (child == 0) RunAsChild(ends[1], call);
  const int error = errno;
  close(ends[1]);
  if (child < 0) {
    close(ends[0]);
    return absl::ResourceExhaustedError(absl::StrCat("cannot start a process: ", strerror(error)));
  }
  Answer answer = {};
  ssize_t size = 0;
  do {
    size = read(ends[0], &answer, sizeof(answer));
  } while (size < 0 && errno == EINTR);
  close(ends[0]);
  while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  constexpr auto kHeader = static_cast<ssize_t>(offsetof(Answer, message));
  if (size < kHeader) return absl::InternalError("the process that did it was killed");
  return absl::Status(static_cast<absl::StatusCode>(answer.code),
                      absl::string_view(answer.message.data(), static_cast<size_t>(size - kHeader)));
}

}  // namespace berth::netlink
