// berthctl image check|convert|map
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "absl/strings/str_cat.h"
#include "berth/v1/image_tools.grpc.pb.h"
#include "control/berthctl/command.h"
#include "control/berthctl/image_text.h"
#include "control/berthctl/operation_call.h"
#include "control/berthctl/option_values.h"
#include "control/berthctl/qcow2_options.h"
#include "control/berthctl/request_options.h"
#include "control/berthctl/server.h"
#include "control/berthctl/size_text.h"

namespace berth::berthctl {
namespace {

using Stub = v1::ImageToolService::StubInterface;

std::unique_ptr<Stub> NewStub(Server& server) { return v1::ImageToolService::NewStub(server.channel()); }

template <typename Request>
void AddOperationName(CLI::App& command, const std::shared_ptr<Request>& request) {
  command
      .add_option_function<std::string>(
          "--operation", [request](const std::string& name) { request->set_operation_name(name); },
          "The name under which 'berthctl operation' shows it (a new one); the same again joins what runs")
      ->type_name("NAME");
}

void AddPath(CLI::App& command, const std::string& name, const std::string& help,
             std::function<void(const std::string&)> set) {
  command.add_option_function<std::string>(name, std::move(set), help)->required()->type_name("PATH");
}

// What is wrong that nobody mended.
void PrintFindings(std::ostream& out, const v1::CheckImageResponse& result) {
  for (const std::string& finding : result.findings()) out << Printable(finding) << '\n';
  const uint64_t found =
      result.corruptions() + result.leaks() + result.corruptions_fixed() + result.leaks_fixed();
  if (found > static_cast<uint64_t>(result.findings_size())) {
    out << "and " << found - static_cast<uint64_t>(result.findings_size()) << " more\n";
  }
  if (found > 0) out << '\n';
}

void PrintCheck(Console& console, const v1::CheckImageResponse& result) {
  if (console.json) return PrintJson(console.out, result);
  std::ostream& out = console.out;
  PrintFindings(out, result);
  out << "corruptions:  " << result.corruptions();
  if (result.corruptions_fixed() > 0) out << " (" << result.corruptions_fixed() << " mended)";
  out << "\nleaks:        " << result.leaks();
  if (result.leaks_fixed() > 0) out << " (" << result.leaks_fixed() << " mended)";
  out << "\nclusters:     " << result.allocated_clusters() << " of " << result.total_clusters()
      << " allocated, " << result.compressed_clusters() << " compressed, " << result.fragmented_clusters()
      << " out of order\n"
      << "end:          " << FormatExactSize(result.image_end_offset_bytes()) << std::endl;
}

void AddCheck(CLI::App& image, Action& chosen) {
  CLI::App& command =
      *image.add_subcommand("check", "Check the reference counts of a qcow2 image, and mend them");
  const auto request = std::make_shared<v1::CheckImageRequest>();
  AddPath(command, "path", "The image's absolute path, inside one of berthd's image roots",
          [request](const std::string& path) { request->set_path(path); });
  request->set_format(v1::IMAGE_FORMAT_QCOW2);
  AddEnum(command, "--format,-f", "Format (qcow2 where it is left out)", v1::ImageFormat_descriptor(),
          [request](int format) { request->set_format(static_cast<v1::ImageFormat>(format)); });
  AddEnum(command, "--repair,-r", "What to mend", v1::ImageRepair_descriptor(),
          [request](int repair) { request->set_repair(static_cast<v1::ImageRepair>(repair)); });
  AddOperationName(command, request);
  command.footer(
      "Ends with status 0 for an image that is good, or good again, and with 1 where something is left.\n\n"
      "Examples:\n"
      "  berthctl image check /srv/images/db.qcow2\n"
      "  berthctl image check /srv/images/db.qcow2 --repair=all");
  command.callback([request, &chosen] {
    chosen = [request](Server& server) {
      if (request->operation_name().empty()) request->set_operation_name(NewOperationName("image-check"));
      const std::unique_ptr<Stub> stub = NewStub(server);
      v1::CheckImageResponse result;
      const ExitCode code = CallAsOperation(
          server, absl::StrCat("image check ", request->path()), request->operation_name(),
          [&](grpc::ClientContext* context) { return stub->CheckImage(context, *request, &result); },
          kLongTimeout);
      if (code != ExitCode::kSuccess) return code;
      PrintCheck(server.console(), result);
      return result.corruptions() + result.leaks() == 0 ? ExitCode::kSuccess : ExitCode::kFailure;
    };
  });
}

// --format, --snapshot and --backing-format of an image that is read.
void AddSource(CLI::App& command, v1::Image* image) {
  image->set_format(v1::IMAGE_FORMAT_RAW);
  AddEnum(command, "--format,-f", "Format (raw where it is left out)", v1::ImageFormat_descriptor(),
          [image](int format) { image->set_format(static_cast<v1::ImageFormat>(format)); });
  command
      .add_option_function<std::string>(
          "--snapshot", [image](const std::string& name) { image->set_snapshot(name); },
          "Internal snapshot of a qcow2 image, by id or name, instead of the disk")
      ->type_name("NAME");
  AddEnum(command, "--backing-format",
          "Format of a qcow2 image's backing files that the image does not state",
          v1::ImageFormat_descriptor(),
          [image](int format) { image->set_backing_format(static_cast<v1::ImageFormat>(format)); });
}

void AddConvert(CLI::App& image, Action& chosen) {
  CLI::App& command = *image.add_subcommand("convert", "Make a new image with the content of another");
  const auto request = std::make_shared<v1::ConvertImageRequest>();
  v1::CreateImageRequest* const target = request->mutable_target();
  AddPath(command, "source", "The image's absolute path, inside one of berthd's image roots",
          [request](const std::string& path) { request->mutable_source()->set_path(path); });
  AddPath(command, "target", "The new image's absolute path",
          [target](const std::string& path) { target->set_path(path); });
  AddSource(command, request->mutable_source());
  target->set_format(v1::IMAGE_FORMAT_RAW);
  AddEnum(command, "--target-format,-O", "Format of the new image (raw where it is left out)",
          v1::ImageFormat_descriptor(),
          [target](int format) { target->set_format(static_cast<v1::ImageFormat>(format)); });
  AddSize(command, "--size", "Size of the new image (the source's); what is added reads as zeroes",
          [target](uint64_t size) { target->set_size_bytes(size); });
  AddSize(command, "--sparse", "Zeroes in blocks of this size are not written (4K)",
          [request](uint64_t size) {
            request->set_sparse_bytes(static_cast<uint32_t>(std::min<uint64_t>(size, UINT32_MAX)));
          });
  command
      .add_option_function<std::vector<std::string>>(
          "--option,-o",
          [target](const std::vector<std::string>& texts) {
            for (const std::string& text : texts) {
              const absl::Status status = ParseQcow2Options(text, target->mutable_qcow2());
              if (!status.ok()) throw CLI::ValidationError("--option", std::string(status.message()));
            }
          },
          "Options of a new qcow2 image, NAME=VALUE[,NAME=VALUE...], as for 'berthctl image create'")
      ->type_name("NAME=VALUE")
      ->expected(1)
      ->take_all();
  AddOperationName(command, request);
  command.footer(
      "Shows on a terminal how much of the data is copied; Ctrl-C cancels it and leaves no new image.\n\n"
      "Examples:\n"
      "  berthctl image convert /srv/images/db.qcow2 /srv/images/db.raw --format=qcow2\n"
      "  berthctl image convert /srv/images/db.raw /srv/images/db.qcow2 -O qcow2 -o cluster_size=1M");
  command.callback([request, &chosen] {
    chosen = [request](Server& server) {
      if (request->operation_name().empty()) request->set_operation_name(NewOperationName("image-convert"));
      const std::unique_ptr<Stub> stub = NewStub(server);
      v1::ImageInfo info;
      const ExitCode code = CallAsOperation(
          server, absl::StrCat("image convert ", request->target().path()), request->operation_name(),
          [&](grpc::ClientContext* context) { return stub->ConvertImage(context, *request, &info); },
          kLongTimeout);
      if (code == ExitCode::kSuccess) PrintImage(server.console(), info);
      return code;
    };
  });
}

std::string ExtentKind(const v1::MappedExtent& extent) {
  if (!extent.zero()) return "data";
  return extent.allocated() ? "zero, allocated" : "hole";
}

void PrintMap(Console& console, const v1::MapImageResponse& map) {
  if (console.json) return PrintJson(console.out, map);
  Table table({"OFFSET", "LENGTH", "KIND"});
  for (const v1::MappedExtent& extent : map.extents()) {
    table.Add({absl::StrCat(extent.offset_bytes()), absl::StrCat(extent.length_bytes()), ExtentKind(extent)});
  }
  table.Print(console.out);
}

// All pages as one.
ExitCode Map(Server& server, v1::MapImageRequest request) {
  const std::unique_ptr<Stub> stub = NewStub(server);
  const uint64_t end = request.length_bytes() == 0 ? 0 : request.offset_bytes() + request.length_bytes();
  v1::MapImageResponse all;
  request.set_page_size(8192);
  while (true) {
    v1::MapImageResponse page;
    const ExitCode code =
        server.Call(absl::StrCat("image map ", request.image().path()),
                    [&](grpc::ClientContext* context) { return stub->MapImage(context, request, &page); });
    if (code != ExitCode::kSuccess) return code;
    all.set_size_bytes(page.size_bytes());
    all.mutable_extents()->MergeFrom(page.extents());
    if (page.next_offset_bytes() == 0) break;
    request.set_offset_bytes(page.next_offset_bytes());
    if (end != 0) request.set_length_bytes(end - page.next_offset_bytes());
  }
  PrintMap(server.console(), all);
  return ExitCode::kSuccess;
}

void AddMap(CLI::App& image, Action& chosen) {
  CLI::App& command = *image.add_subcommand("map", "Show where an image has data");
  const auto request = std::make_shared<v1::MapImageRequest>();
  AddPath(command, "path", "The image's absolute path, inside one of berthd's image roots",
          [request](const std::string& path) { request->mutable_image()->set_path(path); });
  AddSource(command, request->mutable_image());
  AddSize(command, "--offset", "Where to begin (0)",
          [request](uint64_t size) { request->set_offset_bytes(size); });
  AddSize(command, "--length", "How far to look (up to the end)",
          [request](uint64_t size) { request->set_length_bytes(size); });
  command.footer(
      "Examples:\n"
      "  berthctl image map /srv/images/disk.raw\n"
      "  berthctl image map /srv/images/db.qcow2 --format=qcow2 --json | jq '.extents[] | select(.zero | "
      "not)'");
  command.callback(
      [request, &chosen] { chosen = [request](Server& server) { return Map(server, *request); }; });
}

}  // namespace

void AddImageToolCommands(CLI::App& image, Action& chosen) {
  AddCheck(image, chosen);
  AddConvert(image, chosen);
  AddMap(image, chosen);
}

}  // namespace berth::berthctl
