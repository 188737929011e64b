#include "control/config.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <exception>
#include <iterator>
#include <map>
#include <set>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "control/version/version.h"
#include "nbd/address.h"

namespace berth::control {
namespace {

constexpr int kUsageError = 2;
// The kernel uses one socket a CPU at most.
constexpr uint32_t kMostDefaultConnections = 4;

CLI::Option* AddDuration(CLI::App& app, const std::string& name, absl::Duration& value,
                         const std::string& help, absl::Duration smallest = absl::Seconds(1)) {
  return app
      .add_option_function<std::string>(
          name,
          [&value, smallest, name](const std::string& text) {
            absl::Duration parsed;
            if (!absl::ParseDuration(text, &parsed) || parsed < smallest || parsed > absl::Hours(24 * 365)) {
              throw CLI::ValidationError(
                  name, absl::StrCat("\"", text, "\" is no time from ", absl::FormatDuration(smallest),
                                     " to 8760h; write 30s, 5m or 1h"));
            }
            value = parsed;
          },
          help)
      ->type_name("TIME")
      ->default_str(absl::FormatDuration(value));
}

CLI::Option* AddSize(CLI::App& app, const std::string& name, size_t& value, size_t smallest,
                     const std::string& help) {
  return app.add_option(name, value, help)
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Validator(
          [smallest](const std::string& text) {
            uint64_t bytes = 0;
            if (absl::SimpleAtoi(text, &bytes) && bytes >= smallest && bytes <= (uint64_t{1} << 40)) {
              return std::string();
            }
            return absl::StrCat("\"", text, "\" is not from ", smallest, " bytes to 1TiB; write 64MiB");
          },
          "BYTES"))
      ->capture_default_str();
}

template <typename Number>
CLI::Option* AddCount(CLI::App& app, const std::string& name, Number& value, int64_t smallest,
                      int64_t largest, const std::string& help) {
  return app.add_option(name, value, help)->check(CLI::Range(smallest, largest))->capture_default_str();
}

std::string CheckListen(const std::string& text) {
  absl::string_view path = text;
  if (absl::ConsumePrefix(&path, "unix:")) {
    if (!path.empty() && path.size() <= nbd::Address::kMaxUnixPath) return "";
    return absl::StrCat("\"", text, "\": a socket's path has 1 to ", nbd::Address::kMaxUnixPath, " bytes");
  }
  if (nbd::Address::Parse(text).ok() && absl::StrContains(text, ":")) return "";
  return absl::StrCat("\"", text, "\" is no address; write unix:PATH, HOST:PORT or [IPV6]:PORT");
}

std::string CheckNbd(const std::string& text) {
  const absl::StatusOr<nbd::Address> address = nbd::Address::Parse(text);
  return address.ok() ? "" : std::string(address.status().message());
}

std::string CheckAbsolute(const std::string& text) {
  return absl::StartsWith(text, "/") ? "" : absl::StrCat("\"", text, "\" is not an absolute path");
}

void AddAddresses(CLI::App& app, Config& config, std::vector<std::string>& listen) {
  app.add_option("--listen", listen,
                 "Serve gRPC here: unix:PATH, or HOST:PORT with mutual TLS; repeat for more")
      ->type_name("ADDRESS")
      ->check(CLI::Validator(CheckListen, ""))
      ->required();
  app.add_option("--nbd", config.nbd,
                 "Serve every export to NBD clients here, under its name, none by default: unix:PATH or "
                 "HOST:PORT; repeat for more")
      ->type_name("ADDRESS")
      ->check(CLI::Validator(CheckNbd, ""));
  app.add_flag("--nbd-socket-for-all", config.nbd_socket_for_all,
               "Make --nbd's Unix sockets with mode 0666 instead of 0600");
  app.add_option("--metrics", config.metrics, "Serve Prometheus metrics here, under /metrics")
      ->type_name("HOST:PORT");
  app.add_option(
         "--state-dir", config.state_dir,
         "Directory of what survives a restart; made where it is missing, used by one berthd at a time")
      ->type_name("DIR")
      ->check(CLI::Validator(CheckAbsolute, ""))
      ->required();
  app.add_option(
         "--image-root", config.image_roots,
         "Directory below which images may be opened and made; repeat for more; without one only images "
         "without a file")
      ->type_name("DIR")
      ->check(CLI::Validator(CheckAbsolute, ""));
  app.add_option("--secret-root", config.secret_roots,
                 "Directory below which the secrets of encrypted images may be read from files; repeat for "
                 "more; without one secrets come by value alone")
      ->type_name("DIR")
      ->check(CLI::Validator(CheckAbsolute, ""));
}

void AddSecurity(CLI::App& app, Config& config) {
  app.add_option("--tls-certificate", config.tls_certificate,
                 "PEM certificate of this server, for gRPC on TCP")
      ->type_name("FILE");
  app.add_option("--tls-key", config.tls_key, "PEM key of --tls-certificate")->type_name("FILE");
  app.add_option("--tls-client-ca", config.tls_client_ca,
                 "PEM certificates of the authorities that sign clients; others are refused")
      ->type_name("FILE");
  app.add_option("--allow-uid", config.allowed_uids,
                 "User id that may use gRPC on Unix sockets, beside root and berthd's own; repeat for more")
      ->type_name("UID");
}

void AddNbdTls(CLI::App& app, Config& config, std::vector<std::string>& rules) {
  const std::map<std::string, nbd::TlsMode> modes = {
      {"off", nbd::TlsMode::kOff}, {"allow", nbd::TlsMode::kAllow}, {"require", nbd::TlsMode::kRequire}};
  app.add_option_function<std::string>(
         "--tls", [&config, modes](const std::string& mode) { config.nbd_tls = modes.at(mode); },
         "TLS for NBD clients: off, allow (exports that require it are hidden from clients without), require")
      ->type_name("MODE")
      ->check(CLI::IsMember(std::set<std::string>{"off", "allow", "require"}))
      ->default_str("off");
  app.add_option("--tls-certificates", config.nbd_tls_files.certificates,
                 "Directory with server-cert.pem, server-key.pem, ca-cert.pem and perhaps ca-crl.pem, for "
                 "--tls; read "
                 "again when they change")
      ->type_name("DIR")
      ->check(CLI::Validator(CheckAbsolute, ""));
  app.add_option("--tls-psk", config.nbd_tls_files.psk,
                 "File of pre-shared keys, USER:HEXKEY lines as psktool writes them, for --tls; read again "
                 "when it changes")
      ->type_name("FILE")
      ->check(CLI::Validator(CheckAbsolute, ""));
  app.add_flag("--tls-verify-client", config.nbd_tls_files.verify_client,
               "Refuse NBD clients without a certificate of an authority in ca-cert.pem");
  app.add_option("--tls-allow-client", rules,
                 "An NBD client that is let in: dn:PATTERN for the name in its certificate, psk:PATTERN for "
                 "the user of its "
                 "pre-shared key, * for everybody, or one of these after a ! that refuses; repeat for more, "
                 "the first that "
                 "fits decides; without one everybody is let in")
      ->type_name("RULE");
}

void AddLimits(CLI::App& app, Config& config) {
  AddCount(app, "--reactors", config.reactors, 1, 256, "Threads that serve I/O");
  AddCount(app, "--rpc-threads", config.rpc_threads, 4, 1024, "The most threads that serve gRPC");
  AddCount(app, "--max-exports", config.max_exports, 1, 1000000, "The most exports");
  AddCount(app, "--max-attachments", config.max_attachments, 1, 65536, "The most attachments");
  AddCount(app, "--max-connections", config.max_connections, 1, 1000000, "The most NBD clients' connections");
  AddCount(app, "--max-connections-per-export", config.max_connections_per_export, 1, 1000000,
           "The most NBD clients' connections to one export");
  AddCount(app, "--max-connections-per-address", config.max_connections_per_address, 1, 1000000,
           "The most NBD clients' connections from one IPv4 address or one IPv6 network of 64 bits");
  AddSize(app, "--connection-memory", config.connection_memory, size_t{32} << 20,
          "Bytes of requests that a connection may have in flight");
  AddCount(app, "--max-rpc-connections", config.max_rpc_connections, 1, 100000,
           "The most connections of gRPC clients on Unix sockets");
  AddCount(app, "--max-watchers", config.max_watchers, 1, 512,
           "The most streams of events and progress, and waits for operations; each takes a gRPC thread");
  AddCount(app, "--event-history", config.event_history, 16, 1000000, "Events that are remembered");
  const std::map<std::string, bool> switches = {{"on", true}, {"off", false}};
  app.add_option_function<std::string>(
         "--lock-memory",
         [&config, switches](const std::string& text) { config.lock_memory = switches.at(text); },
         "Keep berthd's pages in memory, where that is allowed without a limit: on, off")
      ->type_name("MODE")
      ->check(CLI::IsMember(std::set<std::string>{"on", "off"}))
      ->default_str("on");
  AddCount(app, "--max-open-files", config.max_open_files, 64, 10000000,
           "Raise the limit on open files to this, as far as allowed");
}

void AddTimes(CLI::App& app, Config& config) {
  AddCount(app, "--device-connections", config.device_connections, 1, 16,
           "Connections to the kernel of an attachment that does not say how many");
  AddDuration(app, "--device-timeout", config.device_timeout,
              "How long the kernel waits for an answer before it gives a connection up");
  AddDuration(app, "--dead-connection-timeout", config.dead_connection_timeout,
              "How long I/O on a device waits for berthd to come back before it fails");
  AddDuration(
      app, "--request-timeout", config.request_timeout,
      "How long an image may take for a request of a device before it fails; two thirds of the device's "
      "timeout are the most");
  AddDuration(app, "--reactor-limit", config.reactor_limit,
              "After how long a thread of I/O that does not turn is told of");
  AddDuration(app, "--operation-timeout", config.operation_timeout,
              "How long each step of attach, detach and delete may take");
  AddDuration(app, "--handshake-limit", config.handshake_limit,
              "How long an NBD client's handshake may take");
  AddDuration(app, "--stop-timeout", config.stop_timeout, "How long a clean stop may take");
  app.add_flag(
      "--detach-on-exit", config.detach_on_exit,
      "On a clean stop detach devices that are not in use, instead of leaving them to the next start");
}

// One line, whatever the library says.
std::string OneLine(absl::string_view text) {
  return absl::StrReplaceAll(absl::StripAsciiWhitespace(text), {{"\n", "; "}});
}

std::string CheckTogether(const Config& config) {
  if (!config.listen_tcp.empty() &&
      (config.tls_certificate.empty() || config.tls_key.empty() || config.tls_client_ca.empty())) {
    return absl::StrCat(
        "--listen=", config.listen_tcp.front(),
        ": TCP needs mutual TLS; give --tls-certificate, --tls-key and --tls-client-ca, or listen "
        "on unix:PATH");
  }
  const nbd::ServerTlsFiles& files = config.nbd_tls_files;
  if (config.nbd_tls != nbd::TlsMode::kOff && files.certificates.empty() && files.psk.empty()) {
    return "--tls: needs --tls-certificates=DIR, --tls-psk=FILE, or both";
  }
  if (config.nbd_tls == nbd::TlsMode::kOff && !(files.certificates.empty() && files.psk.empty())) {
    return "--tls-certificates and --tls-psk are for --tls=allow or --tls=require, and TLS is off";
  }
  if (files.verify_client && files.certificates.empty()) {
    return "--tls-verify-client: needs --tls-certificates=DIR, whose ca-cert.pem says which clients are good";
  }
  if (config.max_watchers + 2 > static_cast<size_t>(config.rpc_threads)) {
    return absl::StrCat("--max-watchers=", config.max_watchers, ": needs --rpc-threads of at least ",
                        config.max_watchers + 2, ", not ", config.rpc_threads);
  }
  return "";
}

}  // namespace

