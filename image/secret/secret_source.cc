#include "image/secret/secret_source.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "image/io/unique_fd.h"

namespace berth {
namespace {

constexpr size_t kKeyBytes = 32;
constexpr size_t kBlockBytes = 16;

// Whether `fd` has something to read, or its end, before the deadline.
absl::Status WaitReadable(int fd, const std::string& name, absl::Time deadline, absl::Duration timeout) {
  while (true) {
    const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
    pollfd poll_for = {fd, POLLIN, 0};
    const int ready = poll(&poll_for, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return absl::ErrnoToStatus(errno, absl::StrCat("poll ", name));
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("no end of the secret came from ", name, " within ", absl::FormatDuration(timeout)));
    }
  }
}

const unsigned char* Bytes(absl::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

}  // namespace

absl::StatusOr<Secret> ReadSecret(int fd, const std::string& name, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  // Its whole size from the start: growing would leave copies behind.
  std::string bytes(kMaxSecretBytes + 1, '\0');
  const absl::Cleanup wipe = [&bytes] { WipeString(&bytes); };
  size_t length = 0;
  while (length < bytes.size()) {
    absl::Status ready = WaitReadable(fd, name, deadline, timeout);
    if (!ready.ok()) return ready;
    const ssize_t read_now = read(fd, &bytes[length], bytes.size() - length);
    if (read_now == 0) break;
    if (read_now > 0) {
      length += static_cast<size_t>(read_now);
    } else if (errno != EINTR && errno != EAGAIN) {
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot read the secret from ", name));
    }
  }
  if (length > kMaxSecretBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the secret in ", name, " has more than ", kMaxSecretBytes, " bytes"));
  }
  if (length == 0) return absl::InvalidArgumentError(absl::StrCat("the secret in ", name, " is empty"));
  return Secret::FromBytes(absl::string_view(bytes).substr(0, length));
}

absl::StatusOr<Secret> ReadSecretFile(const std::string& path, absl::Duration timeout) {
  // Without waiting for somebody who opens the other end of a pipe.
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (fd.get() < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open the secret's file \"", path, "\""));
  }
  return ReadSecret(fd.get(), absl::StrCat("\"", path, "\""), timeout);
}

absl::StatusOr<Secret> DecryptSecret(const Secret& encrypted, const Secret& key, const Secret& iv) {
  if (key.bytes().size() != kKeyBytes || iv.bytes().size() != kBlockBytes) {
    return absl::InvalidArgumentError(absl::StrCat("an encrypted secret needs a key of ", kKeyBytes,
                                                   " bytes and an iv of ", kBlockBytes, "; these have ",
                                                   key.bytes().size(), " and ", iv.bytes().size()));
  }
  const std::unique_ptr<EVP_CIPHER_CTX, void (*)(EVP_CIPHER_CTX*)> context(EVP_CIPHER_CTX_new(),
                                                                           EVP_CIPHER_CTX_free);
  std::string plain(encrypted.bytes().size() + kBlockBytes, '\0');
  const absl::Cleanup wipe = [&plain] { WipeString(&plain); };
  auto* const out = reinterpret_cast<unsigned char*>(plain.data());
  int begin = 0;
  int end = 0;
  const bool right = context != nullptr &&
                     EVP_DecryptInit_ex(context.get(), EVP_aes_256_cbc(), nullptr, Bytes(key.bytes()),
                                        Bytes(iv.bytes())) == 1 &&
                     EVP_DecryptUpdate(context.get(), out, &begin, Bytes(encrypted.bytes()),
                                       static_cast<int>(encrypted.bytes().size())) == 1 &&
                     EVP_DecryptFinal_ex(context.get(), out + begin, &end) == 1;
  if (!right) return absl::InvalidArgumentError("the secret cannot be decrypted with this key and iv");
  return Secret::FromBytes(absl::string_view(plain).substr(0, static_cast<size_t>(begin + end)));
}

}  // namespace berth
