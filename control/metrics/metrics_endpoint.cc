#include "control/metrics/metrics_endpoint.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <exception>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "control/metrics/prometheus_families.h"
#include "image/io/mutex.h"
#include "image/io/unique_fd.h"
#include "prometheus/collectable.h"
#include "prometheus/exposer.h"

namespace berth::control {
namespace {

constexpr absl::string_view kForm =
    "use HOST:PORT with an IPv4 address or a name, and a port of 0 to 65535, as in 127.0.0.1:9843";

struct HostAndPort {
  std::string host;
  std::string port;
};

absl::StatusOr<HostAndPort> Split(absl::string_view address) {
  const auto bad = [&](absl::string_view reason) {
    return absl::InvalidArgumentError(absl::StrCat("metrics address '", address, "': ", reason, "; ", kForm));
  };
  const size_t colon = address.rfind(':');
  if (colon == absl::string_view::npos) return bad("no port");
  const absl::string_view host = address.substr(0, colon);
  const absl::string_view port = address.substr(colon + 1);
  uint32_t number = 0;
  if (port.empty() || !absl::ascii_isdigit(port[0]) || !absl::SimpleAtoi(port, &number) || number > 65535) {
    return bad("bad port");
  }
  if (host.empty()) return bad("no host (0.0.0.0 is every IPv4 address)");
  // Debian builds civetweb without IPv6.
  if (host.find(':') != absl::string_view::npos) return bad("IPv6 is not served");
  return HostAndPort{std::string(host), absl::StrCat(number)};
}

// Listens for a moment itself, as civetweb does not tell why it could not. Returns the address in figures, in
// the form that civetweb takes.
absl::StatusOr<std::string> Probe(absl::string_view address, const HostAndPort& parts) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int failure = getaddrinfo(parts.host.c_str(), parts.port.c_str(), &hints, &found);
  if (failure != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("metrics address '", address, "': ", gai_strerror(failure), "; ", kForm));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  const UniqueFd probe(socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  if (probe.get() < 0 || setsockopt(probe.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
      bind(probe.get(), found->ai_addr, found->ai_addrlen) < 0 || listen(probe.get(), 1) < 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen for metrics on ", address, ": ",
                                               std::strerror(errno), "; choose another --metrics address"));
  }
  char host[NI_MAXHOST];
  if (getnameinfo(found->ai_addr, found->ai_addrlen, host, sizeof host, nullptr, 0, NI_NUMERICHOST) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("metrics address '", address, "' has no figures; ", kForm));
  }
  return absl::StrCat(host, ":", parts.port);
}

class SampleCollectable final : public prometheus::Collectable {
 public:
  explicit SampleCollectable(MetricsSource source) : source_(std::move(source)) {}

  std::vector<prometheus::MetricFamily> Collect() const override { return PrometheusFamilies(source_()); }

 private:
  const MetricsSource source_;
};

// Connects to the endpoint, which listens on `address` ("HOST:PORT", in figures), again and again until it is
// destroyed. Civetweb's thread sleeps for two seconds between two looks whether to stop, and a connection
// wakes it.
class Waker {
 public:
  Waker(absl::string_view address, uint16_t port)
      : thread_([this, host = Reachable(address), port] { Run(host, port); }) {}
  ~Waker() {
    {
      MutexLock lock(&mutex_);
      done_ = true;
    }
    changed_.SignalAll();
    thread_.join();
  }

 private:
  static in_addr Reachable(absl::string_view address) {
    in_addr host{};
    inet_pton(AF_INET, std::string(address.substr(0, address.rfind(':'))).c_str(), &host);
    if (host.s_addr == htonl(INADDR_ANY)) host.s_addr = htonl(INADDR_LOOPBACK);
    return host;
  }

  void Run(in_addr host, uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr = host;
    MutexLock lock(&mutex_);
    while (!done_) {
      const UniqueFd client(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
      (void)connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address);
      changed_.WaitUntil(&mutex_, absl::Now() + absl::Milliseconds(20));
    }
  }

  Mutex mutex_;
  CondVar changed_;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

class CivetwebEndpoint final : public MetricsEndpoint {
 public:
  // Throws what prometheus-cpp throws.
  CivetwebEndpoint(const std::string& address, MetricsSource source)
      : address_(address),
        collectable_(std::make_shared<SampleCollectable>(std::move(source))),
        exposer_(std::make_unique<prometheus::Exposer>(
            std::vector<std::string>{"listening_ports", address, "num_threads", "2", "request_timeout_ms",
                                     "10000", "tcp_nodelay", "1"})) {
    exposer_->RegisterCollectable(collectable_);
    const std::vector<int> ports = exposer_->GetListeningPorts();
    port_ = ports.empty() ? 0 : static_cast<uint16_t>(ports.front());
  }

  ~CivetwebEndpoint() override {
    const Waker waker(address_, port_);
    exposer_.reset();
  }

  uint16_t port() const override { return port_; }

 private:
  const std::string address_;
  // The exposer holds it weakly, and is stopped before it goes.
  const std::shared_ptr<SampleCollectable> collectable_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  uint16_t port_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Start(absl::string_view address,
                                                                        MetricsSource source) {
  const absl::StatusOr<HostAndPort> parts = Split(address);
  if (!parts.ok()) return parts.status();
  const absl::StatusOr<std::string> figures = Probe(address, *parts);
  if (!figures.ok()) return figures.status();
  try {
    return std::make_unique<CivetwebEndpoint>(*figures, std::move(source));
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("cannot serve metrics on ", address, ": ", error.what(),
                                               "; choose another --metrics address"));
  }
}

}  // namespace berth::control
