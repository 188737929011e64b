// berthctl attach, detach, attachment list|show
#include <memory>
#include <string>

#include "CLI/App.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "berth/v1/attachments.grpc.pb.h"
#include "control/berthctl/command.h"
#include "control/berthctl/listing.h"
#include "control/berthctl/option_values.h"
#include "control/berthctl/request_options.h"
#include "control/berthctl/server.h"
#include "control/berthctl/size_text.h"
#include "control/berthctl/time_text.h"

namespace berth::berthctl {
namespace {

using Stub = v1::AttachmentService::StubInterface;

std::unique_ptr<Stub> NewStub(Server& server) { return v1::AttachmentService::NewStub(server.channel()); }

google::protobuf::Duration ToProto(absl::Duration duration) {
  google::protobuf::Duration proto;
  proto.set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &duration));
  proto.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
  return proto;
}

std::string DurationText(const google::protobuf::Duration& duration) {
  return absl::FormatDuration(absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos()));
}

std::string OrDash(const std::string& text) { return text.empty() ? "-" : text; }

void AddAttach(CLI::App& app, Action& chosen) {
  CLI::App& command = *app.add_subcommand("attach", "Make an export a block device, and print its path");
  const auto request = std::make_shared<v1::AttachRequest>();
  v1::AttachmentSpec* spec = request->mutable_spec();
  command
      .add_option_function<std::string>(
          "export", [spec](const std::string& name) { spec->set_export_(name); }, "The export's name")
      ->required()
      ->type_name("NAME");
  command.add_option_function<std::string>(
      "--name,-n", [request](const std::string& name) { request->set_name(name); },
      "The attachment's own name (the export's where it is left out)");
  command
      .add_option_function<uint32_t>(
          "--connections,-c", [spec](const uint32_t& number) { spec->set_connections(number); },
          "Sockets to the kernel, 1 to 16 (as many as berthd's configuration says)")
      ->type_name("NUMBER")
      ->check(CLI::Range(1, 16));
  command
      .add_option_function<std::string>(
          "--device", [spec](const std::string& device) { spec->set_device(device); },
          "This device and no other (any free one)")
      ->type_name("/dev/nbdN");
  AddSize(command, "--block-size", "Logical block size: 512, 1024, 2048 or 4096 (512)",
          [spec](uint64_t size) {
            spec->set_block_size(static_cast<uint32_t>(std::min<uint64_t>(size, 1 << 30)));
          });
  command.add_flag_callback(
      "--read-only,-r", [spec] { spec->set_read_only(true); }, "The device refuses writes");
  AddDuration(command, "--io-timeout", "How long the kernel waits for an answer",
              [spec](absl::Duration timeout) { *spec->mutable_timeout() = ToProto(timeout); });
  AddDuration(
      command, "--dead-connection-timeout", "How long requests wait for berthd when it is gone",
      [spec](absl::Duration timeout) { *spec->mutable_dead_connection_timeout() = ToProto(timeout); });
  command.footer(
      "Returns when the device can be used, its partitions included. Standard output holds the path and "
      "nothing "
      "else.\n\n"
      "Examples:\n"
      "  berthctl attach disk\n"
      "  mount \"$(berthctl attach disk --connections=4)\" /mnt\n"
      "  berthctl attach base --name=base-2 --device=/dev/nbd5 --read-only");
  command.callback([request, &chosen] {
    if (request->name().empty()) request->set_name(request->spec().export_());
    chosen = [request](Server& server) {
      const auto stub = NewStub(server);
      v1::Attachment made;
      const ExitCode code =
          server.Call(absl::StrCat("attach ", request->spec().export_()),
                      [&](grpc::ClientContext* context) { return stub->Attach(context, *request, &made); });
      if (code != ExitCode::kSuccess) return code;
      Console& console = server.console();
      if (console.json) {
        PrintJson(console.out, made);
      } else {
        console.out << Printable(made.device()) << std::endl;
      }
      return code;
    };
  });
}

// The attachment behind "/dev/nbdN".
ExitCode FindByDevice(Server& server, const std::string& device, std::string* name) {
  v1::ListAttachmentsResponse all;
  const ExitCode code = ListAttachments(server, &all);
  if (code != ExitCode::kSuccess) return code;
  for (const v1::Attachment& one : all.attachments()) {
    if (one.device() == device) {
      *name = one.name();
      return ExitCode::kSuccess;
    }
  }
  return server.Fail(
      absl::StrCat("detach ", device),
      grpc::Status(grpc::StatusCode::NOT_FOUND, "no attachment of this berthd has this device"));
}

ExitCode Detach(Server& server, v1::DetachRequest request) {
  if (absl::StartsWith(request.name(), "/dev/")) {
    const ExitCode code = FindByDevice(server, request.name(), request.mutable_name());
    if (code != ExitCode::kSuccess) return code;
  }
  const auto stub = NewStub(server);
  google::protobuf::Empty empty;
  const ExitCode code =
      server.Call(absl::StrCat("detach ", request.name()),
                  [&](grpc::ClientContext* context) { return stub->Detach(context, request, &empty); });
  if (code == ExitCode::kSuccess && server.console().json) PrintJson(server.console().out, empty);
  return code;
}

