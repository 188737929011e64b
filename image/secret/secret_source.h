// Where secrets come from: a file, or a descriptor that whoever started the program left open.
//
// All of it blocks, and waits no longer than it is told to: a pipe may have nobody at its other end. Errors
// name the file or descriptor, never what was in it.
#ifndef BERTH_IMAGE_SECRET_SECRET_SOURCE_H_
#define BERTH_IMAGE_SECRET_SECRET_SOURCE_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "image/secret/secret.h"

namespace berth {

inline constexpr absl::Duration kSecretTimeout = absl::Seconds(30);

// Everything from where `fd` stands to its end; `name` is what it is called in messages. The descriptor stays
// the caller's. INVALID_ARGUMENT for nothing and for more than kMaxSecretBytes, DEADLINE_EXCEEDED.
absl::StatusOr<Secret> ReadSecret(int fd, const std::string& name, absl::Duration timeout = kSecretTimeout);

// The content of a file, a pipe under a name included (a shell's <(command)). For programs whose user chose
// the path; a path that came from a client is opened inside its roots first. NOT_FOUND, PERMISSION_DENIED.
absl::StatusOr<Secret> ReadSecretFile(const std::string& path, absl::Duration timeout = kSecretTimeout);

// A secret that is itself encrypted, as qemu's `secret` objects may be (keyid, iv): AES-256 in CBC mode with
// PKCS #7 padding. `key` has 32 bytes, `iv` 16. INVALID_ARGUMENT where these have another size, or the key is
// another one.
absl::StatusOr<Secret> DecryptSecret(const Secret& encrypted, const Secret& key, const Secret& iv);

}  // namespace berth

#endif  // BERTH_IMAGE_SECRET_SECRET_SOURCE_H_
