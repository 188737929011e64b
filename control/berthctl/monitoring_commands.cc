// berthctl events, stats
#include <cstdint>
#include <memory>
#include <string>

#include "CLI/App.hpp"
#include "absl/strings/str_cat.h"
#include "berth/v1/monitoring.grpc.pb.h"
#include "control/berthctl/command.h"
#include "control/berthctl/option_values.h"
#include "control/berthctl/server.h"
#include "control/berthctl/size_text.h"
#include "control/berthctl/time_text.h"

namespace berth::berthctl {
namespace {

struct EventsOptions {
  v1::WatchEventsRequest request;
  uint64_t count = 0;  // Zero is no end.
};

// "1042  2026-03-01 17:04:05.123  attached  export=disk attachment=disk device=/dev/nbd0  message".
void PrintEvent(Console& console, const v1::Event& event) {
  if (console.json) return PrintJson(console.out, event, /*compact=*/true);
  std::string line = absl::StrCat(event.sequence(), "  ", TimeText(event.time()), "  ",
                                  EnumName(v1::EventType_descriptor(), event.type()));
  if (!event.export_().empty()) absl::StrAppend(&line, "  export=", event.export_());
  if (!event.attachment().empty()) absl::StrAppend(&line, "  attachment=", event.attachment());
  if (!event.operation().empty()) absl::StrAppend(&line, "  operation=", event.operation());
  if (!event.device().empty()) absl::StrAppend(&line, "  device=", event.device());
  if (!event.message().empty()) absl::StrAppend(&line, "  ", event.message());
  console.out << Printable(line) << std::endl;
}

// Watching has no deadline: it ends with the server, or with the reader.
ExitCode WatchEvents(Server& server, const EventsOptions& options) {
  const ExitCode connected = server.AwaitConnection();
  if (connected != ExitCode::kSuccess) {
    return server.Fail("events", grpc::Status(grpc::StatusCode::UNAVAILABLE, "no connection in time"));
  }
  const std::unique_ptr<v1::MonitoringService::StubInterface> stub =
      v1::MonitoringService::NewStub(server.channel());
  grpc::ClientContext context;
  const auto reader = stub->WatchEvents(&context, options.request);
  v1::Event event;
  uint64_t seen = 0;
  while (reader->Read(&event)) {
    PrintEvent(server.console(), event);
    // A reader that is gone (head, say) is the end as well.
    if ((options.count != 0 && ++seen == options.count) || !server.console().out) {
      context.TryCancel();
      while (reader->Read(&event)) {
      }
      (void)reader->Finish();
      return ExitCode::kSuccess;
    }
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return server.Fail("events", status);
  server.console().err << "berthctl: events: the server ended the stream; watch again once it is back"
                       << std::endl;
  return ExitCode::kUnavailable;
}

void AddEvents(CLI::App& app, Action& chosen) {
  CLI::App& command = *app.add_subcommand("events", "Show what happens, until Ctrl-C");
  const auto options = std::make_shared<EventsOptions>();
  CLI::Option* after = command.add_option_function<uint64_t>(
      "--after", [options](const uint64_t& sequence) { options->request.set_after_sequence(sequence); },
      "Begin after this sequence number instead of now");
  after->type_name("SEQUENCE");
  CLI::Option* server_id = command.add_option_function<std::string>(
      "--server-id", [options](const std::string& id) { options->request.set_server_id(id); },
      "The server_id of the event with that number (--json shows it)");
  server_id->type_name("ID");
  after->needs(server_id);
  server_id->needs(after);
  command
      .add_option_function<uint64_t>(
          "--count", [options](const uint64_t& count) { options->count = count; }, "End after so many events")
      ->type_name("NUMBER");
  command.footer(
      "With --json each event is a JSON document on a line of its own.\n\n"
      "Examples:\n"
      "  berthctl events\n"
      "  berthctl events --json | jq -r 'select(.type == \"EVENT_TYPE_IO_ERROR\") | .export'\n"
      "  berthctl events --after=1042 --server-id=6f0c… --json");
  command.callback(
      [options, &chosen] { chosen = [options](Server& server) { return WatchEvents(server, *options); }; });
}

void PrintStatistics(Console& console, const v1::GetStatisticsResponse& statistics) {
  if (console.json) return PrintJson(console.out, statistics);
  Table table({"EXPORT", "CONNECTIONS", "OPERATION", "COMPLETED", "ERRORS", "BYTES", "MEAN LATENCY"}, 3, 6);
  for (const v1::ExportStatistics& one : statistics.exports()) {
    bool shown = false;
    for (const v1::OperationStatistics& operation : one.operations()) {
      if (operation.completed() == 0) continue;
      table.Add({one.export_(), absl::StrCat(one.connections()),
                 EnumName(v1::IoOperation_descriptor(), operation.operation()),
                 absl::StrCat(operation.completed()), absl::StrCat(operation.errors()),
                 FormatSize(operation.bytes()),
                 LatencyText(absl::Nanoseconds(operation.latency_nanoseconds() / operation.completed()))});
      shown = true;
    }
    if (!shown) table.Add({one.export_(), absl::StrCat(one.connections()), "-", "0", "0", "0 B", "-"});
  }
  table.Print(console.out);
}

void AddStats(CLI::App& app, Action& chosen) {
  CLI::App& command = *app.add_subcommand("stats", "Show what exports did since they were opened");
  const auto request = std::make_shared<v1::GetStatisticsRequest>();
  command
      .add_option_function<std::string>(
          "export", [request](const std::string& name) { request->set_export_(name); }, "This export alone")
      ->type_name("NAME");
  command.footer(
      "Examples:\n"
      "  berthctl stats\n"
      "  berthctl stats disk --json");
  command.callback([request, &chosen] {
    chosen = [request](Server& server) {
      const std::unique_ptr<v1::MonitoringService::StubInterface> stub =
          v1::MonitoringService::NewStub(server.channel());
      v1::GetStatisticsResponse statistics;
      const std::string what =
          request->export_().empty() ? "stats" : absl::StrCat("stats ", request->export_());
      const ExitCode code = server.Call(what, [&](grpc::ClientContext* context) {
        return stub->GetStatistics(context, *request, &statistics);
      });
      if (code == ExitCode::kSuccess) PrintStatistics(server.console(), statistics);
      return code;
    };
  });
}

}  // namespace

void AddMonitoringCommands(CLI::App& app, Action& chosen) {
  AddEvents(app, chosen);
  AddStats(app, chosen);
}

}  // namespace berth::berthctl
