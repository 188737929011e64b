// Transport: the two byte streams of a connection, in clear or under TLS.
//
// Thread: confined to its reactor. Lifetime: outlives its operations; the destructor closes the socket. One
// receive and one send may be under way at a time, beside each other.
#ifndef BERTH_NBD_TRANSPORT_H_
#define BERTH_NBD_TRANSPORT_H_

#include <sys/uio.h>

#include <memory>

#include "absl/types/span.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "image/io/unique_fd.h"

namespace berth::nbd {

class Transport {
 public:
  virtual ~Transport() = default;

  // Results are a count of bytes, at least 1, or -errno; a receive also returns 0 at the end of the stream.
  // The array of vectors and what it points to stay valid until completion.

  // Waits for bytes and fills `vectors` from the first on. -ECANCELED after CancelReceive().
  virtual Task<int> Receive(absl::Span<const iovec> vectors) = 0;
  // -EAGAIN instead of waiting.
  virtual int TryReceive(absl::Span<const iovec> vectors) = 0;
  // Sends what the socket takes, at least one byte. TrySend: -EAGAIN instead of waiting. The next send begins
  // with the bytes that this one did not take, as under TLS they may be encrypted already.
  virtual Task<int> Send(absl::Span<const iovec> vectors) = 0;
  virtual int TrySend(absl::Span<const iovec> vectors) = 0;

  // A Receive() under way returns soon: with bytes that came first, or with -ECANCELED. None is lost.
  virtual void CancelReceive() = 0;
  // Ends the stream both ways; operations under way return soon, and later ones fail.
  virtual void Shutdown() = 0;
};

class PlainTransport : public Transport {
 public:
  // Gives the socket away, for a transport that goes on with it under TLS. No operation is under way, and
  // none follows.
  virtual UniqueFd TakeSocket() = 0;
};

// `socket` is a connected stream socket, non-blocking or not.
std::unique_ptr<PlainTransport> MakePlainTransport(Reactor& reactor, UniqueFd socket);

}  // namespace berth::nbd

#endif  // BERTH_NBD_TRANSPORT_H_
