// Hashes by the names that LUKS headers have for them, and keys that are derived with them (PBKDF2, RFC
// 8018).
#ifndef BERTH_IMAGE_LUKS_KEY_DERIVATION_H_
#define BERTH_IMAGE_LUKS_KEY_DERIVATION_H_

#include <openssl/evp.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "image/luks/luks_header.h"

namespace berth::luks {

// UNIMPLEMENTED for a hash that is not known. Lives as long as the program.
absl::StatusOr<const EVP_MD*> FindHash(const std::string& name);

// Fills `key`. Takes as long as `iterations` say, of which there is one at least. INTERNAL where the library
// fails.
absl::Status DeriveKey(const EVP_MD* hash, absl::string_view secret, const Salt& salt, uint32_t iterations,
                       absl::Span<uint8_t> key);

// How many iterations take about `time` of CPU on this machine for a key of so many bytes; between
// `at_least` and kMaxIterations. Takes some hundredths of a second.
absl::StatusOr<uint32_t> IterationsFor(const EVP_MD* hash, size_t key_bytes, absl::Duration time,
                                       uint32_t at_least);

}  // namespace berth::luks

#endif  // BERTH_IMAGE_LUKS_KEY_DERIVATION_H_
