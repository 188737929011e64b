#include "nbd/listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "image/io/mutex.h"
#include "image/io/reactor_pool.h"

namespace berth::nbd {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(30);

// Collects what a listener accepts.
class Accepted {
 public:
  void Add(UniqueFd socket) {
    MutexLock lock(&mutex_);
    sockets_.push_back(std::move(socket));
    changed_.SignalAll();
  }
  void End() {
    MutexLock lock(&mutex_);
    ++ends_;
    changed_.SignalAll();
  }
  // The next one, or none after some seconds.
  UniqueFd Next() {
    MutexLock lock(&mutex_);
    const absl::Time deadline = absl::Now() + kPatience;
    while (sockets_.empty() && absl::Now() < deadline) changed_.WaitUntil(&mutex_, deadline);
    if (sockets_.empty()) return UniqueFd();
    UniqueFd next = std::move(sockets_.front());
    sockets_.pop_front();
    return next;
  }
  bool WaitForEnd() {
    MutexLock lock(&mutex_);
    const absl::Time deadline = absl::Now() + kPatience;
    while (ends_ == 0 && absl::Now() < deadline) changed_.WaitUntil(&mutex_, deadline);
    return ends_ == 1;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::deque<UniqueFd> sockets_;
  int ends_ = 0;
};

class ListenerTest : public testing::Test {
 protected:
  void SetUp() override {
    auto pool = ReactorPool::Create(1);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
    char folder[] = "/tmp/berth_listener_XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    folder_ = folder;
  }
  void TearDown() override {
    pool_.reset();
    unlink(Path("s").c_str());
    rmdir(folder_.c_str());
  }

  std::string Path(absl::string_view name) const { return absl::StrCat(folder_, "/", name); }
  Address UnixAddress(absl::string_view name = "s") const {
    return Address::Parse("unix:" + Path(name)).value();
  }
  bool Exists(absl::string_view name) const {
    struct stat facts;
    return lstat(Path(name).c_str(), &facts) == 0;
  }

  void Start(Listener& listener) {
    listener.Start(
        pool_->at(0), [this](UniqueFd socket) { accepted_.Add(std::move(socket)); },
        [this] { accepted_.End(); });
  }