ParsedCommandLine ParseCommandLine(int argc, const char* const* argv) {
  ParsedCommandLine parsed;
  Config& config = parsed.config;
  const unsigned cpus = std::max(1u, std::thread::hardware_concurrency());
  config.reactors = static_cast<int>(std::min(cpus, 256u));
  config.device_connections = std::min<uint32_t>(cpus, kMostDefaultConnections);

  CLI::App app(
      "berthd serves disk images as block devices: to the local kernel as /dev/nbdX, and to NBD clients.",
      "berthd");
  app.set_version_flag("--version", absl::StrCat("berthd ", kVersion));
  app.set_config("--config", "", "Read options from this file, as NAME=VALUE lines (TOML); flags win")
      ->type_name("FILE");
  app.allow_config_extras(false);
  std::vector<std::string> listen;
  std::vector<std::string> rules;
  AddAddresses(app, config, listen);
  AddSecurity(app, config);
  AddNbdTls(app, config, rules);
  AddLimits(app, config);
  AddTimes(app, config);
  // The library reports by exceptions; they end here.
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    parsed.text = app.help();
    return parsed;
  } catch (const CLI::CallForVersion& version) {
    parsed.text = absl::StrCat(version.what(), "\n");
    return parsed;
  } catch (const CLI::FileError& error) {
    parsed.text = absl::StrCat("berthd: --config: ", OneLine(error.what()), "\n");
    parsed.exit_code = kUsageError;
    return parsed;
  } catch (const CLI::Error& error) {
    parsed.text = absl::StrCat("berthd: ", OneLine(error.what()), "\n");
    parsed.exit_code = kUsageError;
    return parsed;
  }
  for (std::string& address : listen) {
    absl::string_view path = address;
    if (absl::ConsumePrefix(&path, "unix:")) {
      config.listen_unix.emplace_back(path.data(), path.size());
    } else {
      config.listen_tcp.push_back(address);
    }
  }
  absl::StatusOr<nbd::AccessRules> allowed = nbd::AccessRules::Parse(rules);
  std::string problem =
      allowed.ok() ? CheckTogether(config) : absl::StrCat("--tls-allow-client: ", allowed.status().message());
  if (allowed.ok()) config.nbd_allowed_clients = *std::move(allowed);
  if (!problem.empty()) {
    parsed.text = absl::StrCat("berthd: ", problem, "\n");
    parsed.exit_code = kUsageError;
    return parsed;
  }
  parsed.run = true;
  return parsed;
}

}  // namespace berth::control
