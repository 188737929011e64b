// TLS records from a client that sends what it likes: from the first byte on (an even first byte of the
// input), or after a handshake in order (an odd one).
#include <sys/socket.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "image/io/gate.h"
#include "image/io/reactor_pool.h"
#include "nbd/tls/credentials.h"
#include "nbd/tls/test_authority.h"
#include "nbd/tls/tls_transport.h"

namespace berth::nbd {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(10);

struct World {
  World() {
    psk = folder.Write("keys.psk", "alice:00112233445566778899aabbccddeeff\n");
    auto made_server =
        TlsCredentials::ForServer({.certificates = folder.path(), .psk = psk, .verify_client = true});
    ClientTlsFiles files;
    files.psk = psk;
    files.psk_user = "alice";
    auto made_client = TlsCredentials::ForClient(files);
    auto made_pool = ReactorPool::Create(1);
    if (!made_server.ok() || !made_client.ok() || !made_pool.ok()) abort();
    server = *made_server;
    client = *made_client;
    pool = *std::move(made_pool);
  }

  TestAuthority authority;
  TestTlsFolder folder{authority};
  std::string psk;
  std::shared_ptr<const TlsCredentials> server, client;
  std::unique_ptr<ReactorPool> pool;
};

// Everything that the server decrypts, until the stream ends or breaks.
Task<void> Drain(TlsTransport& server) {
  std::vector<uint8_t> first(100), second(5000);
  int result = 1;
  while (result > 0) {
    const iovec vectors[] = {{first.data(), first.size()}, {second.data(), second.size()}};
    result = co_await server.Receive(vectors);
  }
}

Task<void> Serve(World& world, int server_socket, int client_socket, bool established,
                 absl::Span<const uint8_t> data) {
  Reactor& reactor = world.pool->at(0);
  auto server = MakeTlsTransport(reactor, UniqueFd(server_socket), world.server);
  absl::Status status;
  if (established) {
    auto client = MakeTlsTransport(reactor, UniqueFd(dup(client_socket)), world.client);
    Gate gate(reactor);
    Spawn([](TlsTransport& end, absl::Status* result, Gate::Holder) -> Task<void> {
      *result = co_await end.Handshake(kTimeout);
    }(*server, &status, gate.Enter()));
    const absl::Status client_status = co_await client->Handshake(kTimeout);
    co_await gate.Close();
    if (!status.ok() || !client_status.ok()) abort();
    // Bytes in order before those out of order: the client's close_notify must not come.
    const std::string hello = "hello";
    const iovec vector = {const_cast<char*>(hello.data()), hello.size()};
    if (co_await client->Send(absl::MakeConstSpan(&vector, 1)) != 5) abort();
    if (data.empty()) co_return;
  }
  if (send(client_socket, data.data(), data.size(), MSG_NOSIGNAL | MSG_DONTWAIT) < 0) co_return;
  shutdown(client_socket, SHUT_WR);
  if (!established) status = co_await server->Handshake(kTimeout);
  if (status.ok()) co_await Drain(*server);
}

}  // namespace
}  // namespace berth::nbd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace berth;       // NOLINT
  using namespace berth::nbd;  // NOLINT
  static World& world = *new World();
  if (size == 0 || size > 100'000) return 0;
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) abort();
  const UniqueFd client(pair[1]);
  const bool established = (data[0] & 1) != 0;
  RunOn(world.pool->at(0), [&] {
    return Serve(world, pair[0], client.get(), established, absl::MakeConstSpan(data + 1, size - 1));
  });
  return 0;
}
