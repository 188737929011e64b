// The benchmark: Berth, Debian's servers and the bare loop under the same load in one run.
//
//   bazel run -c opt //tests/bench -- [--filter=TEXT] [--rounds=N] [--same-core=false] [--tls] [--json=FILE]
//
// All servers of a setup are started once; each round visits all workloads and servers in random order. A
// round during which something else burnt more than a quarter of a core is run again. What is printed are
// medians.
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <random>

#include "CLI/CLI.hpp"
#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "nbd/tls/test_authority.h"
#include "tests/bench/measurement.h"
#include "tests/bench/server.h"
#include "tests/bench/workload.h"

namespace berth::bench {
namespace {

struct Flags {
  std::string filter;
  std::vector<std::string> servers;
  int rounds = 5;
  bool same_core = true;
  bool tls = false;
  std::string json;
  uint64_t image_mebibytes = 256;
  std::string memory_directory = "/dev/shm";
  std::string disk_directory = "/var/tmp";
};

constexpr int kTriesARound = 20;

void PinSelf(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof(set), &set);
}

// A directory of this run's own, removed at its end.
class ScratchDirectory {
 public:
  explicit ScratchDirectory(const std::string& parent) {
    std::string pattern = parent + "/berth-bench-XXXXXX";
    if (mkdtemp(pattern.data()) == nullptr) {
      perror(pattern.c_str());
      exit(1);
    }
    path_ = pattern;
  }
  ~ScratchDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::vector<Workload> Selected(const std::string& filter) {
  std::vector<Workload> selected;
  for (const Workload& workload : Matrix()) {
    if (absl::StrContains(workload.name, filter)) selected.push_back(workload);
  }
  return selected;
}

// One visit; tries again while others disturb.
bool Visit(const RunningServer& server, const Workload& workload, Results* results) {
  for (int attempt = 0; attempt < kTriesARound; ++attempt) {
    absl::StatusOr<Round> round = MeasureRound(server, workload, RoundOptions());
    if (round.ok()) {
      (*results)[workload.name][server.name].push_back(*round);
      return true;
    }
    if (!absl::IsUnavailable(round.status())) {
      std::cerr << server.name << ", " << workload.name << ": " << round.status() << "\n";
      return false;
    }
  }
  std::cerr << server.name << ", " << workload.name << ": the machine was never quiet enough\n";
  return false;
}

bool RunSetup(Setup setup, const std::vector<Workload>& workloads, const Environment& environment,
              const Flags& flags, Results* results) {
  std::vector<RunningServer> servers;
  for (const std::string& name : flags.tls ? TlsServerNames() : ServerNames(setup)) {
    if (!flags.servers.empty() && !absl::c_linear_search(flags.servers, name)) continue;
    absl::StatusOr<RunningServer> server = StartServer(name, setup, environment);
    if (!server.ok()) {
      std::cerr << name << ": " << server.status() << "\n";
      return false;
    }
    servers.push_back(*std::move(server));
  }
  std::mt19937 random(std::random_device{}());
  bool ok = true;
  for (int round = 0; round < flags.rounds; ++round) {
    std::vector<std::pair<const RunningServer*, const Workload*>> visits;
    for (const RunningServer& server : servers) {
      for (const Workload& workload : workloads) {
        if (workload.setup == setup) visits.emplace_back(&server, &workload);
      }
    }
    std::shuffle(visits.begin(), visits.end(), random);
    for (const auto& [server, workload] : visits) ok &= Visit(*server, *workload, results);
    std::cerr << "round " << round + 1 << " of " << flags.rounds << " done\n";
  }
  return ok;
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Measures Berth against its peers and a bare loop; prints a Markdown table.");
  app.add_option("--filter", flags.filter, "only workloads whose name contains this");
  app.add_option("--servers", flags.servers, "only these of: bare loop, berth, nbdkit, nbd-server, qemu-nbd")
      ->delimiter(',');
  app.add_option("--rounds", flags.rounds, "measured rounds a workload and server");
  app.add_option("--same-core", flags.same_core, "server and client on one core (CPU a request) or on two");
  app.add_flag("--tls", flags.tls, "measure TLS against its absence, and against peers under TLS");
  app.add_option("--json", flags.json, "write every round to this file");
  app.add_option("--image-mebibytes", flags.image_mebibytes, "size of each image");
  app.add_option("--memory-directory", flags.memory_directory, "a directory on tmpfs");
  app.add_option("--disk-directory", flags.disk_directory, "a directory on a disk's file system");
  CLI11_PARSE(app, argc, argv);

  nbd::TestAuthority authority;
  const nbd::TestTlsFolder certificates(authority);
  const ScratchDirectory memory(flags.memory_directory), disk(flags.disk_directory);
  const std::string programs = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  Environment environment = {
      .memory_directory = memory.path(),
      .disk_directory = disk.path(),
      .image_bytes = flags.image_mebibytes << 20,
      .server_cpu = flags.same_core ? 0 : 1,
      .berthd = programs + "/../../control/berthd",
      .berthctl = programs + "/../../control/berthctl/berthctl",
      .bare_loop = programs + "/bare_loop",
      .certificates = certificates.path(),
  };
  PinSelf(0);
  const std::vector<Workload> workloads = Selected(flags.filter);
  Results results;
  bool ok = !workloads.empty();
  for (const Setup setup : {Setup::kMemory, Setup::kTcp, Setup::kDisk, Setup::kDiskDirect}) {
    if (flags.tls && setup != Setup::kMemory && setup != Setup::kTcp) continue;
    const bool wanted = std::any_of(workloads.begin(), workloads.end(),
                                    [setup](const Workload& workload) { return workload.setup == setup; });
    if (wanted) ok &= RunSetup(setup, workloads, environment, flags, &results);
  }
  std::cout
      << "CPU microseconds of the server a request, in brackets thousands of requests a second; medians of "
      << flags.rounds << " rounds; server and client on " << (flags.same_core ? "one core" : "two cores")
      << ".\n\n"
      << (flags.tls ? TlsTable(workloads, results) : Table(workloads, results));
  if (!flags.json.empty()) std::ofstream(flags.json) << Json(workloads, results) << "\n";
  return ok ? 0 : 1;
}

}  // namespace
}  // namespace berth::bench

int main(int argc, char** argv) { return berth::bench::Main(argc, argv); }
