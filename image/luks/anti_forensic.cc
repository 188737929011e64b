#include "image/luks/anti_forensic.h"

#include <openssl/rand.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "image/io/big_endian.h"
#include "image/secret/secret.h"

namespace berth::luks {
namespace {

absl::Status LibraryFailed() { return absl::InternalError("the cryptographic library cannot split a key"); }

void Mix(absl::Span<const uint8_t> stripe, absl::Span<uint8_t> block) {
  for (size_t i = 0; i < block.size(); ++i) block[i] ^= stripe[i];
}

// Replaces each piece of the block that is as long as a hash by the hash of the piece's number and itself,
// the last one cut.
bool Diffuse(const EVP_MD* hash, absl::Span<uint8_t> block) {
  const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  if (context == nullptr) return false;
  const auto piece_bytes = static_cast<size_t>(EVP_MD_get_size(hash));
  std::array<uint8_t, EVP_MAX_MD_SIZE> digest;
  bool done = true;
  for (uint32_t index = 0; done && index * piece_bytes < block.size(); ++index) {
    const size_t at = index * piece_bytes;
    const size_t bytes = std::min(piece_bytes, block.size() - at);
    uint8_t number[sizeof(index)];
    Store32(number, index);
    done = EVP_DigestInit_ex(context.get(), hash, nullptr) == 1 &&
           EVP_DigestUpdate(context.get(), number, sizeof(number)) == 1 &&
           EVP_DigestUpdate(context.get(), &block[at], bytes) == 1 &&
           EVP_DigestFinal_ex(context.get(), digest.data(), nullptr) == 1;
    memcpy(&block[at], digest.data(), bytes);
  }
  WipeBytes(digest.data(), digest.size());
  return done;
}

// What all stripes but the last come to.
bool MixAllButLast(const EVP_MD* hash, absl::Span<const uint8_t> split, absl::Span<uint8_t> block) {
  std::fill(block.begin(), block.end(), 0);
  for (; split.size() > block.size(); split.remove_prefix(block.size())) {
    Mix(split, block);
    if (!Diffuse(hash, block)) return false;
  }
  return true;
}

}  // namespace

absl::Status SplitKey(const EVP_MD* hash, absl::Span<const uint8_t> key, absl::Span<uint8_t> split) {
  const size_t last = split.size() - key.size();
  if (last > 0 && RAND_bytes(split.data(), static_cast<int>(last)) != 1) return LibraryFailed();
  if (!MixAllButLast(hash, split, split.subspan(last))) return LibraryFailed();
  Mix(key, split.subspan(last));
  return absl::OkStatus();
}

absl::Status MergeKey(const EVP_MD* hash, absl::Span<const uint8_t> split, absl::Span<uint8_t> key) {
  if (!MixAllButLast(hash, split, key)) return LibraryFailed();
  Mix(split.subspan(split.size() - key.size()), key);
  return absl::OkStatus();
}

}  // namespace berth::luks
