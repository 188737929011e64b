#include "control/daemon.h"

#include <sys/resource.h>

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "berth/v1/attachments.grpc.pb.h"
#include "berth/v1/exports.grpc.pb.h"
#include "berth/v1/image_tools.grpc.pb.h"
#include "berth/v1/images.grpc.pb.h"
#include "berth/v1/monitoring.grpc.pb.h"
#include "berth/v1/operations.grpc.pb.h"
#include "control/attachment_table.h"
#include "control/event_hub.h"
#include "control/export_registry.h"
#include "control/log.h"
#include "control/metrics/metrics_endpoint.h"
#include "control/network_clients.h"
#include "control/operations.h"
#include "control/random_id.h"
#include "control/reactor_watch.h"
#include "control/rpc_server.h"
#include "control/services.h"
#include "control/state_store.h"
#include "control/watcher_slots.h"
#include "image/io/reactor_pool.h"
#include "image/opener/image_roots.h"
#include "nbd/address.h"
#include "nbd/server.h"
#include "nbd/tls/server_credentials.h"
#include "netlink/libnl_nbd_kernel.h"

namespace berth::control {
namespace {

// How often the files for TLS are looked at.
constexpr absl::Duration kCredentialsInterval = absl::Seconds(2);

// Each export, connection and device takes some descriptors. Less than what is wanted is a warning, as a
// small service needs no more.
void RaiseOpenFileLimit(uint64_t wanted) {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return;
  rlimit raised = {.rlim_cur = wanted, .rlim_max = std::max<rlim_t>(limit.rlim_max, wanted)};
  if (setrlimit(RLIMIT_NOFILE, &raised) == 0) return;
  raised = {.rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max};
  setrlimit(RLIMIT_NOFILE, &raised);
  Log(LogLevel::kWarning, "fewer open files than --max-open-files",
      {{"wanted", absl::StrCat(wanted)}, {"allowed", absl::StrCat(limit.rlim_max)}});
}

absl::Status Explained(absl::string_view option, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(option, ": ", status.message()));
}

class RunningDaemon final : public Daemon {
 public:
  explicit RunningDaemon(const Config& config) : config_(config) {}

  // What was started is ended in the order of dependence, after a failed Start() too.
  ~RunningDaemon() override {
    if (const absl::Status status = Stop(); !status.ok()) {
      Log(LogLevel::kError, "not stopped cleanly", {{"error", std::string(status.message())}});
    }
  }

  absl::Status Start() {
    RaiseOpenFileLimit(config_.max_open_files);
    if (absl::Status status = OpenState(); !status.ok()) return status;
    if (absl::Status status = exports_->Restore(); !status.ok()) return status;
    if (absl::Status status = attachments_->Restore(); !status.ok()) return status;
    if (absl::Status status = StartNbd(); !status.ok()) return status;
    if (absl::Status status = StartMetrics(); !status.ok()) return status;
    return StartRpc();
  }

  absl::Status Stop() override;

 private:
  absl::Status OpenState();
  absl::Status StartNbd();
  absl::Status ReadTlsCredentials(nbd::ServerOptions& options);
  absl::Status StartMetrics();
  absl::Status StartRpc();
  MetricsSample Sample() const;

