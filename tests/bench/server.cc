#include "tests/bench/server.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "image/io/unique_fd.h"

namespace berth::bench {
namespace {

constexpr absl::Duration kStartPatience = absl::Seconds(10);
constexpr char kExport[] = "bench";
constexpr char kPidFile[] = "/pid";

absl::Duration ClockOf(pid_t pid) {
  clockid_t clock;
  timespec time;
  if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &time) != 0) return absl::ZeroDuration();
  return absl::DurationFromTimespec(time);
}

std::vector<pid_t> ChildrenOf(pid_t pid) {
  std::vector<pid_t> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream file(entry.path() / "stat");
    std::string line;
    std::getline(file, line);
    const size_t comm_end = line.rfind(')');
    int parent = 0;
    if (comm_end == std::string::npos || sscanf(line.c_str() + comm_end + 1, " %*c %d", &parent) != 1)
      continue;
    if (parent == pid) children.push_back(static_cast<pid_t>(atol(name.c_str())));
  }
  return children;
}

// Written, not only sized: holes are another workload.
absl::Status MakeImage(const std::string& path, uint64_t bytes) {
  UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd) return absl::ErrnoToStatus(errno, path);
  const std::vector<char> block(1 << 20, 'i');
  for (uint64_t done = 0; done < bytes; done += block.size()) {
    if (write(fd.get(), block.data(), block.size()) != static_cast<ssize_t>(block.size())) {
      return absl::ErrnoToStatus(errno, absl::StrCat("writing ", path));
    }
  }
  fdatasync(fd.get());
  return absl::OkStatus();
}

bool Answers(const LoadTarget& target) {
  UniqueFd fd(socket(target.port != 0 ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  char greeting[8];
  timeval patience = {.tv_sec = 1, .tv_usec = 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  int result;
  if (target.port != 0) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(target.port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    result = connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address));
  } else {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, target.socket_path.c_str(), sizeof(address.sun_path) - 1);
    result = connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address));
  }
  return result == 0 && recv(fd.get(), greeting, sizeof(greeting), MSG_WAITALL) == sizeof(greeting);
}

int FreePort() {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length) != 0) return 0;
  getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length);
  return ntohs(address.sin_port);
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  return file.flush() ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("cannot write ", path));
}

struct Place {
  std::string certificates;  // Empty without TLS.
  std::string directory;     // Of this server and setup; sockets, logs, state.
  std::string image;
  LoadTarget target;
  bool direct = false;
};

using Arguments = std::vector<std::string>;

Arguments QemuNbd(const Place& place) {
  Arguments arguments = {"qemu-nbd",        "-t",           "-e", "64", "-f", "raw", "-x", kExport,
                         "--discard=unmap", "--aio=threads"};
  arguments.push_back(place.direct ? "--cache=none" : "--cache=writeback");
  if (!place.certificates.empty()) {
    arguments.insert(
        arguments.end(),
        {"--object",
         absl::StrCat("tls-creds-x509,id=tls,endpoint=server,verify-peer=no,dir=", place.certificates),
         "--tls-creds", "tls"});
  }
  if (place.target.port != 0) {
    arguments.insert(arguments.end(), {"-b", "127.0.0.1", "-p", absl::StrCat(place.target.port)});
  } else {
    arguments.insert(arguments.end(), {"-k", place.target.socket_path});
  }
  arguments.push_back(place.image);
  return arguments;
}

Arguments Nbdkit(const Place& place) {
  Arguments arguments = {"nbdkit", "-f", "-t", "1"};
  if (!place.certificates.empty()) {
    arguments.insert(arguments.end(),
                     {"--tls=require", absl::StrCat("--tls-certificates=", place.certificates)});
  }
  if (place.target.port != 0) {
    arguments.insert(arguments.end(), {"-i", "127.0.0.1", "-p", absl::StrCat(place.target.port)});
  } else {
    arguments.insert(arguments.end(), {"-U", place.target.socket_path});
  }
  arguments.insert(arguments.end(), {"file", place.image});
  return arguments;
}

absl::StatusOr<Arguments> NbdServer(const Place& place) {
  const std::string config = absl::StrCat(place.directory, "/nbd-server.conf");
  std::string text = "[generic]\n";
  if (place.target.port != 0) {
    absl::StrAppend(&text, "listenaddr = 127.0.0.1\nport = ", place.target.port, "\n");
  } else {
    absl::StrAppend(&text, "listenaddr = 127.0.0.1\nport = ", FreePort(),
                    "\nunixsock = ", place.target.socket_path, "\n");
  }
  absl::StrAppend(&text, "[", kExport, "]\nexportname = ", place.image,
                  "\nflush = true\nfua = true\ntrim = true\n");
  if (absl::Status status = WriteFile(config, text); !status.ok()) return status;
  return Arguments{"nbd-server", "-C", config, "-p", absl::StrCat(place.directory, kPidFile)};
}

Arguments Berthd(const Place& place, const Environment& environment) {
  const std::string nbd = place.target.port != 0 ? absl::StrCat("127.0.0.1:", place.target.port)
                                                 : absl::StrCat("unix:", place.target.socket_path);
  Arguments arguments = {
      environment.berthd, absl::StrCat("--listen=unix:", place.directory, "/berthd.sock"),
      absl::StrCat("--state-dir=", place.directory, "/state"),
      absl::StrCat("--image-root=", std::filesystem::path(place.image).parent_path().string()),
      absl::StrCat("--nbd=", nbd)};
  if (!place.certificates.empty()) {
    arguments.insert(arguments.end(),
                     {"--tls=require", absl::StrCat("--tls-certificates=", place.certificates)});
  }
  return arguments;
}