void AddDetach(CLI::App& app, Action& chosen) {
  CLI::App& command = *app.add_subcommand("detach", "Take a device away; returns when the kernel let it go");
  const auto request = std::make_shared<v1::DetachRequest>();
  AddName(command, "attachment", "The attachment's name, or its /dev/nbdN", request);
  command.add_flag_callback(
      "--force", [request] { request->set_force(true); },
      "Also while it is mounted or held: its users get I/O errors");
  AddAllowMissing(command, request);
  command.footer(
      "Examples:\n"
      "  berthctl detach disk\n"
      "  berthctl detach /dev/nbd0\n"
      "  berthctl detach disk --force");
  command.callback(
      [request, &chosen] { chosen = [request](Server& server) { return Detach(server, *request); }; });
}

ExitCode List(Server& server) {
  v1::ListAttachmentsResponse all;
  const ExitCode code = ListAttachments(server, &all);
  if (code != ExitCode::kSuccess) return code;
  Console& console = server.console();
  if (console.json) {
    PrintJson(console.out, all);
    return code;
  }
  Table table({"NAME", "EXPORT", "DEVICE", "SIZE", "STATE", "PARTITIONS"}, 3, 3);
  for (const v1::Attachment& one : all.attachments()) {
    std::string state = EnumName(v1::AttachmentState_descriptor(), one.state());
    if (!one.error().empty()) absl::StrAppend(&state, ": ", one.error());
    table.Add({one.name(), one.spec().export_(), OrDash(one.device()), FormatSize(one.size_bytes()), state,
               OrDash(absl::StrJoin(one.partitions(), ","))});
  }
  table.Print(console.out);
  return code;
}

void PrintAttachment(Console& console, const v1::Attachment& shown) {
  if (console.json) return PrintJson(console.out, shown);
  const v1::AttachmentSpec& spec = shown.spec();
  std::ostream& out = console.out;
  out << "name:         " << Printable(shown.name()) << '\n'
      << "export:       " << Printable(spec.export_()) << '\n'
      << "device:       " << Printable(OrDash(shown.device())) << '\n'
      << "state:        " << EnumName(v1::AttachmentState_descriptor(), shown.state()) << '\n'
      << "size:         " << FormatExactSize(shown.size_bytes()) << '\n'
      << "access:       " << (spec.read_only() ? "read-only" : "read-write") << '\n'
      << "connections:  " << (spec.connections() == 0 ? "as configured" : absl::StrCat(spec.connections()))
      << '\n'
      << "block size:   " << (spec.block_size() == 0 ? 512 : spec.block_size()) << '\n';
  if (spec.has_timeout()) out << "I/O timeout:  " << DurationText(spec.timeout()) << '\n';
  if (spec.has_dead_connection_timeout()) {
    out << "dead timeout: " << DurationText(spec.dead_connection_timeout()) << '\n';
  }
  out << "partitions:   " << Printable(OrDash(absl::StrJoin(shown.partitions(), ", "))) << '\n'
      << "created:      " << TimeText(shown.create_time()) << '\n';
  if (!shown.error().empty()) out << "error:        " << Printable(shown.error()) << '\n';
  out << std::flush;
}

void AddListAndShow(CLI::App& group, Action& chosen) {
  CLI::App& list = *group.add_subcommand("list", "Show every attachment");
  list.footer(
      "Examples:\n"
      "  berthctl attachment list\n"
      "  berthctl attachment list --json | jq -r '.attachments[].device'");
  list.callback([&chosen] { chosen = List; });

  CLI::App& show = *group.add_subcommand("show", "Show one attachment");
  const auto request = std::make_shared<v1::GetAttachmentRequest>();
  AddName(show, "attachment", "The attachment's name", request);
  show.footer(
      "Examples:\n"
      "  berthctl attachment show disk");
  show.callback([request, &chosen] {
    chosen = [request](Server& server) {
      const auto stub = NewStub(server);
      v1::Attachment found;
      const ExitCode code = server.Call(
          absl::StrCat("attachment show ", request->name()),
          [&](grpc::ClientContext* context) { return stub->GetAttachment(context, *request, &found); });
      if (code == ExitCode::kSuccess) PrintAttachment(server.console(), found);
      return code;
    };
  });
}

}  // namespace

void AddAttachmentCommands(CLI::App& app, Action& chosen) {
  AddAttach(app, chosen);
  AddDetach(app, chosen);
  CLI::App& group = *app.add_subcommand("attachment", "Show attachments");
  group.require_subcommand(1);
  AddListAndShow(group, chosen);
}

}  // namespace berth::berthctl
