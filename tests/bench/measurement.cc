#include "tests/bench/measurement.h"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "nlohmann/json.hpp"

namespace berth::bench {
namespace {

constexpr double kNoiseCores = 0.25;

// Busy time of all CPUs since the start of the machine.
absl::Duration MachineBusyTime() {
  std::ifstream file("/proc/stat");
  std::string label;
  file >> label;
  // user nice system idle iowait irq softirq steal
  double ticks = 0, value = 0;
  for (int column = 0; column < 8 && file >> value; ++column) {
    if (column != 3 && column != 4) ticks += value;
  }
  return absl::Seconds(ticks / static_cast<double>(sysconf(_SC_CLK_TCK)));
}

absl::Duration OwnCpuTime() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return absl::DurationFromTimespec(time);
}

double MedianOf(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace

absl::StatusOr<Round> MeasureRound(const RunningServer& server, const Workload& workload,
                                   const RoundOptions& options) {
  struct Reading {
    absl::Duration server, own, machine;
    absl::Time time;
  };
  std::vector<Reading> readings;
  auto mark = [&] {
    readings.push_back({server.process->CpuTime(), OwnCpuTime(), MachineBusyTime(), absl::Now()});
  };
  absl::StatusOr<LoadResult> load = RunLoad(server.target, workload, options.warm_up, options.duration, mark);
  if (!load.ok()) return load.status();
  const absl::Duration server_time = readings[1].server - readings[0].server;
  const absl::Duration own_time = readings[1].own - readings[0].own;
  const absl::Duration noise = readings[1].machine - readings[0].machine - server_time - own_time;
  if (noise > kNoiseCores * (readings[1].time - readings[0].time)) {
    return absl::UnavailableError(absl::StrCat("something else burnt ", absl::FormatDuration(noise)));
  }
  if (load->requests == 0) return absl::DeadlineExceededError("no request was answered");
  const double requests = static_cast<double>(load->requests);
  return Round{.cpu_microseconds = absl::ToDoubleMicroseconds(server_time) / requests,
               .requests_per_second = requests / absl::ToDoubleSeconds(load->elapsed)};
}

Round Median(const std::vector<Round>& rounds) {
  std::vector<double> cpu, rate;
  for (const Round& round : rounds) {
    cpu.push_back(round.cpu_microseconds);
    rate.push_back(round.requests_per_second);
  }
  return {.cpu_microseconds = MedianOf(cpu), .requests_per_second = MedianOf(rate)};
}

namespace {

// Two ratios follow: of `measured`'s CPU to `yardstick`'s, and to that of the best of those that are neither.
std::string TableOf(const std::vector<std::string>& servers, const std::string& measured,
                    const std::string& yardstick, const std::vector<Workload>& workloads,
                    const Results& results) {
  std::ostringstream out;
  out << "| workload |";
  for (const std::string& server : servers) out << " " << server << " |";
  out << " " << measured << " / " << yardstick << " | " << measured << " / best peer |\n|---|";
  for (size_t i = 0; i < servers.size() + 2; ++i) out << "---|";
  out << "\n";
  for (const Workload& workload : workloads) {
    auto row = results.find(workload.name);
    if (row == results.end()) continue;
    out << "| " << workload.name << " |";
    double ours = 0, bare = 0, peer = 0;
    for (const std::string& server : servers) {
      auto cell = row->second.find(server);
      if (cell == row->second.end() || cell->second.empty()) {
        out << " – |";
        continue;
      }
      const Round median = Median(cell->second);
      out << absl::StrFormat(" %.2f (%.0fk) |", median.cpu_microseconds, median.requests_per_second / 1000);
      if (server == measured) {
        ours = median.cpu_microseconds;
      } else if (server == yardstick) {
        bare = median.cpu_microseconds;
      } else if (peer == 0 || median.cpu_microseconds < peer) {
        peer = median.cpu_microseconds;
      }
    }
    out << (bare > 0 && ours > 0 ? absl::StrFormat(" %.2f |", ours / bare) : " – |");
    out << (peer > 0 && ours > 0 ? absl::StrFormat(" %.2f |", ours / peer) : " – |") << "\n";
  }
  return out.str();
}

}  // namespace

std::string Table(const std::vector<Workload>& workloads, const Results& results) {
  return TableOf(ServerNames(Setup::kMemory), "berth", "bare loop", workloads, results);
}

std::string TlsTable(const std::vector<Workload>& workloads, const Results& results) {
  return TableOf(TlsServerNames(), "berth TLS", "berth", workloads, results);
}

std::string Json(const std::vector<Workload>& workloads, const Results& results) {
  nlohmann::json document = nlohmann::json::array();
  for (const Workload& workload : workloads) {
    auto row = results.find(workload.name);
    if (row == results.end()) continue;
    for (const auto& [server, rounds] : row->second) {
      nlohmann::json entry = {
          {"workload", workload.name}, {"server", server}, {"rounds", nlohmann::json::array()}};
      for (const Round& round : rounds) {
        entry["rounds"].push_back({{"cpu_microseconds", round.cpu_microseconds},
                                   {"requests_per_second", round.requests_per_second}});
      }
      document.push_back(entry);
    }
  }
  return document.dump(2);
}

}  // namespace berth::bench
