#include "control/berth_nbd/command_line.h"

#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "control/berth_nbd/option_list.h"

namespace berth::control {
namespace {

// Options without a letter.
enum LongOnly {
  kCache = 256,
  kAio,
  kDiscard,
  kDetectZeroes,
  kObject,
  kTlsCreds,
  kTlsHostname,
  kTlsAuthz,
  kImageOpts,
  kFork,
  kPidFile,
  kSelinuxLabel,
  kHandshakeLimit,
  kConnections,
  kJson,
  kMetrics,
};

constexpr char kShortOptions[] = ":hVb:o:p:P:rsnc:dvk:e:f:tl:x:T:D:AB:L";

constexpr option kLongOptions[] = {
    {"help", no_argument, nullptr, 'h'},
    {"version", no_argument, nullptr, 'V'},
    {"bind", required_argument, nullptr, 'b'},
    {"port", required_argument, nullptr, 'p'},
    {"socket", required_argument, nullptr, 'k'},
    {"offset", required_argument, nullptr, 'o'},
    {"partition", required_argument, nullptr, 'P'},
    {"read-only", no_argument, nullptr, 'r'},
    {"allocation-depth", no_argument, nullptr, 'A'},
    {"bitmap", required_argument, nullptr, 'B'},
    {"connect", required_argument, nullptr, 'c'},
    {"disconnect", no_argument, nullptr, 'd'},
    {"list", no_argument, nullptr, 'L'},
    {"snapshot", no_argument, nullptr, 's'},
    {"load-snapshot", required_argument, nullptr, 'l'},
    {"nocache", no_argument, nullptr, 'n'},
    {"cache", required_argument, nullptr, kCache},
    {"aio", required_argument, nullptr, kAio},
    {"discard", required_argument, nullptr, kDiscard},
    {"detect-zeroes", required_argument, nullptr, kDetectZeroes},
    {"shared", required_argument, nullptr, 'e'},
    {"format", required_argument, nullptr, 'f'},
    {"persistent", no_argument, nullptr, 't'},
    {"verbose", no_argument, nullptr, 'v'},
    {"object", required_argument, nullptr, kObject},
    {"export-name", required_argument, nullptr, 'x'},
    {"description", required_argument, nullptr, 'D'},
    {"tls-creds", required_argument, nullptr, kTlsCreds},
    {"tls-hostname", required_argument, nullptr, kTlsHostname},
    {"tls-authz", required_argument, nullptr, kTlsAuthz},
    {"image-opts", no_argument, nullptr, kImageOpts},
    {"trace", required_argument, nullptr, 'T'},
    {"fork", no_argument, nullptr, kFork},
    {"pid-file", required_argument, nullptr, kPidFile},
    {"selinux-label", required_argument, nullptr, kSelinuxLabel},
    {"handshake-limit", required_argument, nullptr, kHandshakeLimit},
    {"connections", required_argument, nullptr, kConnections},
    {"json", no_argument, nullptr, kJson},
    {"metrics", required_argument, nullptr, kMetrics},
    {nullptr, 0, nullptr, 0},
};

constexpr size_t kMaxString = 4096;  // proto.md, "String encoding".
constexpr size_t kMaxSocketPath = 107;
constexpr uint64_t kMostConnections = 64;

// "-e" or "--cache".
std::string OptionName(int value) {
  if (value < 256) return absl::StrCat("-", std::string(1, static_cast<char>(value)));
  for (const option& known : kLongOptions) {
    if (known.val == value) return absl::StrCat("--", known.name);
  }
  return "?";
}

absl::Status Wrong(int option, absl::string_view value, absl::string_view allowed) {
  return absl::InvalidArgumentError(
      absl::StrCat(OptionName(option), " is '", value.substr(0, 200), "'; it must be ", allowed));
}

absl::Status Conflict(absl::string_view text) { return absl::InvalidArgumentError(text); }

// As strtoull with base 0 reads it, all of it, and without its wrap-around.
std::optional<uint64_t> ParseNumber(const char* text, uint64_t most) {
  if (std::strchr(text, '-') != nullptr || *text == '\0') return std::nullopt;
  char* end = nullptr;
  errno = 0;
  const unsigned long long value = std::strtoull(text, &end, 0);
  if (errno != 0 || end == text || *end != '\0' || value > most) return std::nullopt;
  return value;
}

std::optional<uint16_t> ParsePort(const char* text) {
  if (std::optional<uint64_t> number = ParseNumber(text, 65'535)) return static_cast<uint16_t>(*number);
  const servent* service = getservbyname(text, "tcp");
  if (service == nullptr) return std::nullopt;
  return ntohs(static_cast<uint16_t>(service->s_port));
}

template <typename Value>
using Choices = std::initializer_list<std::pair<absl::string_view, Value>>;

template <typename Value>
absl::StatusOr<Value> Choose(int option, absl::string_view text, Choices<Value> choices) {
  std::string allowed;
  size_t left = choices.size();
  for (const auto& [name, value] : choices) {
    if (name == text) return value;
    --left;
    absl::StrAppend(&allowed, name, left > 1 ? ", " : left == 1 ? " or " : "");
  }
  return Wrong(option, text, allowed);
}

absl::StatusOr<SnapshotChoice> ParseSnapshot(const std::string& text) {
  if (!absl::StartsWith(text, "snapshot.")) return SnapshotChoice{.id_or_name = text};
  absl::StatusOr<OptionList> list = ParseOptionList(text, "");
  if (!list.ok()) return absl::InvalidArgumentError(absl::StrCat("-l: ", list.status().message()));
  SnapshotChoice choice;
  for (const auto& [key, value] : *list) {
    if (key == "snapshot.id") {
      choice.id = value;
    } else if (key == "snapshot.name") {
      choice.name = value;
    } else {
      return Wrong('l', text, "snapshot.id=ID,snapshot.name=NAME, one of them, or an id or a name alone");
    }
  }
  return choice;
}

class Parser {
 public:
  explicit Parser(CommandLine* line) : line_(*line) {}

  // Whether to go on.
  absl::StatusOr<bool> Take(int option, char* value, char** argv);
  absl::Status Finish(int arguments, char** rest);

 private:
  absl::Status TakeValue(int option, char* value);
  absl::Status TakeImageValue(int option, char* value);
  absl::Status TakeNetworkValue(int option, char* value);
  absl::Status CheckTls() const;
  absl::Status CheckDevice() const;
  absl::Status Once(bool* seen, absl::string_view what);

  CommandLine& line_;
  bool list_ = false;
  bool disconnect_ = false;
};

absl::Status Parser::Once(bool* seen, absl::string_view what) {
  if (*seen) return Conflict(absl::StrCat(what, " can be given only once"));
  *seen = true;
  return absl::OkStatus();
}

absl::StatusOr<bool> Parser::Take(int option, char* value, char** argv) {
  switch (option) {
    case 'h':
      line_.action = CommandLine::Action::kHelp;
      return false;
    case 'V':
      line_.action = CommandLine::Action::kVersion;
      return false;
    case ':':
      return absl::InvalidArgumentError(absl::StrCat(OptionName(optopt), " needs a value"));
    case '?': {
      const absl::string_view text = argv[optind - 1];
      if (optopt != 0 && optopt < 256 && !absl::StartsWith(text, "--")) {
        return absl::InvalidArgumentError(
            absl::StrCat("there is no option -", std::string(1, static_cast<char>(optopt)), "; see --help"));
      }
      if (optopt != 0) return absl::InvalidArgumentError(absl::StrCat(text, ": the option takes no value"));
      return absl::InvalidArgumentError(absl::StrCat("there is no option ", text.substr(0, 200),
                                                     ", or more than one begins so; see --help"));
    }
    case 'n': {
      line_.cache = CacheMode::kNone;
      if (absl::Status status = Once(&line_.cache_given, "-n and --cache"); !status.ok()) return status;
      return true;
    }
    case 's':
      line_.temporary_overlay = true;
      return true;
    case 'r':
      line_.read_only = true;
      return true;
    case 'A':
      line_.allocation_depth = true;
      return true;
    case 'd':
      disconnect_ = true;
      return true;
    case 'L':
      list_ = true;
      return true;
    case 't':
      line_.persistent = true;
      return true;
    case 'v':
      line_.verbose = true;
      return true;
    case kImageOpts:
      line_.image_options = true;
      return true;
    case kFork:
      line_.fork = true;
      return true;
    case kJson:
      line_.json = true;
      return true;
    default: {
      if (absl::Status status = TakeValue(option, value); !status.ok()) return status;
      return line_.action != CommandLine::Action::kEventNames;
    }
  }
}

absl::Status Parser::TakeValue(int option, char* value) {
  switch (option) {
    case 'x':
      if (std::strlen(value) > kMaxString) return Wrong('x', value, "at most 4096 bytes");
      line_.export_name = value;
      return absl::OkStatus();
    case 'D':
      if (std::strlen(value) > kMaxString) return Wrong('D', value, "at most 4096 bytes");
      line_.description = value;
      return absl::OkStatus();
    case 'B':
      line_.bitmaps.push_back(value);
      return absl::OkStatus();
    case 'T':
      line_.traces.push_back(value);
      if (line_.traces.back() == "help") line_.action = CommandLine::Action::kEventNames;
      return absl::OkStatus();
    case kObject:
      line_.objects.push_back(value);
      return absl::OkStatus();
    case kTlsCreds:
      line_.tls_credentials = value;
      return absl::OkStatus();
    case kTlsHostname:
      line_.tls_hostname = value;
      return absl::OkStatus();
    case kTlsAuthz:
      line_.tls_authorization = value;
      return absl::OkStatus();
    case kPidFile:
      line_.pid_file = value;
      return absl::OkStatus();
    case kSelinuxLabel:
      line_.selinux_label = value;
      return absl::OkStatus();
    case kMetrics:
      line_.metrics = value;
      return absl::OkStatus();
    case 'b':
    case 'p':
    case 'k':
    case 'e':
    case 'c':
    case kConnections:
    case kHandshakeLimit:
      return TakeNetworkValue(option, value);
    default:
      return TakeImageValue(option, value);
  }
}

absl::Status Parser::TakeNetworkValue(int option, char* value) {
  switch (option) {
    case 'b':
      line_.bind = value;
      return absl::OkStatus();
    case 'p':
      line_.port = ParsePort(value);
      if (!line_.port.has_value()) return Wrong('p', value, "a port, 0 to 65535, or a service's name");
      return absl::OkStatus();
    case 'k':
      line_.socket = value;
      if (line_.socket[0] != '/') return Wrong('k', value, "an absolute path");
      if (line_.socket.size() > kMaxSocketPath) {
        return Wrong('k', value,
                     absl::StrCat("at most ", kMaxSocketPath, " bytes; it has ", line_.socket.size()));
      }
      return absl::OkStatus();
    case 'e': {
      const std::optional<uint64_t> number = ParseNumber(value, INT32_MAX);
      if (!number.has_value()) return Wrong('e', value, "a number of clients, or 0 for any number");
      line_.shared = static_cast<uint32_t>(*number);
      return absl::OkStatus();
    }
    case 'c': {
      line_.device = value;
      absl::string_view digits = line_.device;
      uint32_t index;
      if (line_.device != "auto" &&
          (!absl::ConsumePrefix(&digits, "/dev/nbd") || !absl::SimpleAtoi(digits, &index))) {
        return Wrong('c', value, "/dev/nbdN, or auto for one that is free");
      }
      return absl::OkStatus();
    }
    case kConnections: {
      const std::optional<uint64_t> number = ParseNumber(value, kMostConnections);
      if (number.value_or(0) == 0) return Wrong(option, value, absl::StrCat("1 to ", kMostConnections));
      line_.connections = static_cast<uint32_t>(*number);
      return absl::OkStatus();
    }
    default: {
      const std::optional<uint64_t> seconds = ParseNumber(value, UINT32_MAX);
      if (!seconds.has_value()) return Wrong(option, value, "a number of seconds, or 0 for no limit");
      line_.handshake_limit =
          *seconds == 0 ? absl::InfiniteDuration() : absl::Seconds(static_cast<int64_t>(*seconds));
      return absl::OkStatus();
    }
  }
}

absl::Status Parser::TakeImageValue(int option, char* value) {
  switch (option) {
    case 'f':
      line_.format = value;
      return absl::OkStatus();
    case 'o': {
      const std::optional<uint64_t> number = ParseNumber(value, INT64_MAX);
      if (!number.has_value()) return Wrong('o', value, "a number of bytes");
      line_.offset = *number;
      return absl::OkStatus();
    }
    case 'P': {
      const std::optional<uint64_t> number = ParseNumber(value, 1024);
      if (number.value_or(0) == 0) return Wrong('P', value, "the number of a partition, from 1 on");
      line_.partition = static_cast<int>(*number);
      return absl::OkStatus();
    }
    case 'l': {
      absl::StatusOr<SnapshotChoice> choice = ParseSnapshot(value);
      if (!choice.ok()) return choice.status();
      line_.snapshot = *std::move(choice);
      line_.read_only = true;
      return absl::OkStatus();
    }
    case kCache: {
      if (absl::Status status = Once(&line_.cache_given, "-n and --cache"); !status.ok()) return status;
      absl::StatusOr<CacheMode> mode = Choose<CacheMode>(option, value,
                                                         {{"none", CacheMode::kNone},
                                                          {"off", CacheMode::kNone},
                                                          {"writeback", CacheMode::kWriteback},
                                                          {"writethrough", CacheMode::kWritethrough},
                                                          {"directsync", CacheMode::kDirectsync},
                                                          {"unsafe", CacheMode::kUnsafe}});
      if (mode.ok()) line_.cache = *mode;
      return mode.status();
    }
    case kAio: {
      if (absl::Status status = Once(&line_.aio_given, "--aio"); !status.ok()) return status;
      return Choose<int>(option, value, {{"threads", 0}, {"native", 0}, {"io_uring", 0}}).status();
    }
    case kDiscard: {
      if (absl::Status status = Once(&line_.discard_given, "--discard"); !status.ok()) return status;
      absl::StatusOr<DiscardMode> mode = Choose<DiscardMode>(option, value,
                                                             {{"ignore", DiscardMode::kIgnore},
                                                              {"off", DiscardMode::kIgnore},
                                                              {"unmap", DiscardMode::kUnmap},
                                                              {"on", DiscardMode::kUnmap}});
      if (mode.ok()) line_.discard = *mode;
      return mode.status();
    }
    default: {
      absl::StatusOr<ZeroDetection> mode = Choose<ZeroDetection>(
          option, value,
          {{"off", ZeroDetection::kOff}, {"on", ZeroDetection::kOn}, {"unmap", ZeroDetection::kUnmap}});
      if (mode.ok()) line_.detect_zeroes = *mode;
      return mode.status();
    }
  }
}

absl::Status Parser::CheckTls() const {
  if (line_.tls_credentials.empty()) {
    if (!line_.tls_authorization.empty()) return Conflict("--tls-authz needs --tls-creds");
    if (!line_.tls_hostname.empty()) return Conflict("--tls-hostname needs --tls-creds");
    return absl::OkStatus();
  }
  if (!line_.device.empty())
    return Conflict("--tls-creds and -c exclude each other: the kernel's client has no TLS");
  if (!line_.tls_authorization.empty() && list_) {
    return Conflict("--tls-authz is for a server; -L is a client");
  }
  if (!line_.tls_hostname.empty() && !list_) return Conflict("--tls-hostname is for -L");
  return absl::OkStatus();
}

absl::Status Parser::CheckDevice() const {
  if (disconnect_ && !line_.device.empty()) return Conflict("-c and -d exclude each other");
  if (line_.connections != 0 && line_.device.empty()) return Conflict("--connections needs -c");
  return absl::OkStatus();
}

absl::Status Parser::Finish(int arguments, char** rest) {
  if (list_ && disconnect_) return Conflict("-L and -d exclude each other");
  if (list_) {
    line_.action = CommandLine::Action::kList;
    if (arguments != 0) {
      return Conflict(absl::StrCat("-L looks at a server and takes no file; '", rest[0], "' is too much"));
    }
    if (line_.export_name.has_value() || !line_.description.empty() || line_.offset != 0 ||
        line_.partition.has_value() || !line_.device.empty() || line_.format.has_value() ||
        line_.snapshot.has_value() || !line_.bitmaps.empty() || line_.allocation_depth || line_.aio_given ||
        line_.discard_given || line_.cache_given) {
      return Conflict(
          "-L excludes the options that are about an export or an image: -x -D -o -P -c -f -l -B -A "
          "-n --aio --cache --discard");
    }
    if (line_.fork) return Conflict("-L and --fork exclude each other");
  } else if (arguments != 1) {
    return Conflict(absl::StrCat("there must be one file, and there are ", arguments, "; see --help"));
  } else {
    line_.file = rest[0];
    if (disconnect_) line_.action = CommandLine::Action::kDisconnect;
  }
  if (line_.image_options && line_.format.has_value()) {
    return Conflict("--image-opts and -f exclude each other; the description says driver=FORMAT");
  }
  if (line_.offset != 0 && line_.partition.has_value()) return Conflict("-o and -P exclude each other");
  if (line_.temporary_overlay && line_.snapshot.has_value()) {
    return Conflict("-s and -l exclude each other: a snapshot is read-only");
  }
  if (line_.detect_zeroes == ZeroDetection::kUnmap && line_.discard != DiscardMode::kUnmap) {
    return Conflict("--detect-zeroes is 'unmap'; that needs --discard=unmap");
  }
  if (!line_.selinux_label.empty() && line_.socket.empty()) {
    return Conflict("--selinux-label needs a Unix socket, -k");
  }
  if (absl::Status status = CheckDevice(); !status.ok()) return status;
  return CheckTls();
}

}  // namespace

absl::StatusOr<CommandLine> ParseCommandLine(int argc, char** argv) {
  CommandLine line;
  const absl::string_view path = argv[0];
  const size_t slash = path.rfind('/');
  line.program = std::string(slash == absl::string_view::npos ? path : path.substr(slash + 1));
  Parser parser(&line);
  opterr = 0;
  optind = 0;  // getopt begins anew.
  int option;
  while ((option = getopt_long(argc, argv, kShortOptions, kLongOptions, nullptr)) != -1) {
    absl::StatusOr<bool> go_on = parser.Take(option, optarg, argv);
    if (!go_on.ok()) return go_on.status();
    if (!*go_on) return line;
  }
  if (absl::Status status = parser.Finish(argc - optind, argv + optind); !status.ok()) return status;
  return line;
}

bool WantsJson(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--json") == 0) return true;
    if (std::strcmp(argv[i], "--") == 0) return false;
  }
  return false;
}

}  // namespace berth::control
