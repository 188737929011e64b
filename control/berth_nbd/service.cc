#include "control/berth_nbd/service.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "control/berth_nbd/client_count.h"
#include "control/berth_nbd/image_source.h"
#include "control/berth_nbd/kernel_device.h"
#include "control/berth_nbd/listening.h"
#include "control/berth_nbd/objects.h"
#include "control/berth_nbd/pid_file.h"
#include "control/berth_nbd/trace.h"
#include "control/metrics/export_metrics.h"
#include "control/metrics/metrics_endpoint.h"
#include "control/stop_guard.h"
#include "image/io/reactor_pool.h"
#include "nbd/export.h"
#include "nbd/export_map.h"
#include "nbd/server.h"
#include "netlink/libnl_nbd_kernel.h"

namespace berth::control {
namespace {

constexpr uint32_t kMostReactors = 4;
// This program keeps clients waiting instead of refusing them; descriptors end before this does.
constexpr size_t kNoLimit = size_t{1} << 20;
constexpr uint32_t kPreferredBlock = 4096;
constexpr absl::Duration kStopTimeout = absl::Seconds(10);
constexpr absl::Duration kStopGrace = absl::Seconds(30);
constexpr int kShortagePauseMilliseconds = 50;

// An eventfd: it wakes the main thread.
class Wakeup {
 public:
  Wakeup() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  int fd() const { return fd_.get(); }
  void Signal() const {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(fd_.get(), &one, sizeof(one));
  }
  void Clear() const {
    uint64_t count;
    [[maybe_unused]] const ssize_t got = read(fd_.get(), &count, sizeof(count));
  }

 private:
  const UniqueFd fd_;
};

// The signals that end the program, blocked in every thread that comes after.
UniqueFd BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);
  return UniqueFd(signalfd(-1, &signals, SFD_CLOEXEC));
}

void Say(const CommandLine& line, const std::string& text) {
  if (line.verbose) std::fprintf(stderr, "%s: %s\n", line.program.c_str(), text.c_str());
}

class Service {
 public:
  Service(const CommandLine& line, Background* background) : line_(line), background_(background) {}

  absl::Status Run(std::optional<UniqueFd> activation);

 private:
  absl::Status Start(std::optional<UniqueFd> activation);
  absl::Status OpenImage();
  absl::Status UseTls(nbd::ServerOptions* options) const;
  absl::Status AttachDevice();
  absl::Status StartMetrics();
  void WatchClients();
  absl::Status Announce();
  // Until there is a reason to end.
  void Loop();
  bool CanAccept() const { return line_.shared == 0 || clients_->connections() < line_.shared; }
  // False where the system is short of something.
  bool AcceptFrom(int socket);
  absl::Status End();
  absl::Status Flush();

  std::optional<StopGuard> guard_;  // Goes last: destructors may hang as well.
  const CommandLine& line_;
  Background* const background_;
  const UniqueFd signals_ = BlockStopSignals();
  const std::shared_ptr<Wakeup> changed_ = std::make_shared<Wakeup>();

  Objects objects_;
  std::shared_ptr<const Trace> trace_;      // Null where nothing is traced.
  std::shared_ptr<ExportMetrics> metrics_;  // Null where nobody asks.
  // In the order in which they are made; they go in the other.
  std::unique_ptr<netlink::NbdKernel> kernel_;
  std::unique_ptr<ReactorPool> reactors_;
  std::shared_ptr<nbd::Export> export_;
  std::shared_ptr<nbd::ExportMap> exports_;
  std::shared_ptr<ClientCount> clients_;
  std::unique_ptr<nbd::Server> server_;
  Listening listening_;
  std::unique_ptr<KernelDevice> device_;
  std::unique_ptr<MetricsEndpoint> endpoint_;
  std::shared_ptr<std::atomic<bool>> device_ended_ = std::make_shared<std::atomic<bool>>(false);
  std::optional<PidFile> pid_file_;
};

void Service::WatchClients() {
  clients_ = std::make_shared<ClientCount>([changed = changed_, trace = trace_](ClientCount::Change change,
                                                                                absl::string_view peer,
                                                                                const absl::Status& reason) {
    changed->Signal();
    if (trace == nullptr) return;
    const Trace::Event event = change == ClientCount::Change::kCame   ? Trace::kClientConnected
                               : change == ClientCount::Change::kLeft ? Trace::kClientLeft
                                                                      : Trace::kClientRejected;
    if (!trace->wants(event)) return;
    trace->Write(event, absl::StrCat(peer, reason.ok() ? "" : ": ", reason.message()));
  });
}

