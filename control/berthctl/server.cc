#include "control/berthctl/server.h"

#include <fstream>
#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "control/berthctl/error_text.h"
#include "control/berthctl/spinner.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"

namespace berth::berthctl {
namespace {

// 10,000 exports in one page of names stay far below.
constexpr int kMaxMessageBytes = 64 << 20;

absl::StatusOr<std::string> ReadPem(absl::string_view option, const std::string& path) {
  if (path.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("an endpoint that is no unix:PATH needs mutual TLS: ", option, " is missing"));
  }
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file || text.str().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(option, "=", path, ": cannot be read, or is empty"));
  }
  return text.str();
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> TlsCredentials(const Settings& settings) {
  absl::StatusOr<std::string> ca = ReadPem("--tls-ca", settings.tls_ca);
  if (!ca.ok()) return ca.status();
  absl::StatusOr<std::string> certificate = ReadPem("--tls-cert", settings.tls_cert);
  if (!certificate.ok()) return certificate.status();
  absl::StatusOr<std::string> key = ReadPem("--tls-key", settings.tls_key);
  if (!key.ok()) return key.status();
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = *std::move(ca);
  options.pem_cert_chain = *std::move(certificate);
  options.pem_private_key = *std::move(key);
  return grpc::SslCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> CredentialsFor(const Settings& settings) {
  if (!absl::StartsWith(settings.endpoint, "unix:")) {
    const size_t colon = settings.endpoint.rfind(':');
    if (colon == std::string::npos || colon == 0 || colon + 1 == settings.endpoint.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--endpoint=", settings.endpoint, ": use unix:PATH or HOST:PORT"));
    }
    return TlsCredentials(settings);
  }
  if (settings.endpoint.size() == std::string("unix:").size()) {
    return absl::InvalidArgumentError("--endpoint=unix: names no path; use unix:PATH");
  }
  if (!settings.tls_ca.empty() || !settings.tls_cert.empty() || !settings.tls_key.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--endpoint=", settings.endpoint, ": a Unix socket has no TLS; leave the --tls options out"));
  }
  return grpc::InsecureChannelCredentials();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Open(const Settings& settings, Console& console) {
  absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> credentials = CredentialsFor(settings);
  if (!credentials.ok()) return credentials.status();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  // A server that is coming up is noticed quickly (--wait).
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // Also the time in which a connection must be made, which on a loaded machine is more than a moment.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 20000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  return std::unique_ptr<Server>(
      new Server(settings, console, grpc::CreateCustomChannel(settings.endpoint, *credentials, arguments)));
}

ExitCode Server::AwaitConnection() {
  const absl::Duration patience = settings_.wait > absl::ZeroDuration() ? settings_.wait : absl::Seconds(5);
  const Spinner spinner(console_, absl::StrCat("waiting for ", settings_.endpoint));
  const bool connected = channel_->WaitForConnected(absl::ToChronoTime(absl::Now() + patience));
  return connected ? ExitCode::kSuccess : ExitCode::kUnavailable;
}

grpc::Status Server::Try(absl::FunctionRef<grpc::Status(grpc::ClientContext*)> rpc, absl::Duration timeout) {
  const absl::Duration bound = settings_.timeout.value_or(timeout);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + bound));
  const grpc::Status status = rpc(&context);
  // The server's own has details.
  if (status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED || !status.error_details().empty()) {
    return status;
  }
  return grpc::Status(status.error_code(), absl::StrCat("no answer within ", absl::FormatDuration(bound)));
}

ExitCode Server::WaitAsAsked(const std::string& what) {
  if (settings_.wait > absl::ZeroDuration() && !std::exchange(waited_, true) &&
      AwaitConnection() != ExitCode::kSuccess) {
    return Fail(what, grpc::Status(grpc::StatusCode::UNAVAILABLE,
                                   absl::StrCat("waited for ", absl::FormatDuration(settings_.wait))));
  }
  return ExitCode::kSuccess;
}

ExitCode Server::Call(const std::string& what, absl::FunctionRef<grpc::Status(grpc::ClientContext*)> rpc,
                      absl::Duration timeout) {
  if (const ExitCode code = WaitAsAsked(what); code != ExitCode::kSuccess) return code;
  grpc::Status status;
  {
    const Spinner spinner(console_, what);
    status = Try(rpc, timeout);
  }
  return status.ok() ? ExitCode::kSuccess : Fail(what, status);
}

ExitCode Server::Fail(const std::string& what, const grpc::Status& status) {
  const bool unreachable =
      status.error_code() == grpc::StatusCode::UNAVAILABLE && status.error_details().empty();
  console_.err << "berthctl: "
               << (unreachable
                       ? absl::StrCat(what, ": ", UnreachableText(settings_.endpoint, status.error_message()))
                       : ErrorText(what, status))
               << std::endl;
  return ExitCodeOf(status.error_code());
}

}  // namespace berth::berthctl
