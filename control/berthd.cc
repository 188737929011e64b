// berthd: serves disk images as block devices. See docs/grpc.md, and --help.
#include <linux/capability.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "control/config.h"
#include "control/daemon.h"
#include "control/log.h"
#include "control/stop_guard.h"
#include "control/version/version.h"

namespace berth::control {
namespace {

// What cutting off, after the --stop-timeout, may take.
constexpr absl::Duration kStopGrace = absl::Seconds(3);

bool HasEffectiveCapability(int capability) {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    absl::string_view mask = line;
    uint64_t capabilities = 0;
    if (!absl::ConsumePrefix(&mask, "CapEff:")) continue;
    return absl::SimpleHexAtoi(absl::StripAsciiWhitespace(mask), &capabilities) &&
           (capabilities >> capability & 1) != 0;
  }
  return false;
}

// A server of block devices must not wait for its own devices when memory is short: the kernel would write
// dirty pages back through it. Threads inherit this, so it comes first.
void BecomeIoFlusher() {
  if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0 && errno != EPERM) {
    Log(LogLevel::kWarning,
        "PR_SET_IO_FLUSHER is not available; under memory pressure attached devices may hang",
        {{"errno", absl::StrCat(errno)}});
  }
}

// The same for its own pages: one that has to be read back first may need memory, which may need this
// process. Only what is touched is locked. Under a limit (of a container, say) allocations would fail at it:
// not worth it.
void LockMemory() {
  rlimit limit = {};
  const bool unlimited = getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY;
  if (!unlimited && !HasEffectiveCapability(CAP_IPC_LOCK)) {
    Log(LogLevel::kInfo, "memory is not locked: the limit on locked memory is not infinity");
    return;
  }
  if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0) {
    Log(LogLevel::kWarning, "memory is not locked; under memory pressure attached devices may hang",
        {{"errno", absl::StrCat(errno)}});
  }
}

// Blocked in every thread, and waited for in the main one.
sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  // A client that is gone is an error of its write, not the end of the server; a full disk quota likewise.
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);
  return signals;
}

int Run(const Config& config) {
  BecomeIoFlusher();
  if (config.lock_memory) LockMemory();
  const sigset_t signals = BlockStopSignals();
  Log(LogLevel::kInfo, "starting", {{"version", kVersion}, {"state_dir", config.state_dir}});
  std::optional<StopGuard> guard;
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(config);
  if (!daemon.ok()) {
    Log(LogLevel::kError, "cannot start", {{"error", std::string(daemon.status().message())}});
    return 1;
  }
  sd_notify(0, "READY=1");
  Log(LogLevel::kInfo, "ready");

  int signal = 0;
  while (sigwait(&signals, &signal) != 0) {
  }
  sd_notify(0, "STOPPING=1");
  Log(LogLevel::kInfo, "stopping", {{"signal", strsignal(signal)}});
  guard.emplace(absl::Now() + config.stop_timeout + kStopGrace);
  const absl::Status stopped = (*daemon)->Stop();
  if (!stopped.ok()) {
    // What is stuck in a device would hang the destructors too; everything acknowledged is on disk.
    Log(LogLevel::kError, "not stopped cleanly", {{"error", std::string(stopped.message())}});
    _exit(1);
  }
  daemon->reset();
  Log(LogLevel::kInfo, "stopped");
  return 0;
}

}  // namespace
}  // namespace berth::control

int main(int argc, char** argv) {
  const berth::control::ParsedCommandLine parsed = berth::control::ParseCommandLine(argc, argv);
  if (parsed.run) return berth::control::Run(parsed.config);
  const int output = parsed.exit_code == 0 ? STDOUT_FILENO : STDERR_FILENO;
  [[maybe_unused]] const ssize_t written = write(output, parsed.text.data(), parsed.text.size());
  return parsed.exit_code;
}