absl::Status Service::StartMetrics() {
  if (line_.metrics.empty()) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<MetricsEndpoint>> endpoint = MetricsEndpoint::Start(
      line_.metrics, [served = std::weak_ptr<nbd::Export>(export_), clients = clients_, metrics = metrics_] {
        MetricsSample sample;
        const std::shared_ptr<nbd::Export> shown = served.lock();
        if (shown == nullptr) return sample;
        sample.exports.push_back(
            {shown->name, shown->device->size(), static_cast<uint32_t>(clients->connections()), metrics});
        return sample;
      });
  if (!endpoint.ok()) {
    return absl::Status(endpoint.status().code(),
                        absl::StrCat("--metrics is '", line_.metrics, "': ", endpoint.status().message()));
  }
  endpoint_ = *std::move(endpoint);
  return absl::OkStatus();
}

absl::Status Service::OpenImage() {
  absl::StatusOr<ServedImage> image = OpenServedImage(line_, objects_, reactors_->at(0));
  if (!image.ok()) return image.status();
  if (!image->warning.empty()) std::fprintf(stderr, "%s\n", image->warning.c_str());
  export_ = std::make_shared<nbd::Export>();
  export_->name = line_.export_name.value_or("");
  export_->description = line_.description;
  export_->device = std::move(image->device);
  export_->read_only = line_.read_only;
  if (!line_.metrics.empty()) metrics_ = std::make_shared<ExportMetrics>();
  if (metrics_ != nullptr || trace_ != nullptr)
    export_->observer = std::make_shared<RequestTrace>(trace_, metrics_);
  export_->multi_connection = line_.shared != 1;
  export_->block_sizes.preferred = std::max(kPreferredBlock, export_->device->traits().preferred_alignment);
  return absl::OkStatus();
}

absl::Status Service::UseTls(nbd::ServerOptions* options) const {
  if (line_.tls_credentials.empty()) return absl::OkStatus();
  absl::StatusOr<std::shared_ptr<const nbd::TlsCredentials>> credentials =
      objects_.Credentials(line_.tls_credentials, /*server=*/true);
  if (!credentials.ok()) return credentials.status();
  for (const std::string& warning : (*credentials)->warnings()) Say(line_, warning);
  options->handshake.tls = nbd::TlsMode::kRequire;
  options->tls_credentials = [shared = *std::move(credentials)] { return shared; };
  if (line_.tls_authorization.empty()) return absl::OkStatus();
  absl::StatusOr<Authorization> authorization = objects_.FindAuthorization(line_.tls_authorization);
  if (!authorization.ok()) return authorization.status();
  options->authorize = *std::move(authorization);
  return absl::OkStatus();
}

absl::Status Service::AttachDevice() {
  if (line_.device.empty()) return absl::OkStatus();
  // Before this program was the device's server nobody could wait for it; from now on the kernel may write
  // dirty pages through it to get memory.
  kernel_ = netlink::LibnlNbdKernel::Create();
  auto attached = std::make_shared<nbd::Export>(*export_);
  attached->multi_connection = true;
  absl::StatusOr<std::unique_ptr<KernelDevice>> device =
      KernelDevice::Attach(*reactors_, *kernel_, std::move(attached), {line_.device, line_.connections},
                           [changed = changed_, ended = device_ended_] {
                             ended->store(true);
                             changed->Signal();
                           });
  if (!device.ok()) return device.status();
  device_ = *std::move(device);
  Say(line_, absl::StrCat("NBD device ", device_->path(), " is now connected to ", line_.file));
  return absl::OkStatus();
}

absl::Status Service::Start(std::optional<UniqueFd> activation) {
  const uint32_t cores = std::clamp(std::thread::hardware_concurrency(), 1u, kMostReactors);
  const bool one_client = line_.shared == 1 && line_.device.empty();
  absl::StatusOr<std::unique_ptr<ReactorPool>> reactors =
      ReactorPool::Create(one_client ? 1 : static_cast<int>(cores));
  if (!reactors.ok()) return reactors.status();
  reactors_ = *std::move(reactors);
  absl::StatusOr<Objects> objects = Objects::Parse(line_.objects);
  if (!objects.ok()) return objects.status();
  objects_ = *std::move(objects);
  if (!line_.traces.empty()) {
    absl::StatusOr<std::unique_ptr<Trace>> trace = Trace::Open(line_.traces);
    if (!trace.ok()) return trace.status();
    for (const std::string& name : (*trace)->unknown()) {
      std::fprintf(stderr, "%s: warning: there is no event '%s'; -T help names them\n", line_.program.c_str(),
                   name.c_str());
    }
    trace_ = *std::move(trace);
  }
  if (absl::Status status = OpenImage(); !status.ok()) return status;
  exports_ = std::make_shared<nbd::ExportMap>();
  exports_->Add(export_);
  WatchClients();
  nbd::ServerOptions options;
  options.max_connections = options.max_connections_per_export = options.max_connections_per_address =
      kNoLimit;
  options.handshake_timeout = std::min(line_.handshake_limit, absl::Hours(24));
  if (absl::Status status = UseTls(&options); !status.ok()) return status;
  server_ = std::make_unique<nbd::Server>(*reactors_, exports_, options, clients_);
  if (line_.device.empty() || !line_.socket.empty()) {
    absl::StatusOr<Listening> listening = Listen(line_, std::move(activation));
    if (!listening.ok()) return listening.status();
    listening_ = *std::move(listening);
    if (listening_.listener != nullptr) {
      Say(line_, absl::StrCat("listening on ", listening_.listener->address().ToString()));
    }
  }
  if (absl::Status status = AttachDevice(); !status.ok()) return status;
  if (absl::Status status = StartMetrics(); !status.ok()) return status;
  return Announce();
}