absl::Status CreateBerthExport(const Place& place, const Environment& environment) {
  const std::string command =
      absl::StrCat(environment.berthctl, " --endpoint=unix:", place.directory, "/berthd.sock export create ",
                   kExport, " ", place.image, " --cache=", place.direct ? "none" : "writeback", " >",
                   place.directory, "/berthctl.log 2>&1");
  const int result = system(command.c_str());
  return result == 0 ? absl::OkStatus() : absl::InternalError(absl::StrCat("failed: ", command));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Process>> Process::Start(const std::vector<std::string>& arguments, int cpu,
                                                        const std::string& log_path) {
  prctl(PR_SET_CHILD_SUBREAPER, 1);  // What puts itself into the background stays a child of ours.
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  UniqueFd log(open(log_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  const pid_t pid = fork();
  if (pid < 0) return absl::ErrnoToStatus(errno, "fork");
  if (pid == 0) {
    if (cpu >= 0) {
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(cpu, &set);
      sched_setaffinity(0, sizeof(set), &set);
    }
    dup2(log.get(), STDOUT_FILENO);
    dup2(log.get(), STDERR_FILENO);
    execvp(argv[0], argv.data());
    dprintf(STDERR_FILENO, "%s: %s\n", argv[0], strerror(errno));
    _exit(127);
  }
  return std::unique_ptr<Process>(new Process(pid));
}

std::unique_ptr<Process> Process::Adopt(pid_t pid) { return std::unique_ptr<Process>(new Process(pid)); }

Process::~Process() {
  const std::vector<pid_t> children = ChildrenOf(pid_);
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  for (const pid_t child : children) kill(child, SIGKILL);
}

absl::Duration Process::CpuTime() const {
  absl::Duration sum = ClockOf(pid_);
  for (const pid_t child : ChildrenOf(pid_)) sum += ClockOf(child);
  return sum;
}

std::vector<std::string> ServerNames(Setup setup) {
  // nbdkit's file plugin and nbd-server have no O_DIRECT, and a loop of synchronous calls is no yardstick for
  // it.
  if (setup == Setup::kDiskDirect) return {"berth", "qemu-nbd"};
  return {"bare loop", "berth", "nbdkit", "nbd-server", "qemu-nbd"};
}

std::vector<std::string> TlsServerNames() { return {"berth", "berth TLS", "nbdkit TLS", "qemu-nbd TLS"}; }

absl::StatusOr<RunningServer> StartServer(const std::string& full_name, Setup setup,
                                          const Environment& environment) {
  const bool tls = absl::EndsWith(full_name, kUnderTls);
  const std::string name(absl::StripSuffix(full_name, kUnderTls));
  const bool on_disk = setup == Setup::kDisk || setup == Setup::kDiskDirect;
  Place place;
  place.direct = setup == Setup::kDiskDirect;
  place.directory = absl::StrCat(environment.memory_directory, "/", static_cast<int>(setup), "-",
                                 name == "bare loop" ? "bare" : name, tls ? "-tls" : "");
  if (tls) place.certificates = environment.certificates;
  std::filesystem::create_directories(place.directory);
  const std::string image_directory = absl::StrCat(on_disk ? environment.disk_directory : place.directory,
                                                   "/images-", static_cast<int>(setup));
  std::filesystem::create_directories(image_directory);
  place.image = absl::StrCat(image_directory, "/", name == "bare loop" ? "bare" : name, ".img");
  if (absl::Status status = MakeImage(place.image, environment.image_bytes); !status.ok()) return status;
  place.target.export_name = kExport;
  place.target.tls = tls;
  if (setup == Setup::kTcp) {
    place.target.port = FreePort();
  } else {
    place.target.socket_path = absl::StrCat(place.directory, "/nbd.sock");
  }

  absl::StatusOr<Arguments> arguments = absl::InvalidArgumentError(absl::StrCat("no such server: ", name));
  if (name == "bare loop") {
    const std::string where =
        place.target.port != 0 ? absl::StrCat(place.target.port) : place.target.socket_path;
    arguments = Arguments{environment.bare_loop, where, place.image};
  } else if (name == "berth") {
    arguments = Berthd(place, environment);
  } else if (name == "qemu-nbd") {
    arguments = QemuNbd(place);
  } else if (name == "nbdkit") {
    arguments = Nbdkit(place);
  } else if (name == "nbd-server") {
    arguments = NbdServer(place);
  }
  if (!arguments.ok()) return arguments.status();
  const std::string log = absl::StrCat(place.directory, "/log");
  absl::StatusOr<std::unique_ptr<Process>> process = Process::Start(*arguments, environment.server_cpu, log);
  if (!process.ok()) return process.status();

  for (const absl::Time deadline = absl::Now() + kStartPatience; !Answers(place.target);) {
    if (absl::Now() > deadline) {
      std::ifstream file(log);
      std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
      return absl::DeadlineExceededError(absl::StrCat(name, " does not answer; its log says: ", text));
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
  if (name == "nbd-server") {
    // It always puts itself into the background.
    pid_t pid = 0;
    std::ifstream(place.directory + kPidFile) >> pid;
    process = Process::Adopt(pid);
  }
  if (name == "berth") {
    if (absl::Status status = CreateBerthExport(place, environment); !status.ok()) return status;
  }
  return RunningServer{.name = full_name, .target = place.target, .process = *std::move(process)};
}

}  // namespace berth::bench
