// CommandLine: what qemu-nbd's command line says, checked.
//
// It is read with getopt_long(3) as qemu-nbd does it: long options may be shortened, values may be joined to
// short options, options and the file may stand in any order.
#ifndef BERTH_CONTROL_BERTH_NBD_COMMAND_LINE_H_
#define BERTH_CONTROL_BERTH_NBD_COMMAND_LINE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "image/block/image_modes.h"
#include "image/filter/detect_zeroes.h"

namespace berth::control {

// An internal snapshot of an image. What is set must fit; `id_or_name` is an id or else a name.
struct SnapshotChoice {
  std::optional<std::string> id = {};
  std::optional<std::string> name = {};
  std::optional<std::string> id_or_name = {};
};

// A value; any thread.
struct CommandLine {
  enum class Action : uint8_t { kServe, kList, kDisconnect, kHelp, kVersion, kEventNames };

  std::string program;  // The last part of argv[0]: "berth-nbd", or "qemu-nbd" where it is installed so.
  Action action = Action::kServe;
  std::string file;  // An image, or with --image-opts its description; with -d the device.

  // Where clients come in.
  std::optional<std::string> bind;
  std::optional<uint16_t> port;
  std::string socket;  // Absolute; empty: TCP.
  std::string selinux_label;
  uint32_t shared = 1;  // Clients at a time; 0: any number.
  bool persistent = false;
  absl::Duration handshake_limit = absl::Seconds(10);  // Infinite for none.

  // What they see.
  std::optional<std::string> export_name;
  std::string description;
  bool allocation_depth = false;
  std::vector<std::string> bitmaps;
  bool read_only = false;
  uint64_t offset = 0;
  std::optional<int> partition;

  // The image.
  std::optional<std::string> format;  // Nothing: it is probed.
  bool image_options = false;
  bool temporary_overlay = false;
  std::optional<SnapshotChoice> snapshot;
  bool cache_given = false;
  CacheMode cache = CacheMode::kWriteback;
  bool aio_given = false;
  bool discard_given = false;
  DiscardMode discard = DiscardMode::kIgnore;
  ZeroDetection detect_zeroes = ZeroDetection::kOff;

  // TLS.
  std::vector<std::string> objects;
  std::string tls_credentials;
  std::string tls_hostname;
  std::string tls_authorization;

  // The kernel's device.
  std::string device;        // "/dev/nbdN", or "auto".
  uint32_t connections = 0;  // 0: as many as are of use.

  // The process.
  bool fork = false;
  std::string pid_file;
  bool verbose = false;
  std::vector<std::string> traces;
  bool json = false;
  std::string metrics;
};

// INVALID_ARGUMENT in one line: the option, its value and what it may be. Not thread-safe, as getopt is not.
absl::StatusOr<CommandLine> ParseCommandLine(int argc, char** argv);

// Whether `argv` asks for JSON, for errors that come before it is known to be right.
bool WantsJson(int argc, char** argv);

// What -h prints.
std::string HelpText(const std::string& program);
// What -V prints.
std::string VersionText(const std::string& program);

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_COMMAND_LINE_H_