  static UniqueFd ConnectUnix(const std::string& path) {
    UniqueFd made(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    if (connect(made.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) made.Reset();
    return made;
  }

  static UniqueFd ConnectTcp(int family, uint16_t port) {
    UniqueFd made(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in6 ipv6 = {};
    ipv6.sin6_family = AF_INET6;
    ipv6.sin6_port = htons(port);
    ipv6.sin6_addr = in6addr_loopback;
    sockaddr_in ipv4 = {};
    ipv4.sin_family = AF_INET;
    ipv4.sin_port = htons(port);
    ipv4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int result = family == AF_INET6
                           ? connect(made.get(), reinterpret_cast<sockaddr*>(&ipv6), sizeof(ipv6))
                           : connect(made.get(), reinterpret_cast<sockaddr*>(&ipv4), sizeof(ipv4));
    if (result != 0) made.Reset();
    return made;
  }

  // Whether `near` and `far` are the two ends of one connection.
  static bool Connected(const UniqueFd& near, const UniqueFd& far) {
    char byte = 0;
    return near && far && write(near.get(), "x", 1) == 1 && read(far.get(), &byte, 1) == 1 && byte == 'x';
  }

  std::string folder_;
  Accepted accepted_;
  std::unique_ptr<ReactorPool> pool_;
};

TEST_F(ListenerTest, UnixSocketAcceptsAndIsRemoved) {
  auto listener = Listener::Open(UnixAddress());
  ASSERT_TRUE(listener.ok()) << listener.status();
  Start(**listener);
  for (int i = 0; i < 3; ++i) {
    UniqueFd client = ConnectUnix(Path("s"));
    UniqueFd served = accepted_.Next();
    EXPECT_TRUE(Connected(client, served));
    EXPECT_EQ(fcntl(served.get(), F_GETFD), FD_CLOEXEC);
    EXPECT_TRUE(absl::StartsWith(PeerName(served.get()), absl::StrCat("unix:pid=", getpid())));
  }
  (*listener)->Stop();
  EXPECT_TRUE(accepted_.WaitForEnd());
  EXPECT_FALSE(Exists("s"));
  EXPECT_FALSE(ConnectUnix(Path("s")));
}

TEST_F(ListenerTest, NeverStartedIsRemovedToo) {
  { ASSERT_TRUE(Listener::Open(UnixAddress()).ok()); }
  EXPECT_FALSE(Exists("s"));
}

TEST_F(ListenerTest, ModeIsAsGivenWhateverTheUmask) {
  for (mode_t mask : {0, 0077}) {
    const mode_t before = umask(mask);
    auto listener = Listener::Open(UnixAddress(), {.socket_mode = 0660});
    umask(before);
    ASSERT_TRUE(listener.ok()) << listener.status();
    struct stat facts;
    ASSERT_EQ(lstat(Path("s").c_str(), &facts), 0);
    EXPECT_EQ(facts.st_mode & 07777, 0660u);
  }
  auto listener = Listener::Open(UnixAddress());
  struct stat facts;
  ASSERT_EQ(lstat(Path("s").c_str(), &facts), 0);
  EXPECT_EQ(facts.st_mode & 07777, 0600u);
}

TEST_F(ListenerTest, DeadServersSocketIsReplaced) {
  {
    UniqueFd dead(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, Path("s").c_str(), sizeof(address.sun_path) - 1);
    ASSERT_EQ(bind(dead.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    ASSERT_EQ(listen(dead.get(), 1), 0);
  }
  ASSERT_TRUE(Exists("s"));
  auto listener = Listener::Open(UnixAddress());
  ASSERT_TRUE(listener.ok()) << listener.status();
  EXPECT_TRUE(ConnectUnix(Path("s")));
}

TEST_F(ListenerTest, LiveServersSocketStays) {
  auto first = Listener::Open(UnixAddress(), {.backlog = 0});
  ASSERT_TRUE(first.ok());
  // Also where its backlog is full: one more than none.
  UniqueFd waiting = ConnectUnix(Path("s"));
  for (int i = 0; i < 2; ++i) {
    auto second = Listener::Open(UnixAddress());
    EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists) << second.status();
    EXPECT_TRUE(absl::StrContains(second.status().message(), Path("s"))) << second.status();
  }
  Start(**first);
  EXPECT_TRUE(Connected(waiting, accepted_.Next()));
  (*first)->Stop();
  EXPECT_TRUE(accepted_.WaitForEnd());
}

TEST_F(ListenerTest, OtherFilesStay) {
  UniqueFd(open(Path("s").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  auto listener = Listener::Open(UnixAddress());
  EXPECT_EQ(listener.status().code(), absl::StatusCode::kAlreadyExists) << listener.status();
  EXPECT_TRUE(absl::StrContains(listener.status().message(), "no socket")) << listener.status();
  EXPECT_TRUE(Exists("s"));
}

TEST_F(ListenerTest, SomebodyElsesSocketStaysWhenItStops) {
  auto listener = Listener::Open(UnixAddress());
  ASSERT_TRUE(listener.ok());
  ASSERT_EQ(unlink(Path("s").c_str()), 0);
  UniqueFd(open(Path("s").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  (*listener)->Stop();
  EXPECT_TRUE(Exists("s"));
}

TEST_F(ListenerTest, ErrorsNameTheAddress) {
  auto no_folder = Listener::Open(Address::Parse("unix:/nonexistent/s").value());
  EXPECT_EQ(no_folder.status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(no_folder.status().message(), "'/nonexistent/'")) << no_folder.status();
  auto no_host = Listener::Open(Address::Parse("host.invalid:0").value());
  EXPECT_EQ(no_host.status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(no_host.status().message(), "host.invalid")) << no_host.status();
  auto foreign = Listener::Open(Address::Parse("192.0.2.1:0").value());
  EXPECT_FALSE(foreign.ok());
  EXPECT_TRUE(absl::StrContains(foreign.status().message(), "no such address")) << foreign.status();
  auto first = Listener::Open(Address::Parse("127.0.0.1:0").value());
  ASSERT_TRUE(first.ok());
  auto second = Listener::Open((*first)->address());
  EXPECT_FALSE(second.ok());
  EXPECT_TRUE(absl::StrContains(second.status().message(), "another server has it")) << second.status();
}

TEST_F(ListenerTest, TcpOverBothFamilies) {
  for (const auto& [text, family] : {std::make_pair("127.0.0.1:0", AF_INET), {"[::1]:0", AF_INET6}}) {
    auto listener = Listener::Open(Address::Parse(text).value());
    ASSERT_TRUE(listener.ok()) << listener.status();
    const uint16_t port = (*listener)->address().port;
    ASSERT_NE(port, 0);
    Accepted accepted;
    (*listener)->Start(
        pool_->at(0), [&](UniqueFd socket) { accepted.Add(std::move(socket)); }, [&] { accepted.End(); });
    UniqueFd client = ConnectTcp(family, port);
    UniqueFd served = accepted.Next();
    EXPECT_TRUE(Connected(client, served)) << text;
    int on = 0;
    socklen_t length = sizeof(on);
    EXPECT_EQ(getsockopt(served.get(), IPPROTO_TCP, TCP_NODELAY, &on, &length), 0);
    EXPECT_EQ(on, 1);
    EXPECT_EQ(LocalAddress(served.get()).value(), (*listener)->address());
    (*listener)->Stop();
    EXPECT_TRUE(accepted.WaitForEnd());
    // Whoever heard of the end may have the port at once, a client in TIME_WAIT or not.
    served.Reset();
    auto again = Listener::Open((*listener)->address());
    EXPECT_TRUE(again.ok()) << again.status();
  }
}

TEST_F(ListenerTest, EveryAddressOfAName) {
  auto listener = Listener::Open(Address::Parse(":0").value());
  ASSERT_TRUE(listener.ok()) << listener.status();
  Start(**listener);
  for (int family : {AF_INET, AF_INET6}) {
    UniqueFd client = ConnectTcp(family, (*listener)->address().port);
    EXPECT_TRUE(Connected(client, accepted_.Next())) << family;
  }
  (*listener)->Stop();
  EXPECT_TRUE(accepted_.WaitForEnd());
}

// EMFILE: whoever comes while there is no descriptor is served when there is one again, and the reactor does
// not spin meanwhile.
TEST_F(ListenerTest, OutOfDescriptors) {
  // So long that it does not pass once a turn on the slowest of machines.
  auto listener = Listener::Open(UnixAddress(), {.shortage_pause = absl::Milliseconds(500)});
  ASSERT_TRUE(listener.ok()) << listener.status();
  Start(**listener);
  UniqueFd client(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  // The next descriptor would be this one.
  UniqueFd next(dup(client.get()));
  const rlimit none = {static_cast<rlim_t>(next.get()), before.rlim_max};
  next.Reset();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);

  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  strncpy(address.sun_path, Path("s").c_str(), sizeof(address.sun_path) - 1);
  ASSERT_EQ(connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const auto finish_turn = [this] { RunOn(pool_->at(0), []() -> Task<void> { co_return; }); };
  const absl::Time deadline = absl::Now() + kPatience;
  while ((*listener)->shortages() == 0 && absl::Now() < deadline) finish_turn();
  EXPECT_GT((*listener)->shortages(), 0u);
  constexpr int kTurns = 1000;
  for (int i = 0; i < kTurns; ++i) finish_turn();
  EXPECT_LT((*listener)->shortages(), kTurns / 10);

  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(Connected(client, accepted_.Next()));
  (*listener)->Stop();
  EXPECT_TRUE(accepted_.WaitForEnd());
}

}  // namespace
}  // namespace berth::nbd