absl::Status Service::Announce() {
  if (!line_.pid_file.empty()) {
    absl::StatusOr<PidFile> file = PidFile::Create(line_.pid_file);
    if (!file.ok()) return file.status();
    pid_file_.emplace(*std::move(file));
  }
  // No file system is kept busy by a server's directory.
  if (chdir("/") != 0) return absl::ErrnoToStatus(errno, "chdir to /");
  if (device_ != nullptr && line_.device == "auto") {
    const std::string text = device_->path() + "\n";
    const int output = background_ != nullptr ? background_->output() : STDOUT_FILENO;
    [[maybe_unused]] const ssize_t written = write(output, text.data(), text.size());
  }
  if (background_ != nullptr) {
    background_->Ready(/*keep_errors=*/line_.fork);
  }
  return absl::OkStatus();
}

bool Service::AcceptFrom(int socket) {
  UniqueFd connection(accept4(socket, nullptr, nullptr, SOCK_CLOEXEC));
  if (!connection) {
    return errno == EAGAIN || errno == EINTR || errno == ECONNABORTED;
  }
  const int on = 1;
  setsockopt(connection.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
  setsockopt(connection.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  clients_->Opened();
  server_->Serve(std::move(connection));
  return true;
}

void Service::Loop() {
  bool short_of_something = false;
  while (true) {
    std::vector<pollfd> events = {{signals_.get(), POLLIN, 0}, {changed_->fd(), POLLIN, 0}};
    if (CanAccept() && !short_of_something) {
      for (const UniqueFd& socket : listening_.sockets) events.push_back({socket.get(), POLLIN, 0});
    }
    const int ready =
        poll(events.data(), events.size(), short_of_something ? kShortagePauseMilliseconds : -1);
    short_of_something = false;
    if (ready < 0 && errno != EINTR) return;
    if (ready <= 0) continue;
    if (events[0].revents != 0) return;
    changed_->Clear();
    if (device_ended_->load()) return;
    if (!line_.persistent && device_ == nullptr && clients_->last_has_left()) return;
    for (size_t i = 2; i < events.size(); ++i) {
      if (events[i].revents != 0 && CanAccept()) short_of_something |= !AcceptFrom(events[i].fd);
    }
  }
}

Task<IoResult> FlushDevice(BlockDevice& device, Reactor& reactor) {
  absl::StatusOr<std::unique_ptr<BlockChannel>> channel = device.OpenChannel(reactor);
  if (!channel.ok()) co_return IoResult::Error(EIO);
  co_return co_await (*channel)->Flush();
}

absl::Status Service::Flush() {
  if (export_->read_only) return absl::OkStatus();
  Reactor& reactor = reactors_->at(0);
  BlockDevice& device = *export_->device;
  const IoResult flushed = RunOn(reactor, [&] { return FlushDevice(device, reactor); });
  if (flushed.ok()) return absl::OkStatus();
  return absl::ErrnoToStatus(flushed.error, absl::StrCat("\"", line_.file,
                                                         "\": what was written last could not be brought to "
                                                         "the disk"));
}

absl::Status Service::End() {
  listening_ = Listening();
  endpoint_.reset();
  absl::Status status;
  if (device_ != nullptr) status = device_->End();
  status.Update(server_->Stop(absl::Now() + kStopTimeout));
  // What is stuck in the image would hang its destructor too.
  if (!status.ok()) return status;
  status = Flush();
  device_.reset();
  // What is left of the last connection may hold the map for a moment longer, on a reactor's thread, where
  // the image must not be closed.
  exports_->Remove(export_->name);
  server_.reset();
  exports_.reset();
  export_.reset();
  return status;
}

absl::Status Service::Run(std::optional<UniqueFd> activation) {
  // Threads inherit it.
  if (!line_.device.empty()) prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
  if (absl::Status status = Start(std::move(activation)); !status.ok()) return status;
  Loop();
  guard_.emplace(absl::Now() + kStopTimeout + kStopGrace);
  return End();
}

}  // namespace

absl::Status Serve(const CommandLine& line, std::optional<UniqueFd> activation, Background* background) {
  return Service(line, background).Run(std::move(activation));
}

}  // namespace berth::control
