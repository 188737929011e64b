// Config: what berthd was told, by flags and by its configuration file.
#ifndef BERTH_CONTROL_CONFIG_H_
#define BERTH_CONTROL_CONFIG_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "nbd/access_rules.h"
#include "nbd/handshake.h"
#include "nbd/tls/credentials.h"

namespace berth::control {

struct Config {
  std::vector<std::string> listen_unix;  // Paths.
  std::vector<std::string> listen_tcp;   // HOST:PORT.
  std::vector<std::string> nbd;          // As nbd::Address reads them.
  std::vector<std::string> image_roots;
  std::vector<std::string> secret_roots;
  std::string state_dir;
  std::string metrics;  // HOST:PORT, or empty.

  std::string tls_certificate;
  std::string tls_key;
  std::string tls_client_ca;
  std::vector<uid_t> allowed_uids;
  bool nbd_socket_for_all = false;

  // Of NBD clients.
  nbd::TlsMode nbd_tls = nbd::TlsMode::kOff;
  nbd::ServerTlsFiles nbd_tls_files;
  nbd::AccessRules nbd_allowed_clients;

  int reactors = 0;  // At least 1 after parsing.
  size_t max_exports = 10000;
  size_t max_attachments = 1024;
  size_t max_connections = 1024;
  size_t max_connections_per_export = 256;
  size_t max_connections_per_address = 256;
  size_t connection_memory = size_t{64} << 20;
  int rpc_threads = 64;
  size_t max_rpc_connections = 256;
  size_t max_watchers = 32;
  size_t event_history = 4096;
  uint64_t max_open_files = 65536;

  uint32_t device_connections = 0;  // At least 1 after parsing.
  absl::Duration device_timeout = absl::Seconds(30);
  absl::Duration dead_connection_timeout = absl::Hours(1);
  absl::Duration request_timeout = absl::Seconds(20);
  absl::Duration reactor_limit = absl::Seconds(10);
  absl::Duration operation_timeout = absl::Seconds(30);
  absl::Duration handshake_limit = absl::Seconds(10);
  absl::Duration stop_timeout = absl::Seconds(20);
  bool detach_on_exit = false;
  bool lock_memory = true;
};

// What to do after the command line was read.
struct ParsedCommandLine {
  bool run = false;  // Else print `text` and leave with `exit_code`.
  Config config;
  std::string text;
  int exit_code = 0;
};

// Reads flags, and the file that --config names; a flag wins over the file. A wrong value is exit code 2 with
// one line that names the option, the value and what is allowed.
ParsedCommandLine ParseCommandLine(int argc, const char* const* argv);

}  // namespace berth::control

#endif  // BERTH_CONTROL_CONFIG_H_
