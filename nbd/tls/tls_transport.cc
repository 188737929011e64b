#include "nbd/tls/tls_transport.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/io/blocking_pool.h"
#include "nbd/tls/openssl_error.h"
#include "nbd/tls/pem.h"
#include "nbd/tls/record_stream.h"

namespace berth::nbd {
namespace {

// The most plain bytes of a record.
constexpr size_t kRecord = SSL3_RT_MAX_PLAIN_LENGTH;
// What is encrypted before it is sent: the records of a large reply, so that they leave in few calls.
constexpr size_t kBatch = 16 * kRecord;
// The most that waits to be sent: a batch, and answers of the library (to attempts at renegotiation, to
// updates of keys), which the other end can ask for without reading them.
constexpr size_t kMostUnread = 2 * kBatch;

size_t SizeOf(absl::Span<const iovec> vectors) {
  size_t size = 0;
  for (const iovec& vector : vectors) size += vector.iov_len;
  return size;
}

msghdr MessageOf(absl::Span<const iovec> vectors) {
  msghdr message = {};
  message.msg_iov = const_cast<iovec*>(vectors.data());
  message.msg_iovlen = vectors.size();
  return message;
}

// The library tells what a call came to by this thread's queue of errors, which is seldom not empty.
void ForgetErrors() {
  if (ERR_peek_error() != 0) ERR_clear_error();
}

// Where handshakes are worked on: a signature takes a reactor's other connections up to some milliseconds,
// and so does a chain of certificates that somebody made to be slow. At most one step of each connection
// waits.
BlockingPool& HandshakeThreads() {
  static BlockingPool& pool =
      *new BlockingPool(std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 2, 1, 4));
  return pool;
}

bool IsIpAddress(const std::string& name) {
  in6_addr address;
  return inet_pton(AF_INET, name.c_str(), &address) == 1 || inet_pton(AF_INET6, name.c_str(), &address) == 1;
}

class OpensslTransport final : public TlsTransport {
 public:
  OpensslTransport(Reactor& reactor, UniqueFd socket, std::shared_ptr<const TlsCredentials> credentials,
                   absl::string_view server_name);
  ~OpensslTransport() override;

  Task<absl::Status> Handshake(absl::Duration timeout) override;
  const TlsPeer& peer() const override { return peer_; }
  const std::string& failure() const override { return failure_; }

  Task<int> Receive(absl::Span<const iovec> vectors) override;
  int TryReceive(absl::Span<const iovec> vectors) override;
  Task<int> Send(absl::Span<const iovec> vectors) override;
  int TrySend(absl::Span<const iovec> vectors) override;
  void CancelReceive() override;
  void Shutdown() override;

 private:
  static unsigned FindKeyOfClient(SSL* tls, const char* user, unsigned char* key, unsigned most);
  static unsigned GiveOwnKey(SSL* tls, const char* hint, char* user, unsigned user_most, unsigned char* key,
                             unsigned most);

  // What the library came to with the records that there are, in plain types: a status stays on the thread
  // that made it.
  struct Step {
    std::string failure = "";
    bool over = false;
    bool wants_records = false;
  };

  absl::Status Prepare();
  Task<absl::Status> Converse();
  // On a thread of HandshakeThreads(), while the reactor's has nothing to do with this connection.
  Step TakeStep();
  std::string HandshakeError(int error) const;
  void LearnPeer();

  // Waits for records: their size, 0 at the end of the stream, or -errno.
  Task<int> ReceiveRecords();
  // Waits until every record has left: 0 or -errno.
  Task<int> SendRecords();
  // Fills `vectors` with what the library can decrypt now: a count, 0 after close_notify, or -EAGAIN and
  // other errors.
  int Decrypt(absl::Span<const iovec> vectors);
  int DecryptInto(uint8_t* data, size_t size);
  // Makes records of the first bytes of `vectors`: 0 or -errno.
  int Encrypt(absl::Span<const iovec> vectors);
  int EncryptRecords(const uint8_t* data, size_t size);
  // How much of `vectors` has left, as every record has.
  int TakeEncrypted(absl::Span<const iovec> vectors);
  int Fail();

  Reactor& reactor_;
  const UniqueFd socket_;
  const std::shared_ptr<const TlsCredentials> credentials_;
  const std::string server_name_;
  RecordStream stream_;
  SslConnection tls_;