  const Config config_;
  std::unique_ptr<StateStore> store_;
  std::shared_ptr<EventHub> events_;
  ImageRoots roots_ = ImageRoots::Anywhere();
  ImageRoots secret_roots_ = ImageRoots::Anywhere();
  std::unique_ptr<ReactorPool> reactors_;
  std::unique_ptr<ReactorWatch> reactor_watch_;
  std::unique_ptr<netlink::NbdKernel> kernel_;
  std::shared_ptr<ExportRegistry> exports_;
  std::unique_ptr<AttachmentTable> attachments_;
  std::unique_ptr<nbd::Server> nbd_;
  std::unique_ptr<MetricsEndpoint> metrics_;
  std::unique_ptr<WatcherSlots> watchers_;
  std::unique_ptr<Operations> operations_;
  ServiceEnvironment environment_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<RpcServer> rpc_;
};

void TellAboutReactor(EventHub& events, size_t reactor, absl::Duration silent) {
  const std::string number = absl::StrCat(reactor);
  if (silent == absl::ZeroDuration())
    return Log(LogLevel::kInfo, "reactor turns again", {{"reactor", number}});
  v1::Event event;
  event.set_type(v1::EVENT_TYPE_IO_ERROR);
  event.set_message(absl::StrCat("reactor ", number, " has not turned for ", absl::FormatDuration(silent),
                                 ": its connections are not served"));
  Log(LogLevel::kError, event.message());
  events.Publish(std::move(event));
}

absl::Status RunningDaemon::OpenState() {
  absl::StatusOr<ImageRoots> roots = ImageRoots::Within(config_.image_roots);
  if (!roots.ok()) return Explained("--image-root", roots.status());
  roots_ = *std::move(roots);
  absl::StatusOr<std::unique_ptr<StateStore>> store = StateStore::Open(config_.state_dir);
  if (!store.ok()) return Explained("--state-dir", store.status());
  store_ = *std::move(store);
  absl::StatusOr<std::unique_ptr<ReactorPool>> reactors = ReactorPool::Create(config_.reactors);
  if (!reactors.ok()) return Explained("--reactors", reactors.status());
  reactors_ = *std::move(reactors);
  absl::StatusOr<std::string> server_id = RandomId();
  if (!server_id.ok()) return server_id.status();
  events_ = std::make_shared<EventHub>(config_.event_history, *std::move(server_id));
  reactor_watch_ = std::make_unique<ReactorWatch>(*reactors_, config_.reactor_limit,
                                                  [events = events_](size_t reactor, absl::Duration silent) {
                                                    TellAboutReactor(*events, reactor, silent);
                                                  });
  kernel_ = netlink::LibnlNbdKernel::Create();

  absl::StatusOr<ImageRoots> secret_roots = ImageRoots::Within(config_.secret_roots);
  if (!secret_roots.ok()) return Explained("--secret-root", secret_roots.status());
  secret_roots_ = *std::move(secret_roots);

  ExportRegistryOptions exports;
  exports.secret_roots = secret_roots_;
  exports.max_exports = config_.max_exports;
  exports.operation_timeout = config_.operation_timeout;
  // Attachments are there before the first client is.
  exports.resize_devices = [this](const std::string& name, uint64_t size) {
    return attachments_->ResizeDevices(name, size, absl::Now() + config_.operation_timeout);
  };
  exports_ = std::make_shared<ExportRegistry>(exports, roots_, store_.get(), events_.get());

  AttachmentEnvironment attachments;
  attachments.options.connections = config_.device_connections;
  attachments.options.timeout = config_.device_timeout;
  attachments.options.dead_connection_timeout = config_.dead_connection_timeout;
  attachments.options.request_timeout = config_.request_timeout;
  attachments.options.operation_timeout = config_.operation_timeout;
  attachments.options.session.max_bytes_in_flight = config_.connection_memory;
  attachments.store = store_.get();
  attachments.kernel = kernel_.get();
  attachments.reactors = reactors_.get();
  attachments.events = events_.get();
  attachments_ = std::make_unique<AttachmentTable>(attachments, exports_.get(), config_.max_attachments);
  return absl::OkStatus();
}

// What is told to people of the files for TLS, at the start and when they change.
void TellAboutCredentials(EventHub& events, const absl::Status& status) {
  v1::Event event;
  event.set_type(status.ok() ? v1::EVENT_TYPE_TLS_CREDENTIALS_READ : v1::EVENT_TYPE_TLS_CREDENTIALS_FAILED);
  event.set_message(std::string(status.message()));
  events.Publish(std::move(event));
  if (status.ok()) return Log(LogLevel::kInfo, "TLS credentials read again");
  Log(LogLevel::kError, "new TLS credentials cannot be used, the old ones stay",
      {{"error", std::string(status.message())}});
}

absl::Status RunningDaemon::ReadTlsCredentials(nbd::ServerOptions& options) {
  options.handshake.tls = config_.nbd_tls;
  options.allowed_clients = config_.nbd_allowed_clients;
  if (config_.nbd_tls == nbd::TlsMode::kOff) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<nbd::ServerCredentials>> opened = nbd::ServerCredentials::Open(
      config_.nbd_tls_files, kCredentialsInterval,
      [events = events_](const absl::Status& status) { TellAboutCredentials(*events, status); });
  if (!opened.ok()) return Explained("--tls", opened.status());
  for (const std::string& warning : (*opened)->current()->warnings()) Log(LogLevel::kWarning, warning);
  // A connection that would not end may outlive the daemon.
  const std::shared_ptr<nbd::ServerCredentials> credentials = *std::move(opened);
  options.tls_credentials = [credentials] { return credentials->current(); };
  return absl::OkStatus();
}

absl::Status RunningDaemon::StartNbd() {
  nbd::ServerOptions options;
  options.max_connections = config_.max_connections;
  options.max_connections_per_export = config_.max_connections_per_export;
  options.max_connections_per_address = config_.max_connections_per_address;
  options.handshake_timeout = config_.handshake_limit;
  options.session.max_bytes_in_flight = config_.connection_memory;
  options.handshake.sole_export_is_default = false;  // Exports come and go.
  if (absl::Status status = ReadTlsCredentials(options); !status.ok()) return status;
  nbd_ = std::make_unique<nbd::Server>(*reactors_, exports_, options,
                                       std::make_shared<NetworkClients>(exports_, events_));
  for (const std::string& text : config_.nbd) {
    absl::StatusOr<nbd::Address> address = nbd::Address::Parse(text);
    if (!address.ok()) return Explained("--nbd", address.status());
    nbd::ListenOptions listen;
    listen.socket_mode = config_.nbd_socket_for_all ? 0666 : 0600;
    absl::StatusOr<nbd::Address> listening = nbd_->Listen(*address, listen);
    if (!listening.ok()) return Explained("--nbd", listening.status());
    Log(LogLevel::kInfo, "serving NBD", {{"address", listening->ToString()}});
  }
  return absl::OkStatus();
}

absl::Status RunningDaemon::StartMetrics() {
  if (config_.metrics.empty()) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<MetricsEndpoint>> metrics =
      MetricsEndpoint::Start(config_.metrics, [this] { return Sample(); });
  if (!metrics.ok()) return Explained("--metrics", metrics.status());
  metrics_ = *std::move(metrics);
  Log(LogLevel::kInfo, "serving metrics",
      {{"address", config_.metrics}, {"port", absl::StrCat(metrics_->port())}});
  return absl::OkStatus();
}

MetricsSample RunningDaemon::Sample() const {
  MetricsSample sample;
  const std::map<std::string, uint32_t> connections = attachments_->CountConnections();
  for (ExportRegistry::Activity& activity : exports_->ListActivity()) {
    const auto attached = connections.find(activity.name);
    ExportSample item;
    item.connections = activity.clients + (attached == connections.end() ? 0 : attached->second);
    item.name = std::move(activity.name);
    item.size_bytes = activity.size_bytes;
    item.metrics = std::move(activity.metrics);
    sample.exports.push_back(std::move(item));
  }
  sample.attachments = attachments_->CountStates();
  sample.stuck_reactors = reactor_watch_->stuck();
  return sample;
}

absl::Status RunningDaemon::StartRpc() {
  watchers_ = std::make_unique<WatcherSlots>(config_.max_watchers);
  OperationsOptions operations;
  // Each keeps a thread; calls that watch and cancel them always find another.
  const size_t threads = static_cast<size_t>(config_.rpc_threads) - config_.max_watchers;
  operations.max_running = std::max<size_t>(threads / 2, 1);
  operations_ = std::make_unique<Operations>(operations, watchers_.get(), events_.get());
  environment_.exports = exports_.get();
  environment_.attachments = attachments_.get();
  environment_.events = events_.get();
  environment_.roots = &roots_;
  environment_.secret_roots = &secret_roots_;
  environment_.operation_timeout = config_.operation_timeout;
  environment_.operations = operations_.get();
  environment_.watchers = watchers_.get();
  environment_.disconnect_clients = [this](const std::string& name) {
    const absl::Status status = nbd_->DisconnectExport(name, absl::Now() + config_.operation_timeout);
    if (!status.ok()) {
      Log(LogLevel::kWarning, "clients did not go",
          {{"export", name}, {"error", std::string(status.message())}});
    }
  };
  services_.push_back(MakeExportService(environment_));
  services_.push_back(MakeAttachmentService(environment_));
  services_.push_back(MakeImageService(environment_));
  services_.push_back(MakeImageToolService(environment_));
  services_.push_back(MakeMonitoringService(environment_));
  services_.push_back(MakeOperationService(environment_));
  RpcServerOptions options;
  options.unix_paths = config_.listen_unix;
  options.tcp_addresses = config_.listen_tcp;
  options.tls_certificate = config_.tls_certificate;
  options.tls_key = config_.tls_key;
  options.tls_client_ca = config_.tls_client_ca;
  options.service_names = {
      v1::ExportService::service_full_name(),     v1::AttachmentService::service_full_name(),
      v1::ImageService::service_full_name(),      v1::ImageToolService::service_full_name(),
      v1::MonitoringService::service_full_name(), v1::OperationService::service_full_name()};
  options.allowed_uids = config_.allowed_uids;
  options.max_threads = config_.rpc_threads;
  options.max_unix_connections = config_.max_rpc_connections;
  absl::StatusOr<std::unique_ptr<RpcServer>> rpc = RpcServer::Start(options, services_);
  if (!rpc.ok()) return Explained("--listen", rpc.status());
  rpc_ = *std::move(rpc);
  return absl::OkStatus();
}

// The order is that of dependence, from the outside in.
absl::Status RunningDaemon::Stop() {
  const absl::Time deadline = absl::Now() + config_.stop_timeout;
  if (events_ != nullptr) events_->Close();
  if (operations_ != nullptr) operations_->Close();
  if (rpc_ != nullptr) rpc_->Stop(deadline);
  rpc_.reset();
  metrics_.reset();
  if (exports_ != nullptr) exports_->LiftRateLimits();
  absl::Status status;
  if (nbd_ != nullptr) status = nbd_->Stop(deadline);
  nbd_.reset();
  if (attachments_ != nullptr) {
    if (config_.detach_on_exit) attachments_->DetachAll(deadline);
    status.Update(attachments_->Shutdown(deadline));
  }
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const Config& config) {
  auto daemon = std::make_unique<RunningDaemon>(config);
  if (absl::Status status = daemon->Start(); !status.ok()) return status;
  return daemon;
}

}  // namespace berth::control
