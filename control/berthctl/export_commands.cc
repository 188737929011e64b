// berthctl export create|list|show|update|delete
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "berth/v1/exports.grpc.pb.h"
#include "control/berthctl/command.h"
#include "control/berthctl/listing.h"
#include "control/berthctl/option_values.h"
#include "control/berthctl/request_options.h"
#include "control/berthctl/secret_options.h"
#include "control/berthctl/server.h"
#include "control/berthctl/size_text.h"
#include "control/berthctl/time_text.h"

namespace berth::berthctl {
namespace {

using Stub = v1::ExportService::StubInterface;

constexpr char kAllowClientHelp[] =
    "A network client that may use it: dn:PATTERN for the name in its certificate, psk:PATTERN for the user "
    "of its "
    "pre-shared key, * for everybody, or one of these after a ! that refuses; repeat for more, the first "
    "that fits decides";

std::unique_ptr<Stub> NewStub(Server& server) { return v1::ExportService::NewStub(server.channel()); }

std::string Limit(const v1::RateLimit& limit) {
  std::string text;
  if (limit.operations_per_second() > 0) {
    text = absl::StrCat(limit.operations_per_second(), " operations/s");
    if (limit.burst_operations() > 0) absl::StrAppend(&text, " (burst ", limit.burst_operations(), ")");
  }
  if (limit.bytes_per_second() > 0) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", FormatSize(limit.bytes_per_second()), "/s");
    if (limit.burst_bytes() > 0) absl::StrAppend(&text, " (burst ", FormatSize(limit.burst_bytes()), ")");
  }
  return text.empty() ? "none" : text;
}

// "minimum 4 KiB, payload 1 MiB, required", or nothing where all is as it comes.
std::string BlockSizesText(const v1::BlockSizes& sizes) {
  std::string text;
  const auto add = [&text](const char* word, uint32_t bytes) {
    if (bytes != 0) absl::StrAppend(&text, text.empty() ? "" : ", ", word, " ", FormatSize(bytes));
  };
  add("minimum", sizes.minimum_bytes());
  add("preferred", sizes.preferred_bytes());
  add("payload", sizes.maximum_payload_bytes());
  if (sizes.must_be_asked_for()) absl::StrAppend(&text, text.empty() ? "" : ", ", "required");
  return text;
}

// "raw /srv/disk.raw".
std::string ImageText(const v1::Image& image) {
  const std::string format = EnumName(v1::ImageFormat_descriptor(), image.format());
  if (image.path().empty()) return format;
  return absl::StrCat(format, " ", image.path(), image.snapshot().empty() ? "" : ", snapshot ",
                      image.snapshot());
}

void PrintExport(Console& console, const v1::Export& shown) {
  if (console.json) return PrintJson(console.out, shown);
  const v1::ExportSpec& spec = shown.spec();
  const v1::Image& image = spec.image();
  std::ostream& out = console.out;
  out << "name:         " << Printable(shown.name()) << '\n'
      << "image:        " << Printable(ImageText(image)) << '\n'
      << "size:         " << FormatExactSize(shown.size_bytes()) << '\n'
      << "access:       "
      << (spec.read_only()        ? "read-only"
          : spec.shared_writers() ? "shared writers"
                                  : "one writer")
      << '\n'
      << "cache:        "
      << (image.cache() == 0 ? "writeback" : EnumName(v1::CacheMode_descriptor(), image.cache())) << '\n'
      << "discard:      "
      << (image.discard() == 0 ? "unmap" : EnumName(v1::DiscardMode_descriptor(), image.discard())) << '\n';
  if (image.has_secret()) out << "secret:       " << Printable(SecretText(image.secret())) << '\n';
  if (spec.offset_bytes() != 0 || spec.length_bytes() != 0) {
    out << "part:         from byte " << spec.offset_bytes() << ", "
        << (spec.length_bytes() == 0 ? "to the end" : absl::StrCat(spec.length_bytes(), " bytes")) << '\n';
  }
  out << "rate limit:   " << Limit(spec.rate_limit()) << '\n';
  if (spec.require_tls()) out << "TLS:          required\n";
  if (!spec.allowed_clients().empty()) {
    out << "clients:      " << Printable(absl::StrJoin(spec.allowed_clients(), "  ")) << '\n';
  }
  if (const std::string sizes = BlockSizesText(spec.block_sizes()); !sizes.empty()) {
    out << "block sizes:  " << sizes << '\n';
  }
  if (spec.client_resize()) out << "resize:       clients may\n";
  if (!spec.description().empty()) out << "description:  " << Printable(spec.description()) << '\n';
  out << "created:      " << TimeText(shown.create_time()) << '\n'
      << "connections:  " << shown.connections() << '\n'
      << "attachments:  "
      << (shown.attachments().empty() ? "none" : Printable(absl::StrJoin(shown.attachments(), ", "))) << '\n';
  if (!shown.error().empty()) out << "error:        " << Printable(shown.error()) << '\n';
  out << std::flush;
}

// Options that set the four numbers of a rate limit; `limit` is called where one is given.
void AddRateLimit(CLI::App& command, const std::function<v1::RateLimit*()>& limit) {
  command
      .add_option_function<uint64_t>(
          "--iops", [limit](const uint64_t& number) { limit()->set_operations_per_second(number); },
          "At most so many operations a second; 0 is no limit")
      ->type_name("NUMBER");
  command
      .add_option_function<uint64_t>(
          "--iops-burst", [limit](const uint64_t& number) { limit()->set_burst_operations(number); },
          "What may be used at once after a pause")
      ->type_name("NUMBER");
  AddSize(command, "--bps", "At most so many bytes a second; 0 is no limit",
          [limit](uint64_t bytes) { limit()->set_bytes_per_second(bytes); });
  AddSize(command, "--bps-burst", "What may be used at once after a pause",
          [limit](uint64_t bytes) { limit()->set_burst_bytes(bytes); });
}

// As AddSize(), for a field of 32 bits. What such a field may hold is berthd's matter.
void AddSmallSize(CLI::App& command, const std::string& name, const std::string& help,
                  const std::function<void(uint32_t)>& set) {
  AddSize(command, name, help, [name, set](uint64_t bytes) {
    if (bytes > std::numeric_limits<uint32_t>::max()) {
      throw CLI::ValidationError(absl::StrCat(name, "=", bytes, " is too large"));
    }
    set(static_cast<uint32_t>(bytes));
  });
}

// Options that set the size constraints of clients; `sizes` is called where one is given.
void AddBlockSizes(CLI::App& command, const std::function<v1::BlockSizes*()>& sizes) {
  AddSmallSize(command, "--min-block-size", "Network clients' offsets and lengths are multiples of this (1)",
               [sizes](uint32_t bytes) { sizes()->set_minimum_bytes(bytes); });
  AddSmallSize(command, "--preferred-block-size", "Tell network clients that this is fastest (the image's)",
               [sizes](uint32_t bytes) { sizes()->set_preferred_bytes(bytes); });
  AddSmallSize(command, "--max-payload", "The most that one read or write of theirs carries (32M)",
               [sizes](uint32_t bytes) { sizes()->set_maximum_payload_bytes(bytes); });
  command.add_flag_callback(
      "--require-block-size", [sizes] { sizes()->set_must_be_asked_for(true); },
      "Refuse network clients that do not ask for these sizes");
}

template <typename Request>
void AddExportName(CLI::App& command, const std::shared_ptr<Request>& request) {
  AddName(command, "export", "The export's name", request);
}

void AddImageOptions(CLI::App& command, const std::shared_ptr<v1::CreateExportRequest>& request) {
  // The request's own, which it keeps.
  const std::shared_ptr<v1::Image> image(request, request->mutable_spec()->mutable_image());
  command
      .add_option_function<std::string>(
          "image", [image](const std::string& path) { image->set_path(path); },
          "The image's absolute path; left out for the formats memory and null")
      ->type_name("PATH");
  AddFormat(command, image);
  AddSecret(command, [image] { return image->mutable_secret(); });
  AddEnum(command, "--cache", "Cache mode (writeback)", v1::CacheMode_descriptor(),
          [image](int cache) { image->set_cache(static_cast<v1::CacheMode>(cache)); });
  AddEnum(command, "--discard", "What a discard does (unmap)", v1::DiscardMode_descriptor(),
          [image](int mode) { image->set_discard(static_cast<v1::DiscardMode>(mode)); });
  command
      .add_option_function<std::string>(
          "--snapshot", [image](const std::string& name) { image->set_snapshot(name); },
          "Show this internal snapshot of a qcow2 image, by its id or else its name; read-only")
      ->type_name("NAME");
  AddBackingFormat(command, image);
  AddSize(command, "--size", "Size of a memory or null image",
          [image](uint64_t size) { image->set_size_bytes(size); });
}

void AddCreate(CLI::App& group, Action& chosen) {
  CLI::App& command = *group.add_subcommand("create", "Open an image and give it a name");
  const auto request = std::make_shared<v1::CreateExportRequest>();
  v1::ExportSpec* spec = request->mutable_spec();
  AddExportName(command, request);
  AddImageOptions(command, request);
  command.add_flag_callback(
      "--read-only,-r", [spec] { spec->set_read_only(true); }, "Refuse writes");
  command.add_flag_callback(
      "--shared-writers", [spec] { spec->set_shared_writers(true); },
      "Its users coordinate their writes: it may be attached and served several times at once");
  command.add_option_function<std::string>(
      "--description,-D", [spec](const std::string& text) { spec->set_description(text); },
      "Free text for clients that ask");
  command.add_flag_callback(
      "--require-tls", [spec] { spec->set_require_tls(true); }, "Network clients get it under TLS alone");
  command
      .add_option_function<std::vector<std::string>>(
          "--allow-client",
          [spec](const std::vector<std::string>& rules) {
            spec->mutable_allowed_clients()->Assign(rules.begin(), rules.end());
          },
          kAllowClientHelp)
      ->type_name("RULE");
  AddSize(command, "--offset,-o", "Show the image from here on",
          [spec](uint64_t offset) { spec->set_offset_bytes(offset); });
  AddSize(command, "--length", "Show so much of it (up to the end)",
          [spec](uint64_t length) { spec->set_length_bytes(length); });
  AddRateLimit(command, [spec] { return spec->mutable_rate_limit(); });
  AddBlockSizes(command, [spec] { return spec->mutable_block_sizes(); });
  command.add_flag_callback(
      "--client-resize", [spec] { spec->set_client_resize(true); },
      "Network clients may change the size, to a smaller one too");
  command.footer(
      "Examples:\n"
      "  berthctl export create disk /srv/images/disk.raw\n"
      "  berthctl export create base /srv/images/base.raw --read-only\n"
      "  berthctl export create db /srv/images/db.raw --cache=none --iops=2000 --bps=200M\n"
      "  berthctl export create vault /srv/images/vault.raw --require-tls "
      "--allow-client='dn:CN=agent-*,O=Example'\n"
      "  berthctl export create safe /srv/images/safe.luks --format=luks "
      "--secret-file=/etc/berth/secrets/safe\n"
      "  berthctl export create vm /srv/images/vm.raw --min-block-size=4K --require-block-size\n"
      "  berthctl export create scratch --format=memory --size=1G --client-resize");
  command.callback([request, &chosen] {
    chosen = [request](Server& server) {
      const auto stub = NewStub(server);
      v1::Export made;
      const ExitCode code = server.Call(
          absl::StrCat("export create ", request->name()),
          [&](grpc::ClientContext* context) { return stub->CreateExport(context, *request, &made); });
      if (code == ExitCode::kSuccess) PrintExport(server.console(), made);
      return code;
    };
  });
}

ExitCode List(Server& server) {
  v1::ListExportsResponse all;
  const ExitCode code = ListExports(server, &all);
  if (code != ExitCode::kSuccess) return code;
  Console& console = server.console();
  if (console.json) {
    PrintJson(console.out, all);
    return code;
  }
  Table table({"NAME", "SIZE", "CONNECTIONS", "ACCESS", "ATTACHMENTS", "IMAGE"}, 1, 2);
  for (const v1::Export& one : all.exports()) {
    table.Add({one.name(), FormatSize(one.size_bytes()), absl::StrCat(one.connections()),
               one.spec().read_only() ? "ro" : "rw",
               one.attachments().empty() ? "-" : absl::StrJoin(one.attachments(), ","),
               one.error().empty() ? ImageText(one.spec().image()) : absl::StrCat("ERROR: ", one.error())});
  }
  table.Print(console.out);
  return code;
}

void AddListAndShow(CLI::App& group, Action& chosen) {
  CLI::App& list = *group.add_subcommand("list", "Show every export");
  list.footer(
      "Examples:\n"
      "  berthctl export list\n"
      "  berthctl export list --json | jq -r '.exports[].name'");
  list.callback([&chosen] { chosen = List; });

  CLI::App& show = *group.add_subcommand("show", "Show one export with all its settings");
  const auto request = std::make_shared<v1::GetExportRequest>();
  AddExportName(show, request);
  show.footer(
      "Examples:\n"
      "  berthctl export show disk");
  show.callback([request, &chosen] {
    chosen = [request](Server& server) {
      const auto stub = NewStub(server);
      v1::Export found;
      const ExitCode code = server.Call(
          absl::StrCat("export show ", request->name()),
          [&](grpc::ClientContext* context) { return stub->GetExport(context, *request, &found); });
      if (code == ExitCode::kSuccess) PrintExport(server.console(), found);
      return code;
    };
  });
}

// Names `path` in the mask once.
void Mask(v1::UpdateExportRequest& request, const char* path) {
  for (const std::string& named : request.update_mask().paths()) {
    if (named == path) return;
  }
  request.mutable_update_mask()->add_paths(path);
}

void AddUpdate(CLI::App& group, Action& chosen) {
  CLI::App& command = *group.add_subcommand("update", "Change an export while it is in use");
  const auto request = std::make_shared<v1::UpdateExportRequest>();
  AddExportName(command, request);
  AddSize(command, "--size", "Resize the image; attached devices follow", [request](uint64_t size) {
    Mask(*request, "size_bytes");
    request->set_size_bytes(size);
  });
  AddAllowShrink(command, request);
  command.add_option_function<std::string>(
      "--description,-D",
      [request](const std::string& text) {
        Mask(*request, "description");
        request->set_description(text);
      },
      "Free text for clients that ask");
  command
      .add_option_function<bool>(
          "--require-tls",
          [request](const bool& required) {
            Mask(*request, "require_tls");
            request->set_require_tls(required);
          },
          "Whether network clients get it under TLS alone")
      ->type_name("true|false");
  command
      .add_option_function<std::vector<std::string>>(
          "--allow-client",
          [request](const std::vector<std::string>& rules) {
            Mask(*request, "allowed_clients");
            request->mutable_allowed_clients()->Assign(rules.begin(), rules.end());
          },
          absl::StrCat(kAllowClientHelp, "; those given take the place of all others"))
      ->type_name("RULE");
  AddRateLimit(command, [request] {
    Mask(*request, "rate_limit");
    return request->mutable_rate_limit();
  });
  AddBlockSizes(command, [request] {
    Mask(*request, "block_sizes");
    return request->mutable_block_sizes();
  });
  command
      .add_option_function<bool>(
          "--client-resize",
          [request](const bool& allowed) {
            Mask(*request, "client_resize");
            request->set_client_resize(allowed);
          },
          "Whether network clients may change the size, to a smaller one too")
      ->type_name("true|false");
  command.footer(
      "The options of the rate limit are set together: those left out become 'no limit'. So are those of\n"
      "block sizes: those left out become what is in brackets. Connected clients keep what they know.\n\n"
      "Examples:\n"
      "  berthctl export update disk --size=20G\n"
      "  berthctl export update disk --iops=500 --bps=50M\n"
      "  berthctl export update disk --iops=0\n"
      "  berthctl export update disk --client-resize=false");
  command.callback([request, &chosen] {
    if (request->update_mask().paths().empty()) {
      throw CLI::ValidationError(
          "nothing to change; give --size, --description, --require-tls, --allow-client, --iops, --bps, "
          "--min-block-size or --client-resize");
    }
    chosen = [request](Server& server) {
      const auto stub = NewStub(server);
      v1::Export changed;
      const ExitCode code = server.Call(
          absl::StrCat("export update ", request->name()),
          [&](grpc::ClientContext* context) { return stub->UpdateExport(context, *request, &changed); });
      if (code == ExitCode::kSuccess) PrintExport(server.console(), changed);
      return code;
    };
  });
}

void AddDelete(CLI::App& group, Action& chosen) {
  CLI::App& command = *group.add_subcommand("delete", "Close an export's image and forget the name");
  const auto request = std::make_shared<v1::DeleteExportRequest>();
  AddExportName(command, request);
  command.add_flag_callback(
      "--force", [request] { request->set_force(true); }, "Disconnect clients that are served");
  AddAllowMissing(command, request);
  command.footer(
      "The image file stays. An attached export is detached first: berthctl detach.\n\n"
      "Examples:\n"
      "  berthctl export delete disk\n"
      "  berthctl export delete disk --force --allow-missing");
  command.callback([request, &chosen] {
    chosen = [request](Server& server) {
      const auto stub = NewStub(server);
      google::protobuf::Empty empty;
      const ExitCode code = server.Call(
          absl::StrCat("export delete ", request->name()),
          [&](grpc::ClientContext* context) { return stub->DeleteExport(context, *request, &empty); });
      if (code == ExitCode::kSuccess && server.console().json) PrintJson(server.console().out, empty);
      return code;
    };
  });
}

}  // namespace

void AddExportCommands(CLI::App& app, Action& chosen) {
  CLI::App& group = *app.add_subcommand("export", "Make, show, change and delete exports");
  group.require_subcommand(1);
  AddCreate(group, chosen);
  AddListAndShow(group, chosen);
  AddUpdate(group, chosen);
  AddDelete(group, chosen);
}

}  // namespace berth::berthctl
