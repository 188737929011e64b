#include "control/berthctl/error_text.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "control/berthctl/console.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "image/io/unique_fd.h"

namespace berth::berthctl {
namespace {

// The server's way out is told in its own words; these are the options of berthctl that lead there.
struct WayOut {
  absl::string_view reason;
  absl::string_view command;  // How `what` begins; empty for all.
  absl::string_view text;
};

constexpr WayOut kWaysOut[] = {
    {"DEVICE_HELD", "detach", "--force takes it away all the same, and its users get I/O errors"},
    {"DEVICE_MOUNTED", "detach",
     "unmount it, or --force takes it away all the same, and its users get I/O errors"},
    {"DETACHING", "detach", "'berthctl attachment show' and 'berthctl events' tell when it is done"},
    {"DEVICE_BUSY", "attach", "leave --device out to get any free one"},
    {"EXPORT_IN_USE", "attach", "detach it first, or create the export with --shared-writers"},
    {"EXPORT_IN_USE", "export delete", "detach it first; --force disconnects clients"},
    {"NBD_MODULE_MISSING", "", "modprobe nbd"},
    {"WOULD_SHRINK", "", "--allow-shrink does it and loses what is beyond"},
};

void Append(absl::string_view addition, std::string* text) {
  const std::string clean = Printable(addition);
  // Servers like to say in the message what the details repeat.
  if (!clean.empty() && !absl::StrContains(*text, clean)) absl::StrAppend(text, "; ", clean);
}

void AppendViolations(const google::rpc::BadRequest& request, std::string* text) {
  for (const auto& violation : request.field_violations()) {
    if (absl::StrContains(*text, Printable(violation.description())) &&
        absl::StrContains(*text, Printable(violation.field()))) {
      continue;
    }
    Append(absl::StrCat(violation.field(), ": ", violation.description()), text);
  }
}

// Adds to `text` what it does not say yet. Returns ErrorInfo's reason.
std::string AppendDetails(const std::string& serialized, std::string* text) {
  google::rpc::Status status;
  std::string reason;
  if (!status.ParseFromString(serialized)) return reason;
  for (const google::protobuf::Any& any : status.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad_request;
    google::rpc::PreconditionFailure failure;
    if (any.UnpackTo(&info)) {
      reason = Printable(info.reason());
    } else if (any.UnpackTo(&bad_request)) {
      AppendViolations(bad_request, text);
    } else if (any.UnpackTo(&failure)) {
      for (const auto& violation : failure.violations()) Append(violation.description(), text);
    }
  }
  return reason;
}

std::string WayOutOf(absl::string_view what, const std::string& reason, grpc::StatusCode code) {
  for (const WayOut& way : kWaysOut) {
    if (reason == std::string(way.reason) && absl::StartsWith(what, way.command))
      return std::string(way.text);
  }
  if (code == grpc::StatusCode::NOT_FOUND) {
    if (absl::StartsWith(what, "detach") || absl::StartsWith(what, "attachment")) {
      return "'berthctl attachment list' shows what there is";
    }
    if (absl::StartsWith(what, "operation")) return "'berthctl operation list' shows what there is";
    if (!absl::StartsWith(what, "image") && !absl::StartsWith(what, "export create")) {
      return "'berthctl export list' shows what there is";
    }
  }
  if (code == grpc::StatusCode::ALREADY_EXISTS && absl::StartsWith(what, "attach ")) {
    return "--name gives this attachment another name";
  }
  if (code == grpc::StatusCode::DEADLINE_EXCEEDED) {
    return "it may still take effect: give the same command again, with a longer --timeout";
  }
  return "";
}

// The errno of connecting to a Unix socket, or 0.
int ConnectError(absl::string_view path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return ENAMETOOLONG;
  std::memcpy(address.sun_path, path.data(), path.size());
  const UniqueFd client(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!client) return errno;
  return connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
}

}  // namespace

ExitCode ExitCodeOf(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::OK:
      return ExitCode::kSuccess;
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::OUT_OF_RANGE:
      return ExitCode::kUsage;
    case grpc::StatusCode::NOT_FOUND:
      return ExitCode::kNotFound;
    case grpc::StatusCode::ALREADY_EXISTS:
      return ExitCode::kAlreadyExists;
    case grpc::StatusCode::FAILED_PRECONDITION:
    case grpc::StatusCode::ABORTED:
      return ExitCode::kPrecondition;
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return ExitCode::kUnavailable;
    case grpc::StatusCode::PERMISSION_DENIED:
    case grpc::StatusCode::UNAUTHENTICATED:
      return ExitCode::kPermissionDenied;
    default:
      return ExitCode::kFailure;
  }
}

std::string ErrorText(absl::string_view what, const grpc::Status& status) {
  std::string text = absl::StrCat(Printable(what), ": ", Printable(status.error_message()));
  const std::string reason = AppendDetails(status.error_details(), &text);
  Append(WayOutOf(what, reason, status.error_code()), &text);
  if (!reason.empty()) absl::StrAppend(&text, " [", reason, "]");
  return text;
}

std::string UnreachableText(absl::string_view endpoint, absl::string_view detail) {
  std::string text = absl::StrCat("no berthd answers at ", endpoint);
  absl::string_view path = endpoint;
  if (!absl::ConsumePrefix(&path, "unix:")) {
    return absl::StrCat(text, " (", Printable(detail),
                        "); is it running, and does it know the certificate of --tls-cert?");
  }
  const int error = ConnectError(path);
  if (error == EACCES || error == EPERM) {
    return absl::StrCat(text, " (Permission denied); run berthctl as the user that owns the socket");
  }
  if (error == 0) {
    return absl::StrCat("berthd at ", endpoint, " hung up (", Printable(detail),
                        "); it serves root, its own user, and those that its --allow-uid names");
  }
  absl::StrAppend(&text, " (", std::strerror(error), ")");
  return absl::StrCat(text, "; start it, or name its address with --endpoint or BERTH_ENDPOINT");
}

}  // namespace berth::berthctl
