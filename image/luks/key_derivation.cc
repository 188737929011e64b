#include "image/luks/key_derivation.h"

#include <time.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"

namespace berth::luks {
namespace {

// Long enough to measure.
constexpr absl::Duration kMeasured = absl::Milliseconds(20);

absl::Duration ThreadTime() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return absl::DurationFromTimespec(now);
}

}  // namespace

absl::StatusOr<const EVP_MD*> FindHash(const std::string& name) {
  static const auto& known = *new std::vector<std::pair<std::string, const EVP_MD*>>{
      {"sha1", EVP_sha1()},          {"sha224", EVP_sha224()}, {"sha256", EVP_sha256()},
      {"sha384", EVP_sha384()},      {"sha512", EVP_sha512()}, {"md5", EVP_md5()},
      {"ripemd160", EVP_ripemd160()}};
  for (const auto& [known_name, hash] : known) {
    if (known_name == name) return hash;
  }
  return absl::UnimplementedError(
      absl::StrCat("the hash \"", name,
                   "\" is not supported; sha1, sha224, sha256, sha384, sha512, md5 and ripemd160 are"));
}

absl::Status DeriveKey(const EVP_MD* hash, absl::string_view secret, const Salt& salt, uint32_t iterations,
                       absl::Span<uint8_t> key) {
  if (PKCS5_PBKDF2_HMAC(secret.data(), static_cast<int>(secret.size()), salt.data(),
                        static_cast<int>(salt.size()), static_cast<int>(iterations), hash,
                        static_cast<int>(key.size()), key.data()) == 1) {
    return absl::OkStatus();
  }
  return absl::InternalError("the cryptographic library cannot derive a key with this hash");
}

absl::StatusOr<uint32_t> IterationsFor(const EVP_MD* hash, size_t key_bytes, absl::Duration time,
                                       uint32_t at_least) {
  std::vector<uint8_t> key(key_bytes);
  for (uint32_t iterations = 4096;; iterations *= 2) {
    const absl::Duration begin = ThreadTime();
    absl::Status status = DeriveKey(hash, "measured", Salt{}, iterations, absl::MakeSpan(key));
    if (!status.ok()) return status;
    const absl::Duration taken = ThreadTime() - begin;
    if (taken < kMeasured && iterations < kMaxIterations) continue;
    const double wanted = iterations * absl::FDivDuration(time, taken);
    return static_cast<uint32_t>(std::clamp<double>(wanted, at_least, kMaxIterations));
  }
}

}  // namespace berth::luks
