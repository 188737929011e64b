#include "netlink/module_loader.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace berth::netlink {
namespace {

// Starts `modprobe nbd` with its output going to `output_fd`. Returns an errno.
int Spawn(const std::string& modprobe, int output_fd, pid_t& child) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, output_fd, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output_fd, STDERR_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t signals;
  sigemptyset(&signals);
  posix_spawnattr_setsigmask(&attributes, &signals);
  sigfillset(&signals);
  posix_spawnattr_setsigdefault(&attributes, &signals);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  std::string program = modprobe;
  std::string module = "nbd";
  char* const arguments[] = {program.data(), module.data(), nullptr};
  // No words in the user's language: they are for a log.
  std::string locale = "LC_ALL=C";
  std::string path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
  char* const environment[] = {locale.data(), path.data(), nullptr};
  const int error = posix_spawn(&child, modprobe.c_str(), &actions, &attributes, arguments, environment);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  return error;
}

// True when `child` ended within `at_most`.
bool WaitForEnd(pid_t child, absl::Duration at_most) {
  const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, child, 0));
  if (pidfd < 0) return true;  // No such child any more, or a kernel before 5.3: waitpid() waits.
  pollfd ended = {pidfd, POLLIN, 0};
  const auto milliseconds = std::clamp<int64_t>(absl::ToInt64Milliseconds(at_most), 0, 3600 * 1000);
  int ready = 0;
  do {
    ready = poll(&ended, 1, static_cast<int>(milliseconds));
  } while (ready < 0 && errno == EINTR);
  close(pidfd);
  return ready > 0;
}

std::string FirstBytes(int fd) {
  std::array<char, 512> text;
  const ssize_t size = pread(fd, text.data(), text.size(), 0);
  if (size <= 0) return "";
  return std::string(absl::StripAsciiWhitespace(absl::string_view(text.data(), static_cast<size_t>(size))));
}

}  // namespace

absl::Status LoadNbdModule(const std::string& modprobe, absl::Duration at_most) {
  const int output = memfd_create("modprobe", MFD_CLOEXEC);
  if (output < 0) return absl::ResourceExhaustedError(absl::StrCat("memfd_create: ", strerror(errno)));
  pid_t child = 0;
  if (const int error = Spawn(modprobe, output, child); error != 0) {
    close(output);
    return absl::FailedPreconditionError(absl::StrCat("cannot run ", modprobe, ": ", strerror(error)));
  }
  if (!WaitForEnd(child, at_most)) {
    kill(child, SIGKILL);
    // One that sits in the kernel does not die of it; then it is left to init.
    if (WaitForEnd(child, absl::Seconds(1))) waitpid(child, nullptr, WNOHANG);
    close(output);
    return absl::DeadlineExceededError(
        absl::StrCat(modprobe, " nbd did not end within ", absl::FormatDuration(at_most)));
  }
  int status = 0;
  pid_t ended = 0;
  do {
    ended = waitpid(child, &status, 0);
  } while (ended < 0 && errno == EINTR);
  const std::string said = FirstBytes(output);
  close(output);
  // Where the process ignores SIGCHLD there is no status.
  if (ended < 0 || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(modprobe, " nbd failed", said.empty() ? "" : ": ", said));
}

}  // namespace berth::netlink
