// berthctl top
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/App.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "berth/v1/monitoring.grpc.pb.h"
#include "control/berthctl/command.h"
#include "control/berthctl/live_screen.h"
#include "control/berthctl/option_values.h"
#include "control/berthctl/rates.h"
#include "control/berthctl/server.h"
#include "control/berthctl/time_text.h"

namespace berth::berthctl {
namespace {

struct TopOptions {
  absl::Duration interval = absl::Seconds(1);
  uint64_t count = 0;  // Zero is no end.
};

std::string RateText(const Rate& rate) {
  return absl::StrFormat("%s %s: %.0f ops/s, %.2f MB/s, %s mean, %.0f errors/s", Printable(rate.export_name),
                         EnumName(v1::IoOperation_descriptor(), rate.operation), rate.operations_per_second,
                         rate.bytes_per_second / 1e6, LatencyText(rate.mean_latency), rate.errors_per_second);
}

std::vector<std::string> Page(const v1::GetStatisticsResponse& statistics, const std::vector<Rate>& rates) {
  double operations = 0;
  double bytes = 0;
  Table table({"EXPORT", "OPERATION", "OPS/S", "MB/S", "MEAN LATENCY", "ERRORS/S"}, 2, 5);
  for (const Rate& rate : rates) {
    operations += rate.operations_per_second;
    if (rate.operation == v1::IO_OPERATION_READ || rate.operation == v1::IO_OPERATION_WRITE) {
      bytes += rate.bytes_per_second;
    }
    table.Add({rate.export_name, EnumName(v1::IoOperation_descriptor(), rate.operation),
               absl::StrFormat("%.0f", rate.operations_per_second),
               absl::StrFormat("%.2f", rate.bytes_per_second / 1e6), LatencyText(rate.mean_latency),
               absl::StrFormat("%.0f", rate.errors_per_second)});
  }
  std::vector<std::string> lines = {
      absl::StrFormat("berth  %s  %d exports  %.0f ops/s  %.2f MB/s   (q ends)", TimeText(statistics.time()),
                      statistics.exports_size(), operations, bytes / 1e6),
      ""};
  for (std::string& line : table.Lines()) lines.push_back(std::move(line));
  return lines;
}

// With --json, and where the output is no terminal, lines that a programme can read.
void Print(Console& console, LiveScreen* screen, const v1::GetStatisticsResponse& statistics,
           const std::vector<Rate>& rates) {
  if (console.json) return PrintJson(console.out, statistics, /*compact=*/true);
  if (screen->draws()) return screen->Draw(Page(statistics, rates));
  const std::string time = TimeText(statistics.time());
  for (const Rate& rate : rates) console.out << time << "  " << RateText(rate) << '\n';
  if (rates.empty()) console.out << time << "  idle\n";
  console.out << std::flush;
}

ExitCode Top(Server& server, const TopOptions& options) {
  const std::unique_ptr<v1::MonitoringService::StubInterface> stub =
      v1::MonitoringService::NewStub(server.channel());
  Console& console = server.console();
  v1::GetStatisticsResponse before;
  const auto fetch = [&stub](v1::GetStatisticsResponse* statistics) {
    return [&stub, statistics](grpc::ClientContext* context) {
      return stub->GetStatistics(context, v1::GetStatisticsRequest(), statistics);
    };
  };
  const ExitCode code = server.Call("top", fetch(&before));
  if (code != ExitCode::kSuccess) return code;
  grpc::Status status;
  {
    LiveScreen screen(console, console.out_is_terminal && !console.json);
    if (screen.draws()) screen.Draw(Page(before, {}));
    for (uint64_t shown = 0; options.count == 0 || shown < options.count; ++shown) {
      if (!screen.WaitFor(options.interval)) break;
      v1::GetStatisticsResponse after;
      status = server.Try(fetch(&after));
      if (!status.ok()) break;
      Print(console, &screen, after, RatesBetween(before, after));
      if (!console.out) break;
      before = std::move(after);
    }
  }
  // Only now, as the screen that it would be written on is gone with the table.
  return status.ok() ? ExitCode::kSuccess : server.Fail("top", status);
}

}  // namespace

void AddTopCommand(CLI::App& app, Action& chosen) {
  CLI::App& command = *app.add_subcommand("top", "Show what exports do each second, until q or Ctrl-C");
  const auto options = std::make_shared<TopOptions>();
  AddDuration(command, "--interval,-i", "Time between two looks (1 second)",
              [options](absl::Duration interval) { options->interval = interval; });
  command
      .add_option_function<uint64_t>(
          "--count", [options](const uint64_t& count) { options->count = count; }, "End after so many looks")
      ->type_name("NUMBER");
  command.footer(
      "Where the output is no terminal it prints lines. With --json each look is the JSON document of "
      "'stats', "
      "on a line of its own.\n\n"
      "Examples:\n"
      "  berthctl top\n"
      "  berthctl top --interval=5 --count=12 >top.txt");
  command.callback(
      [options, &chosen] { chosen = [options](Server& server) { return Top(server, *options); }; });
}

}  // namespace berth::berthctl
