// berthctl image create|info|resize
#include <memory>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "berth/v1/images.grpc.pb.h"
#include "control/berthctl/command.h"
#include "control/berthctl/image_text.h"
#include "control/berthctl/operation_call.h"
#include "control/berthctl/option_values.h"
#include "control/berthctl/qcow2_options.h"
#include "control/berthctl/request_options.h"
#include "control/berthctl/secret_options.h"
#include "control/berthctl/server.h"

namespace berth::berthctl {
namespace {

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
  if (code == ExitCode::kSuccess) PrintImage(server.console(), info);
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
CLI::Option* AddImageSize(CLI::App& command, const std::shared_ptr<Request>& request) {
  return AddSize(command, "size", "Size: 512M, 10G, 1MiB",
                 [request](uint64_t size) { request->set_size_bytes(size); });
}

// Setting space aside, or writing the tables of all of it, takes its time.
bool IsLong(const v1::CreateImageRequest& request) {
  return request.preallocate() || request.qcow2().preallocation() > v1::PREALLOCATION_OFF ||
         request.qcow2().data_file_raw();
}

void AddQcow2Options(CLI::App& command, const std::shared_ptr<v1::CreateImageRequest>& request) {
  command
      .add_option_function<std::vector<std::string>>(
          "--option,-o",
          [request](const std::vector<std::string>& texts) {
            for (const std::string& text : texts) {
              const absl::Status status = ParseQcow2Options(text, request->mutable_qcow2());
              if (!status.ok()) throw CLI::ValidationError("--option", std::string(status.message()));
            }
          },
          "Options of a qcow2 image, NAME=VALUE[,NAME=VALUE...]: compat, cluster_size, refcount_bits, "
          "lazy_refcounts, extended_l2, compression_type, backing_file, backing_fmt, data_file, "
          "data_file_raw, "
          "preallocation; values as for qemu-img create")
      ->type_name("NAME=VALUE")
      ->expected(1)
      ->take_all();
  command
      .add_option_function<std::string>(
          "--backing-file,-b",
          [request](const std::string& name) { request->mutable_qcow2()->set_backing_file(name); },
          "Backing file of a qcow2 image, as it is to stand in it; relative to the image's folder")
      ->type_name("FILE");
  AddEnum(command, "--backing-format,-F", "Its format: raw or qcow2", v1::ImageFormat_descriptor(),
          [request](int format) {
            request->mutable_qcow2()->set_backing_format(static_cast<v1::ImageFormat>(format));
          });
}

void AddLuksOptions(CLI::App& command, const std::shared_ptr<v1::CreateImageRequest>& request) {
  AddSecret(command, [request] { return request->mutable_secret(); });
  using Field = std::string* (v1::LuksOptions::*)();
  const auto add = [&command, request](const std::string& option, const std::string& help, Field field) {
    command
        .add_option_function<std::string>(
            option,
            [request, field](const std::string& value) { *(request->mutable_luks()->*field)() = value; },
            absl::StrCat("Of a luks image: ", help))
        ->type_name("NAME");
  };
  add("--cipher-alg", "aes-256, aes-192 or aes-128 (aes-256)", &v1::LuksOptions::mutable_cipher_algorithm);
  add("--cipher-mode", "xts, cbc or ecb (xts)", &v1::LuksOptions::mutable_cipher_mode);
  add("--ivgen-alg", "plain64, plain or essiv, with sha256 (plain64)",
      &v1::LuksOptions::mutable_iv_generator);
  add("--hash-alg", "of the key derivation: sha256, sha512, … (sha256)", &v1::LuksOptions::mutable_hash);
  AddDuration(command, "--iter-time", "Of a luks image: how long one try at a secret takes (2s)",
              [request](absl::Duration time) {
                google::protobuf::Duration& field = *request->mutable_luks()->mutable_iteration_time();
                field.set_seconds(absl::IDivDuration(time, absl::Seconds(1), &time));
                field.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(time)));
              });
}

// Setting space aside takes its time: that is an operation.
ExitCode Preallocate(Server& server, v1::CreateImageRequest request) {
  if (request.operation_name().empty()) request.set_operation_name(NewOperationName("image-create"));
  const std::unique_ptr<v1::ImageService::StubInterface> stub = v1::ImageService::NewStub(server.channel());
  v1::ImageInfo info;
  const ExitCode code = CallAsOperation(
      server, absl::StrCat("image create ", request.path()), request.operation_name(),
      [&](grpc::ClientContext* context) { return stub->CreateImage(context, request, &info); }, kLongTimeout);
  if (code == ExitCode::kSuccess) PrintImage(server.console(), info);
  return code;
}

