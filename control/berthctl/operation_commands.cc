// berthctl operation list|show|watch|cancel
#include <memory>
#include <string>

#include "CLI/App.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "berth/v1/operations.grpc.pb.h"
#include "control/berthctl/command.h"
#include "control/berthctl/error_text.h"
#include "control/berthctl/listing.h"
#include "control/berthctl/operation_call.h"
#include "control/berthctl/option_values.h"
#include "control/berthctl/progress_bar.h"
#include "control/berthctl/server.h"
#include "control/berthctl/time_text.h"

namespace berth::berthctl {
namespace {

std::string Kind(const v1::Operation& operation) {
  return EnumName(v1::OperationKind_descriptor(), operation.kind());
}

std::string State(const v1::Operation& operation) {
  if (operation.state() == v1::OPERATION_STATE_RUNNING && operation.cancel_requested()) {
    return "being cancelled";
  }
  return EnumName(v1::OperationState_descriptor(), operation.state());
}

void PrintOperation(Console& console, const v1::Operation& operation, bool compact = false) {
  if (console.json) return PrintJson(console.out, operation, compact);
  console.out << "name:      " << Printable(operation.name()) << '\n'
              << "work:      " << Kind(operation) << ' ' << Printable(operation.subject()) << '\n'
              << "state:     " << State(operation) << '\n'
              << "progress:  " << ProgressText(operation) << '\n'
              << "started:   " << TimeText(operation.start_time()) << '\n';
  if (operation.state() != v1::OPERATION_STATE_RUNNING) {
    console.out << "ended:     " << TimeText(operation.update_time()) << '\n';
  }
  if (operation.has_error()) {
    console.out << "error:     " << Printable(operation.error().message()) << " ["
                << Printable(operation.error().reason()) << "]\n";
  }
  console.out << std::flush;
}

void PrintOperations(Console& console, const v1::ListOperationsResponse& all) {
  if (console.json) return PrintJson(console.out, all);
  Table table({"NAME", "WORK", "STATE", "PROGRESS", "STARTED", "ON"});
  for (const v1::Operation& one : all.operations()) {
    table.Add(
        {one.name(), Kind(one), State(one), ProgressText(one), TimeText(one.start_time()), one.subject()});
  }
  table.Print(console.out);
}

ExitCode ExitCodeOfEnd(const v1::Operation& operation) {
  if (operation.state() == v1::OPERATION_STATE_SUCCEEDED) return ExitCode::kSuccess;
  if (!operation.has_error() || operation.error().code() == 0) return ExitCode::kFailure;
  return ExitCodeOf(static_cast<grpc::StatusCode>(operation.error().code()));
}

// Until the end, with a bar, or with --json a document at each change.
ExitCode Watch(Server& server, const std::string& what, const std::string& name, grpc::ClientContext* context,
               bool each, v1::Operation* end) {
  grpc::Status status;
  {
    ProgressBar bar(server.console(), what);
    status = WatchToTheEnd(
        server, name, context,
        [&](const v1::Operation& now) {
          if (server.console().json && each) PrintOperation(server.console(), now, /*compact=*/true);
          bar.Update(now);
        },
        end);
  }
  return status.ok() ? ExitCode::kSuccess : server.Fail(what, status);
}

std::shared_ptr<std::string> AddName(CLI::App& command) {
  const auto name = std::make_shared<std::string>();
  command.add_option("operation", *name, "The operation's name")->required()->type_name("NAME");
  return name;
}

void AddList(CLI::App& group, Action& chosen) {
  CLI::App& command = *group.add_subcommand("list", "Show what runs, and what ended within the last hour");
  command.footer(
      "Examples:\n"
      "  berthctl operation list\n"
      "  berthctl operation list --json | jq -r '.operations[] | select(.state == "
      "\"OPERATION_STATE_RUNNING\").name'");
  command.callback([&chosen] {
    chosen = [](Server& server) {
      v1::ListOperationsResponse all;
      const ExitCode code = ListOperations(server, &all);
      if (code == ExitCode::kSuccess) PrintOperations(server.console(), all);
      return code;
    };
  });
}

void AddShow(CLI::App& group, Action& chosen) {
  CLI::App& command = *group.add_subcommand("show", "Show one operation as it is now");
  const auto name = AddName(command);
  command.footer(
      "Examples:\n"
      "  berthctl operation show make-db");
  command.callback([name, &chosen] {
    chosen = [name](Server& server) {
      const auto stub = v1::OperationService::NewStub(server.channel());
      v1::GetOperationRequest request;
      request.set_name(*name);
      v1::Operation found;
      const ExitCode code = server.Call(
          absl::StrCat("operation show ", *name),
          [&](grpc::ClientContext* context) { return stub->GetOperation(context, request, &found); });
      if (code == ExitCode::kSuccess) PrintOperation(server.console(), found);
      return code;
    };
  });
}

void AddWatch(CLI::App& group, Action& chosen) {
  CLI::App& command = *group.add_subcommand("watch", "Show an operation's progress until it has ended");
  const auto name = AddName(command);
  command.footer(
      "Ctrl-C ends the watching, not the work. The exit status is what the work's own call would have "
      "had. With --json each change is a JSON document on a line of its own.\n\n"
      "Examples:\n"
      "  berthctl operation watch make-db\n"
      "  berthctl operation watch make-db --json | jq -r .done");
  command.callback([name, &chosen] {
    chosen = [name](Server& server) {
      const std::string what = absl::StrCat("operation watch ", *name);
      if (const ExitCode code = server.WaitAsAsked(what); code != ExitCode::kSuccess) return code;
      grpc::ClientContext context;
      v1::Operation end;
      const ExitCode code = Watch(server, what, *name, &context, /*each=*/true, &end);
      if (code != ExitCode::kSuccess) return code;
      if (!server.console().json) PrintOperation(server.console(), end);
      return ExitCodeOfEnd(end);
    };
  });
}

void AddCancel(CLI::App& group, Action& chosen) {
  CLI::App& command = *group.add_subcommand("cancel", "Stop an operation, and wait until it has ended");
  const auto name = AddName(command);
  command.footer(
      "One that has ended is shown as it ended.\n\n"
      "Examples:\n"
      "  berthctl operation cancel make-db");
  command.callback([name, &chosen] {
    chosen = [name](Server& server) {
      const auto stub = v1::OperationService::NewStub(server.channel());
      const std::string what = absl::StrCat("operation cancel ", *name);
      v1::CancelOperationRequest request;
      request.set_name(*name);
      v1::Operation operation;
      ExitCode code = server.Call(what, [&](grpc::ClientContext* context) {
        return stub->CancelOperation(context, request, &operation);
      });
      if (code == ExitCode::kSuccess && operation.state() == v1::OPERATION_STATE_RUNNING) {
        grpc::ClientContext context;
        context.set_deadline(absl::ToChronoTime(absl::Now() + kUsualTimeout));
        code = Watch(server, what, *name, &context, /*each=*/false, &operation);
      }
      if (code == ExitCode::kSuccess) PrintOperation(server.console(), operation);
      return code;
    };
  });
}

}  // namespace

void AddOperationCommands(CLI::App& app, Action& chosen) {
  CLI::App& group = *app.add_subcommand("operation", "Show, watch and cancel long work");
  group.require_subcommand(1);
  AddList(group, chosen);
  AddShow(group, chosen);
  AddWatch(group, chosen);
  AddCancel(group, chosen);
}

}  // namespace berth::berthctl
