// What every Transport promises, over plain sockets and over TLS in its forms.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "image/io/gate.h"
#include "nbd/tls/transport_fixture.h"

namespace berth::nbd {
namespace {

TEST_P(TransportTest, ManyBytesBothWaysAtOnce) {
  MakeSockets(100 << 10);  // Small: sends wait.
  Run([this]() -> Task<void> {
    std::vector<uint8_t> up = Bytes(3 << 20), down = Bytes((3 << 20) + 12345);
    int results[2] = {-1, -1};
    Gate gate(reactor());
    Spawn([](Transport& t, std::vector<uint8_t>& b, int* r, Gate::Holder) -> Task<void> {
      *r = co_await SendAll(t, b);
    }(*client_, up, &results[0], gate.Enter()));
    Spawn([](Transport& t, std::vector<uint8_t>& b, int* r, Gate::Holder) -> Task<void> {
      *r = co_await SendAll(t, b);
    }(*server_, down, &results[1], gate.Enter()));
    std::vector<uint8_t> got_up, got_down;
    Spawn([](Transport& t, std::vector<uint8_t>* b, size_t n, Gate::Holder) -> Task<void> {
      int result;
      *b = co_await ReceiveAll(t, n, &result);
    }(*server_, &got_up, up.size(), gate.Enter()));
    Spawn([](Transport& t, std::vector<uint8_t>* b, size_t n, Gate::Holder) -> Task<void> {
      int result;
      *b = co_await ReceiveAll(t, n, &result);
    }(*client_, &got_down, down.size(), gate.Enter()));
    co_await gate.Close();
    EXPECT_EQ(results[0], 0);
    EXPECT_EQ(results[1], 0);
    EXPECT_TRUE(got_up == up);
    EXPECT_TRUE(got_down == down);
  });
}

TEST_P(TransportTest, GathersAndScatters) {
  Run([this]() -> Task<void> {
    std::vector<uint8_t> bytes = Bytes(100000);
    std::vector<iovec> pieces;
    size_t at = 0;
    for (const size_t size : {1, 15, 28, 16384, 16385, 3, 32768, 7, 20000}) {
      pieces.push_back(Vector(bytes, at, size));
      at += size;
    }
    bytes.resize(at);
    size_t sent = 0;
    while (!pieces.empty()) {
      const int result = co_await client_->Send(pieces);
      EXPECT_GT(result, 0);
      if (result <= 0) co_return;
      sent += static_cast<size_t>(result);
      size_t left = static_cast<size_t>(result);
      while (!pieces.empty() && left >= pieces[0].iov_len) {
        left -= pieces[0].iov_len;
        pieces.erase(pieces.begin());
      }
      if (!pieces.empty())
        pieces[0] = {static_cast<uint8_t*>(pieces[0].iov_base) + left, pieces[0].iov_len - left};
    }
    EXPECT_EQ(sent, bytes.size());
    std::vector<uint8_t> got(bytes.size());
    size_t received = 0;
    while (received < got.size()) {
      const size_t left = got.size() - received;
      const size_t first = std::min<size_t>(left, 100);
      const size_t second = std::min<size_t>(left - first, 3);
      const iovec vectors[] = {Vector(got, received, first), Vector(got, received + first, second),
                               Vector(got, received + first + second, left - first - second)};
      const int result = co_await server_->Receive(vectors);
      EXPECT_GT(result, 0);
      if (result <= 0) co_return;
      received += static_cast<size_t>(result);
    }
    EXPECT_TRUE(got == bytes);
  });
}

TEST_P(TransportTest, TriesWithoutWaiting) {
  MakeSockets(64 << 10);
  Run([this]() -> Task<void> {
    std::vector<uint8_t> space(4096);
    iovec vector = Vector(space, 0, space.size());
    EXPECT_EQ(server_->TryReceive(absl::MakeConstSpan(&vector, 1)), -EAGAIN);
    std::vector<uint8_t> bytes = Bytes(8 << 20);
    size_t sent = 0;
    int result = 1;
    while (result > 0) {
      vector = Vector(bytes, sent, std::min<size_t>(100000, bytes.size() - sent));
      result = client_->TrySend(absl::MakeConstSpan(&vector, 1));
      if (result > 0) sent += static_cast<size_t>(result);
    }
    EXPECT_EQ(result, -EAGAIN);
    // The rest goes on from there, whichever way.
    bytes.resize(sent + 300000);
    std::vector<uint8_t> rest(bytes.begin() + static_cast<ptrdiff_t>(sent), bytes.end());
    Gate gate(reactor());
    int rest_result = -1;
    Spawn([](Transport& t, std::vector<uint8_t>& b, int* r, Gate::Holder) -> Task<void> {
      *r = co_await SendAll(t, b);
    }(*client_, rest, &rest_result, gate.Enter()));
    std::vector<uint8_t> got;
    while (got.size() < bytes.size()) {
      vector = Vector(space, 0, space.size());
      int received = server_->TryReceive(absl::MakeConstSpan(&vector, 1));
      if (received == -EAGAIN) received = co_await server_->Receive(absl::MakeConstSpan(&vector, 1));
      EXPECT_GT(received, 0);
      if (received <= 0) break;
      got.insert(got.end(), space.begin(), space.begin() + received);
    }
    co_await gate.Close();
    EXPECT_EQ(rest_result, 0);
    EXPECT_TRUE(got == bytes);
  });
}

TEST_P(TransportTest, ACancelledReceiveLosesNothing) {
  Run([this]() -> Task<void> {
    std::vector<uint8_t> bytes = Bytes(200000);
    Gate gate(reactor());
    int result = -1;
    Spawn([](Transport& t, std::vector<uint8_t>& b, int* r, Reactor& reactor, Gate::Holder) -> Task<void> {
      for (size_t at = 0; at < b.size();) {
        const iovec vector = Vector(b, at, std::min<size_t>(1777, b.size() - at));
        *r = co_await t.Send(absl::MakeConstSpan(&vector, 1));
        if (*r <= 0) co_return;
        at += static_cast<size_t>(*r);
        co_await reactor.Yield();
      }
    }(*client_, bytes, &result, reactor(), gate.Enter()));
    std::vector<uint8_t> got(bytes.size());
    size_t received = 0;
    int cancelled = 0;
    while (received < got.size()) {
      // Cancelled in a later turn, beside bytes that come or not.
      const Reactor::Timer cancel(reactor(), absl::ZeroDuration(), [this] { server_->CancelReceive(); });
      const iovec vector = Vector(got, received, got.size() - received);
      const int count = co_await server_->Receive(absl::MakeConstSpan(&vector, 1));
      if (count == -ECANCELED) {
        ++cancelled;
        continue;
      }
      EXPECT_GT(count, 0);
      if (count <= 0) break;
      received += static_cast<size_t>(count);
    }
    co_await gate.Close();
    EXPECT_TRUE(got == bytes);
    // Nothing comes any more.
    const Reactor::Timer cancel(reactor(), absl::ZeroDuration(), [this] { server_->CancelReceive(); });
    uint8_t byte;
    const iovec vector = {&byte, 1};
    const int last = co_await server_->Receive(absl::MakeConstSpan(&vector, 1));
    EXPECT_EQ(last, -ECANCELED);
    EXPECT_GE(cancelled, 0);
  });
}

TEST_P(TransportTest, TheEndComesAfterTheLastByte) {
  Run([this]() -> Task<void> {
    std::vector<uint8_t> bytes = Bytes(70000);
    EXPECT_EQ(co_await SendAll(*client_, bytes), 0);
    client_.reset();
    int result;
    const std::vector<uint8_t> got = co_await ReceiveAll(*server_, bytes.size() + 1, &result);
    EXPECT_EQ(result, 0);
    EXPECT_TRUE(got == bytes);
    int again;
    const std::vector<uint8_t> more = co_await ReceiveAll(*server_, 1, &again);
    EXPECT_EQ(again, 0) << "stays at the end";
  });
}

TEST_P(TransportTest, ShutdownEndsWhatIsUnderWay) {
  MakeSockets(64 << 10);
  Run([this]() -> Task<void> {
    Gate gate(reactor());
    int received = 1, sent = 0;
    Spawn([](Transport& t, int* r, Gate::Holder) -> Task<void> { co_await ReceiveAll(t, 1, r); }(
                                                     *server_, &received, gate.Enter()));
    std::vector<uint8_t> bytes = Bytes(8 << 20);
    Spawn([](Transport& t, std::vector<uint8_t>& b, int* r, Gate::Holder) -> Task<void> {
      *r = co_await SendAll(t, b);
    }(*server_, bytes, &sent, gate.Enter()));
    co_await reactor().Yield();
    server_->Shutdown();
    co_await gate.Close();
    EXPECT_LE(received, 0);
    EXPECT_LT(sent, 0);
    const iovec vector = Vector(bytes, 0, 1);
    EXPECT_LT(server_->TrySend(absl::MakeConstSpan(&vector, 1)), 0);
  });
}

INSTANTIATE_TEST_SUITE_P(Kinds, TransportTest,
                         testing::Values(Kind::kPlain, Kind::kTls13, Kind::kTls12, Kind::kPsk13, Kind::kPsk12,
                                         Kind::kAnonymous, Kind::kTcp13, Kind::kTcp12),
                         NameOf);

}  // namespace
}  // namespace berth::nbd