void AddCreate(CLI::App& image, Action& chosen) {
  CLI::App& command = *image.add_subcommand("create", "Make an image");
  const auto request = std::make_shared<v1::CreateImageRequest>();
  AddImage(command, request);
  AddImageSize(command, request);
  AddQcow2Options(command, request);
  AddLuksOptions(command, request);
  command.add_flag_callback(
      "--preallocate", [request] { request->set_preallocate(true); },
      "Set the space aside now instead of at the first write");
  command
      .add_option_function<std::string>(
          "--operation", [request](const std::string& name) { request->set_operation_name(name); },
          "The name under which 'berthctl operation' shows it (a new one); the same again joins what runs")
      ->type_name("NAME");
  command.footer(
      "Making again what is there, with the same format, size and options, succeeds. Preallocation shows on "
      "a "
      "terminal how far it is; Ctrl-C cancels it and leaves no new file. It goes on in berthd when berthctl "
      "is "
      "killed or its --timeout passes. A qcow2 image over a backing file is as large as that where no size "
      "is "
      "given.\n\n"
      "Examples:\n"
      "  berthctl image create /srv/images/disk.raw 10G\n"
      "  berthctl image create /srv/images/db.raw 200G --preallocate --timeout=30m\n"
      "  berthctl image create /srv/images/db.raw 200G --preallocate --operation=make-db\n"
      "  berthctl image create /srv/images/disk.qcow2 10G -f qcow2 -o cluster_size=128k,lazy_refcounts=on\n"
      "  berthctl image create /srv/images/safe.luks 10G -f luks --secret-file=/etc/berth/secrets/safe\n"
      "  berthctl image create /srv/images/top.qcow2 -f qcow2 -b base.qcow2 -F qcow2");
  command.callback([request, &chosen] {
    if (request->size_bytes() == 0 && request->qcow2().backing_file().empty()) {
      throw CLI::RequiredError("size");
    }
    if (!request->operation_name().empty() && !IsLong(*request)) {
      throw CLI::RequiredError("--operation names what takes its time; --preallocate");
    }
    chosen = [request](Server& server) {
      if (IsLong(*request)) return Preallocate(server, *request);
      return Run<v1::CreateImageRequest>(
          server, "image create", &v1::ImageService::StubInterface::CreateImage, *request, kUsualTimeout);
    };
  });
}

void AddInfo(CLI::App& image, Action& chosen) {
  CLI::App& command = *image.add_subcommand("info", "Show an image, also one that is in use");
  const auto request = std::make_shared<v1::InspectImageRequest>();
  AddImage(command, request);
  command.add_flag_callback(
      "--backing-chain", [request] { request->set_backing_chain(true); },
      "Also the images below, from the nearest down");
  AddBackingFormat(command, request);
  command.footer(
      "Examples:\n"
      "  berthctl image info /srv/images/disk.raw\n"
      "  berthctl image info /srv/images/top.qcow2 -f qcow2 --backing-chain\n"
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
  AddImageSize(command, request)->required();
  AddAllowShrink(command, request);
  AddBackingFormat(command, request);
  command.footer(
      "An image that is exported is resized with 'berthctl export update NAME --size=SIZE'.\n\n"
      "Examples:\n"
      "  berthctl image resize /srv/images/disk.raw 20G\n"
      "  berthctl image resize /srv/images/disk.raw 5G --allow-shrink\n"
      "  berthctl image resize /srv/images/disk.qcow2 40G -f qcow2");
  command.callback([request, &chosen] {
    chosen = [request](Server& server) {
      return Run<v1::ResizeImageRequest>(
          server, "image resize", &v1::ImageService::StubInterface::ResizeImage, *request, kUsualTimeout);
    };
  });
}

}  // namespace

void AddImageCommands(CLI::App& app, Action& chosen) {
  CLI::App& image = *app.add_subcommand("image", "Make, show, check and convert image files");
  image.require_subcommand(1);
  AddCreate(image, chosen);
  AddInfo(image, chosen);
  AddResize(image, chosen);
  AddImageToolCommands(image, chosen);
}

}  // namespace berth::berthctl
