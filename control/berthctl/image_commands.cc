// berthctl image create|info|resize
#include <memory>
#include <string>

#include "CLI/App.hpp"
#include "absl/strings/str_cat.h"
#include "berth/v1/images.grpc.pb.h"
#include "control/berthctl/command.h"
#include "control/berthctl/operation_call.h"
#include "control/berthctl/option_values.h"
#include "control/berthctl/request_options.h"
#include "control/berthctl/server.h"
#include "control/berthctl/size_text.h"

namespace berth::berthctl {
namespace {

void Print(Console& console, const v1::ImageInfo& info) {
  if (console.json) return PrintJson(console.out, info);
  console.out << "path:       " << Printable(info.path()) << '\n'
              << "format:     " << EnumName(v1::ImageFormat_descriptor(), info.format()) << '\n'
              << "size:       " << FormatExactSize(info.size_bytes()) << '\n'
              << "allocated:  " << FormatExactSize(info.allocated_bytes()) << '\n'
              << "in use:     " << (info.in_use() ? "yes" : "no") << std::endl;
}

template <typename Request>
using Method = grpc::Status (v1::ImageService::StubInterface::*)(grpc::ClientContext*, const Request&,
                                                                 v1::ImageInfo*);

template <typename Request>
ExitCode Run(Server& server, const char* what, Method<Request> method, const Request& request,
             absl::Duration timeout) {
  const std::unique_ptr<v1::ImageService::StubInterface> stub = v1::ImageService::NewStub(server.channel());
  v1::ImageInfo info;
  const ExitCode code = server.Call(
      absl::StrCat(what, " ", request.path()),
      [&](grpc::ClientContext* context) { return (stub.get()->*method)(context, request, &info); }, timeout);
  if (code == ExitCode::kSuccess) Print(server.console(), info);
  return code;
}

// What every image command takes.
template <typename Request>
void AddImage(CLI::App& command, const std::shared_ptr<Request>& request) {
  command
      .add_option_function<std::string>(
          "path", [request](const std::string& path) { request->set_path(path); },
          "The image's absolute path, inside one of berthd's image roots")
      ->required()
      ->type_name("PATH");
  AddFormat(command, request);
}

template <typename Request>
void AddImageSize(CLI::App& command, const std::shared_ptr<Request>& request) {
  AddSize(command, "size", "Size: 512M, 10G, 1MiB", [request](uint64_t size) {
    request->set_size_bytes(size);
  })->required();
}

// Setting space aside takes its time: that is an operation.
ExitCode Preallocate(Server& server, v1::CreateImageRequest request) {
  if (request.operation_name().empty()) request.set_operation_name(NewOperationName("image-create"));
  const std::unique_ptr<v1::ImageService::StubInterface> stub = v1::ImageService::NewStub(server.channel());
  v1::ImageInfo info;
  const ExitCode code = CallAsOperation(
      server, absl::StrCat("image create ", request.path()), request.operation_name(),
      [&](grpc::ClientContext* context) { return stub->CreateImage(context, request, &info); }, kLongTimeout);
  if (code == ExitCode::kSuccess) Print(server.console(), info);
  return code;
}

void AddCreate(CLI::App& image, Action& chosen) {
  CLI::App& command = *image.add_subcommand("create", "Make an image");
  const auto request = std::make_shared<v1::CreateImageRequest>();
  AddImage(command, request);
  AddImageSize(command, request);
  CLI::Option* preallocate = command.add_flag_callback(
      "--preallocate", [request] { request->set_preallocate(true); },
      "Set the space aside now instead of at the first write");
  command
      .add_option_function<std::string>(
          "--operation", [request](const std::string& name) { request->set_operation_name(name); },
          "The name under which 'berthctl operation' shows it (a new one); the same again joins what runs")
      ->type_name("NAME")
      ->needs(preallocate);
  command.footer(
      "Making again what is there, with the same format and size, succeeds. --preallocate shows on a "
      "terminal "
      "how far it is; Ctrl-C cancels it and leaves no new file. It goes on in berthd when berthctl is killed "
      "or "
      "its --timeout passes.\n\n"
      "Examples:\n"
      "  berthctl image create /srv/images/disk.raw 10G\n"
      "  berthctl image create /srv/images/db.raw 200G --preallocate --timeout=30m\n"
      "  berthctl image create /srv/images/db.raw 200G --preallocate --operation=make-db");
  command.callback([request, &chosen] {
    chosen = [request](Server& server) {
      if (request->preallocate()) return Preallocate(server, *request);
      return Run<v1::CreateImageRequest>(
          server, "image create", &v1::ImageService::StubInterface::CreateImage, *request, kUsualTimeout);
    };
  });
}

void AddInfo(CLI::App& image, Action& chosen) {
  CLI::App& command = *image.add_subcommand("info", "Show an image, also one that is in use");
  const auto request = std::make_shared<v1::InspectImageRequest>();
  AddImage(command, request);
  command.footer(
      "Examples:\n"
      "  berthctl image info /srv/images/disk.raw\n"
      "  berthctl image info /srv/images/disk.raw --json | jq -r .allocated_bytes");
  command.callback([request, &chosen] {
    chosen = [request](Server& server) {
      return Run<v1::InspectImageRequest>(
          server, "image info", &v1::ImageService::StubInterface::InspectImage, *request, kUsualTimeout);
    };
  });
}

void AddResize(CLI::App& image, Action& chosen) {
  CLI::App& command = *image.add_subcommand("resize", "Change the size of an image that no export holds");
  const auto request = std::make_shared<v1::ResizeImageRequest>();
  AddImage(command, request);
  AddImageSize(command, request);
  AddAllowShrink(command, request);
  command.footer(
      "An image that is exported is resized with 'berthctl export update NAME --size=SIZE'.\n\n"
      "Examples:\n"
      "  berthctl image resize /srv/images/disk.raw 20G\n"
      "  berthctl image resize /srv/images/disk.raw 5G --allow-shrink");
  command.callback([request, &chosen] {
    chosen = [request](Server& server) {
      return Run<v1::ResizeImageRequest>(
          server, "image resize", &v1::ImageService::StubInterface::ResizeImage, *request, kUsualTimeout);
    };
  });
}

}  // namespace

void AddImageCommands(CLI::App& app, Action& chosen) {
  CLI::App& image = *app.add_subcommand("image", "Make, show and resize image files");
  image.require_subcommand(1);
  AddCreate(image, chosen);
  AddInfo(image, chosen);
  AddResize(image, chosen);
}

}  // namespace berth::berthctl