  std::string psk_user_;  // Asked for last.
  TlsPeer peer_;
  std::string failure_;
  bool established_ = false;
  bool ended_ = false;  // The other end said so.
  bool shut_ = false;   // A socket whose kernel encrypts takes bytes all the same, and drops them.
  bool timed_out_ = false;
  Reactor::Operation* receiving_ = nullptr;
  bool cancelled_ = false;
  size_t encrypted_ = 0;  // Of what the next send begins with: already in records.
};

OpensslTransport::OpensslTransport(Reactor& reactor, UniqueFd socket,
                                   std::shared_ptr<const TlsCredentials> credentials,
                                   absl::string_view server_name)
    : reactor_(reactor),
      socket_(std::move(socket)),
      credentials_(std::move(credentials)),
      server_name_(server_name),
      stream_(socket_.get()),
      tls_(SSL_new(credentials_->context())) {
  // The ring does not wait on a descriptor that is O_NONBLOCK; what must not wait here says MSG_DONTWAIT.
  const int flags = fcntl(socket_.get(), F_GETFL);
  if ((flags & O_NONBLOCK) != 0) fcntl(socket_.get(), F_SETFL, flags & ~O_NONBLOCK);
}

OpensslTransport::~OpensslTransport() {
  // A failed connection must not be told that it ends well, and close_notify comes after all else or never.
  if (!established_ || shut_ || !failure_.empty() || encrypted_ > 0 || stream_.has_output()) return;
  ForgetErrors();
  SSL_shutdown(tls_.get());
  stream_.SendOutput();
  ForgetErrors();
}

// ---- The handshake.

unsigned OpensslTransport::FindKeyOfClient(SSL* tls, const char* user, unsigned char* key, unsigned most) {
  auto* self = static_cast<OpensslTransport*>(SSL_get_app_data(tls));
  if (user == nullptr) return 0;
  const PskKeys& keys = self->credentials_->psk_keys();
  const auto found = keys.find(absl::string_view(user));
  if (found == keys.end() || found->second.size() > most) return 0;
  self->psk_user_ = found->first;
  std::copy(found->second.begin(), found->second.end(), key);
  return static_cast<unsigned>(found->second.size());
}

unsigned OpensslTransport::GiveOwnKey(SSL* tls, const char*, char* user, unsigned user_most,
                                      unsigned char* key, unsigned most) {
  auto* self = static_cast<OpensslTransport*>(SSL_get_app_data(tls));
  const auto& [name, secret] = *self->credentials_->psk_keys().begin();
  if (name.size() >= user_most || secret.size() > most) return 0;
  self->psk_user_ = name;
  memcpy(user, name.c_str(), name.size() + 1);
  std::copy(secret.begin(), secret.end(), key);
  return static_cast<unsigned>(secret.size());
}

absl::Status OpensslTransport::Prepare() {
  SSL* tls = tls_.get();
  if (tls == nullptr) return absl::ResourceExhaustedError(TakeOpensslErrors());
  BIO* bio = stream_.NewBio();
  SSL_set_bio(tls, bio, bio);
  SSL_set_app_data(tls, this);
  const bool psk = !credentials_->psk_keys().empty();
  if (credentials_->is_server()) {
    SSL_set_accept_state(tls);
    if (psk) SSL_set_psk_server_callback(tls, &FindKeyOfClient);
    return absl::OkStatus();
  }
  SSL_set_connect_state(tls);
  if (psk) SSL_set_psk_client_callback(tls, &GiveOwnKey);
  const bool address = IsIpAddress(server_name_);
  if (!server_name_.empty() && !address) SSL_set_tlsext_host_name(tls, server_name_.c_str());
  if (!credentials_->verifies_peer()) return absl::OkStatus();
  if (server_name_.empty()) {
    return absl::InvalidArgumentError("verifying a server needs the name that its certificate is for");
  }
  SSL_set_hostflags(tls, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
  const int ok = address ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(tls), server_name_.c_str())
                         : SSL_set1_host(tls, server_name_.c_str());
  if (ok == 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("\"", server_name_, "\" is no name of a server"));
}

Task<absl::Status> OpensslTransport::Handshake(absl::Duration timeout) {
  if (absl::Status status = Prepare(); !status.ok()) co_return status;
  const Reactor::Timer deadline(reactor_, timeout, [this] {
    timed_out_ = true;
    Shutdown();
  });
  const absl::Status status = co_await Converse();
  if (status.ok()) {
    established_ = true;
    LearnPeer();
  } else if (timed_out_) {
    co_return absl::DeadlineExceededError(
        absl::StrCat("the TLS handshake was not over after ", absl::FormatDuration(timeout)));
  }
  co_return status;
}

OpensslTransport::Step OpensslTransport::TakeStep() {
  ForgetErrors();
  const int result = SSL_do_handshake(tls_.get());
  if (result == 1) return {.over = true};
  const int error = SSL_get_error(tls_.get(), result);
  if (error == SSL_ERROR_WANT_READ) return {.wants_records = true};
  if (error == SSL_ERROR_WANT_WRITE) return {};
  return {.failure = HandshakeError(error)};
}

Task<absl::Status> OpensslTransport::Converse() {
  while (true) {
    const Step step = co_await HandshakeThreads().Run(reactor_, [this] { return TakeStep(); });
    // The last words, an alert that says why, leave as well.
    const int sent = co_await SendRecords();
    if (!step.failure.empty()) co_return absl::UnauthenticatedError(step.failure);
    if (sent < 0) co_return absl::UnavailableError(absl::StrCat("TLS handshake: send: ", strerror(-sent)));
    if (step.over) co_return absl::OkStatus();
    if (!step.wants_records) continue;
    const int received = co_await ReceiveRecords();
    if (received == 0) co_return absl::UnavailableError("the connection was closed in the TLS handshake");
    if (received < 0) {
      co_return absl::UnavailableError(absl::StrCat("TLS handshake: receive: ", strerror(-received)));
    }
  }
}

std::string OpensslTransport::HandshakeError(int error) const {
  const std::string reasons = error == SSL_ERROR_SYSCALL ? strerror(errno) : TakeOpensslErrors();
  const long verdict = SSL_get_verify_result(tls_.get());
  if (verdict == X509_V_OK || SSL_get_verify_mode(tls_.get()) == SSL_VERIFY_NONE) {
    return absl::StrCat("TLS handshake: ", reasons);
  }
  return absl::StrCat("TLS handshake: the ", credentials_->is_server() ? "client" : "server",
                      "'s certificate: ", X509_verify_cert_error_string(verdict));
}

void OpensslTransport::LearnPeer() {
  const SSL* tls = tls_.get();
  peer_.version = SSL_get_version(tls);
  peer_.cipher = SSL_get_cipher_name(tls);
  peer_.kernel_encrypts = stream_.kernel_encrypts();
  // Nothing is resumed but what a key shared beforehand begins.
  const bool psk =
      SSL_session_reused(tls) == 1 || SSL_CIPHER_get_auth_nid(SSL_get_current_cipher(tls)) == NID_auth_psk;
  if (psk) {
    peer_.psk_user = psk_user_;
  } else if (const X509* certificate = SSL_get0_peer_certificate(tls);
             certificate != nullptr && credentials_->verifies_peer()) {
    peer_.distinguished_name = DistinguishedName(certificate);
  }
}

// ---- Receiving.

Task<int> OpensslTransport::ReceiveRecords() {
  const iovec space = stream_.PrepareSpace();
  int received = -EINTR;
  while (received == -EINTR || received == -EAGAIN) {
    Reactor::Operation operation = reactor_.Receive(socket_.get(), space.iov_base, space.iov_len);
    receiving_ = &operation;
    received = co_await operation;
    receiving_ = nullptr;
  }
  if (received > 0) stream_.Commit(static_cast<size_t>(received));
  co_return received;
}

Task<int> OpensslTransport::Receive(absl::Span<const iovec> vectors) {
  cancelled_ = false;
  while (true) {
    const int result = Decrypt(vectors);
    if (result != -EAGAIN) co_return result;
    if (cancelled_) {
      stream_.Shrink();
      co_return -ECANCELED;
    }
    const int received = co_await ReceiveRecords();
    if (received == 0) co_return -ECONNABORTED;
    // Cancelled or not, what the library has of a record waits for its rest.
    if (received < 0 && !(received == -ECANCELED && cancelled_)) co_return received;
  }
}

int OpensslTransport::TryReceive(absl::Span<const iovec> vectors) {
  while (true) {
    const int result = Decrypt(vectors);
    if (result != -EAGAIN) return result;
    const iovec space = stream_.PrepareSpace();
    const ssize_t received = recv(socket_.get(), space.iov_base, space.iov_len, MSG_DONTWAIT);
    if (received == 0) return -ECONNABORTED;
    if (received < 0) return -errno;
    stream_.Commit(static_cast<size_t>(received));
  }
}

int OpensslTransport::Decrypt(absl::Span<const iovec> vectors) {
  if (!failure_.empty()) return -EPROTO;
  if (ended_) return 0;
  size_t total = 0;
  int result = 0;
  for (const iovec& vector : vectors) {
    size_t filled = 0;
    while (filled < vector.iov_len) {
      result = DecryptInto(static_cast<uint8_t*>(vector.iov_base) + filled, vector.iov_len - filled);
      if (result <= 0) break;
      filled += static_cast<size_t>(result);
    }
    total += filled;
    if (filled < vector.iov_len) break;
  }
  // What the library had to say meanwhile; what does not leave now does so before the next bytes.
  if (stream_.has_output()) {
    stream_.SendOutput();
    if (stream_.output_size() > kMostUnread) {
      failure_ = "the other end asks for answers and does not read them";
      return -EPROTO;
    }
  }
  return total > 0 ? static_cast<int>(total) : result;
}

int OpensslTransport::DecryptInto(uint8_t* data, size_t size) {
  // To find that there is nothing would cost as much as to decrypt a request.
  if (!stream_.has_input() && SSL_pending(tls_.get()) == 0) return -EAGAIN;
  ForgetErrors();
  const int count = SSL_read(tls_.get(), data, static_cast<int>(std::min<size_t>(size, INT_MAX)));
  if (count > 0) return count;
  switch (SSL_get_error(tls_.get(), count)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
      return -EAGAIN;
    case SSL_ERROR_ZERO_RETURN:
      ended_ = true;
      return 0;
    default:
      return Fail();
  }
}

void OpensslTransport::CancelReceive() {
  if (receiving_ == nullptr) return;
  cancelled_ = true;
  reactor_.Cancel(*receiving_);
}

// ---- Sending.

Task<int> OpensslTransport::SendRecords() {
  while (stream_.has_output()) {
    const iovec records = stream_.NextOutput();
    const msghdr message = MessageOf(absl::MakeConstSpan(&records, 1));
    stream_.BeginSend();
    const int sent = co_await reactor_.SendMessage(socket_.get(), &message);
    stream_.EndSend();
    if (sent == -EINTR || sent == -EAGAIN) continue;
    if (sent < 0) co_return sent;
    stream_.Sent(static_cast<size_t>(sent));
  }
  co_return 0;
}

Task<int> OpensslTransport::Send(absl::Span<const iovec> vectors) {
  if (stream_.kernel_encrypts()) {
    int sent = -EINTR;
    while (sent == -EINTR || sent == -EAGAIN) {
      if (shut_) co_return -EPIPE;
      const msghdr message = MessageOf(vectors);
      sent = co_await reactor_.SendMessage(socket_.get(), &message);
    }
    co_return sent;
  }
  if (encrypted_ == 0) {
    if (const int result = Encrypt(vectors); result != 0) co_return result;
  }
  if (const int result = co_await SendRecords(); result != 0) co_return result;
  co_return TakeEncrypted(vectors);
}

int OpensslTransport::TrySend(absl::Span<const iovec> vectors) {
  if (stream_.kernel_encrypts()) {
    if (shut_) return -EPIPE;
    const msghdr message = MessageOf(vectors);
    const ssize_t sent = sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    return sent < 0 ? -errno : static_cast<int>(sent);
  }
  if (encrypted_ == 0) {
    if (const int result = Encrypt(vectors); result != 0) return result;
  }
  if (const int result = stream_.SendOutput(); result != 0) return result;
  return TakeEncrypted(vectors);
}

int OpensslTransport::TakeEncrypted(absl::Span<const iovec> vectors) {
  const size_t taken = std::min(encrypted_, SizeOf(vectors));
  encrypted_ -= taken;
  return static_cast<int>(taken);
}

int OpensslTransport::Encrypt(absl::Span<const iovec> vectors) {
  if (!failure_.empty()) return -EPROTO;
  // Short pieces share a record.
  static thread_local std::array<uint8_t, kRecord> staging;
  size_t staged = 0;
  for (const iovec& vector : vectors) {
    const auto* data = static_cast<const uint8_t*>(vector.iov_base);
    size_t left = std::min(vector.iov_len, kBatch - encrypted_);
    encrypted_ += left;
    while (left > 0) {
      size_t count = 0;
      int result = 0;
      if (staged == 0 && left >= kRecord) {
        count = left - left % kRecord;
        result = EncryptRecords(data, count);
      } else {
        count = std::min(left, kRecord - staged);
        memcpy(staging.data() + staged, data, count);
        staged += count;
        if (staged == kRecord) result = EncryptRecords(staging.data(), std::exchange(staged, 0));
      }
      if (result != 0) return result;
      data += count;
      left -= count;
    }
  }
  return staged == 0 ? 0 : EncryptRecords(staging.data(), staged);
}

int OpensslTransport::EncryptRecords(const uint8_t* data, size_t size) {
  ForgetErrors();
  size_t written = 0;
  // In memory there is always room: all or an error.
  if (SSL_write_ex(tls_.get(), data, size, &written) == 1 && written == size) return 0;
  return Fail();
}

// ---- The end.

int OpensslTransport::Fail() {
  failure_ = absl::StrCat("TLS: ", TakeOpensslErrors());
  return -EPROTO;
}

void OpensslTransport::Shutdown() {
  shut_ = true;
  shutdown(socket_.get(), SHUT_RDWR);
}

}  // namespace

std::unique_ptr<TlsTransport> MakeTlsTransport(Reactor& reactor, UniqueFd socket,
                                               std::shared_ptr<const TlsCredentials> credentials,
                                               absl::string_view server_name) {
  return std::make_unique<OpensslTransport>(reactor, std::move(socket), std::move(credentials), server_name);
}

}  // namespace berth::nbd
