// Servers under measurement: us, Debian's peers and the bare loop, each a child process with its own image.
#ifndef BERTH_TESTS_BENCH_SERVER_H_
#define BERTH_TESTS_BENCH_SERVER_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tests/bench/load.h"
#include "tests/bench/workload.h"

namespace berth::bench {

// A child process; killed and waited for at the end of its life.
class Process {
 public:
  // `cpu` is the only one it may run on; -1 leaves it free. Its output goes to `log_path`.
  static absl::StatusOr<std::unique_ptr<Process>> Start(const std::vector<std::string>& arguments, int cpu,
                                                        const std::string& log_path);
  // The same for a grandchild that outlived its parent.
  static std::unique_ptr<Process> Adopt(pid_t pid);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // Of the process and its children that are alive, from the kernel's own clocks.
  absl::Duration CpuTime() const;

 private:
  explicit Process(pid_t pid) : pid_(pid) {}
  const pid_t pid_;
};

// Where everything of a run lies, and what it runs.
struct Environment {
  std::string memory_directory;  // On tmpfs.
  std::string disk_directory;
  uint64_t image_bytes = 0;
  int server_cpu = 0;
  std::string berthd, berthctl, bare_loop;  // Paths of our programs.
  std::string certificates;                 // A folder of credentials for TLS.
};

struct RunningServer {
  std::string name;
  LoadTarget target;
  std::unique_ptr<Process> process;
};

// A server whose name ends in this serves under TLS.
inline constexpr char kUnderTls[] = " TLS";

// Who takes part in a comparison of TLS with its absence: the first is Berth in clear, the second Berth under
// TLS.
std::vector<std::string> TlsServerNames();

// Who takes part in a setup, of "bare loop", "berth", "nbdkit", "nbd-server" and "qemu-nbd".
std::vector<std::string> ServerNames(Setup setup);

// Makes the image, fully written, starts the server and waits until it answers.
absl::StatusOr<RunningServer> StartServer(const std::string& name, Setup setup,
                                          const Environment& environment);

}  // namespace berth::bench

#endif  // BERTH_TESTS_BENCH_SERVER_H_
