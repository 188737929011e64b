#include "image/luks/sector_cipher.h"

#include <openssl/evp.h>

#include <array>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "image/luks/luks_header.h"

namespace berth::luks {
namespace {

constexpr size_t kBlockBytes = 16;
constexpr size_t kSha256Bytes = 32;

using Block = std::array<uint8_t, kBlockBytes>;

struct FreeContext {
  void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
};
using Context = std::unique_ptr<EVP_CIPHER_CTX, FreeContext>;

const uint8_t* Bytes(absl::string_view text) { return reinterpret_cast<const uint8_t*>(text.data()); }

// Null where the library has no such cipher, or refuses the key.
Context NewContext(const EVP_CIPHER* cipher, absl::string_view key, bool encrypt) {
  if (cipher == nullptr) return nullptr;
  Context context(EVP_CIPHER_CTX_new());
  const Block no_vector = {};
  if (context == nullptr ||
      EVP_CipherInit_ex(context.get(), cipher, nullptr, Bytes(key), no_vector.data(), encrypt ? 1 : 0) != 1) {
    return nullptr;
  }
  EVP_CIPHER_CTX_set_padding(context.get(), 0);
  return context;
}

bool Run(EVP_CIPHER_CTX* context, const uint8_t* vector, absl::Span<uint8_t> bytes) {
  int length = 0;
  return (vector == nullptr ||
          EVP_CipherInit_ex(context, nullptr, nullptr, nullptr, vector, /*enc=*/-1) == 1) &&
         EVP_CipherUpdate(context, bytes.data(), &length, bytes.data(), static_cast<int>(bytes.size())) ==
             1 &&
         length == static_cast<int>(bytes.size());
}

const EVP_CIPHER* Ecb(size_t key_bytes) {
  return key_bytes == 16 ? EVP_aes_128_ecb() : key_bytes == 24 ? EVP_aes_192_ecb() : EVP_aes_256_ecb();
}
const EVP_CIPHER* Cbc(size_t key_bytes) {
  return key_bytes == 16 ? EVP_aes_128_cbc() : key_bytes == 24 ? EVP_aes_192_cbc() : EVP_aes_256_cbc();
}

// How a sector's vector is made of its number.
class Vectors {
 public:
  Vectors(bool wide, Context essiv) : wide_(wide), essiv_(std::move(essiv)) {}

  bool Make(uint64_t sector, Block* vector) {
    vector->fill(0);
    for (size_t i = 0; i < (wide_ ? sizeof(uint64_t) : sizeof(uint32_t)); ++i) {
      (*vector)[i] = static_cast<uint8_t>(sector >> (8 * i));
    }
    return essiv_ == nullptr || Run(essiv_.get(), nullptr, absl::MakeSpan(*vector));
  }

 private:
  bool wide_;
  Context essiv_;  // Null where the number itself is the vector.
};

// Both ways by one rule, with the library's context of each.
class TwoWayWorker : public SectorCipher::Worker {
 public:
  bool Encrypt(uint64_t first_sector, absl::Span<uint8_t> sectors) final {
    return ForEach(encrypt_.get(), first_sector, sectors);
  }
  bool Decrypt(uint64_t first_sector, absl::Span<uint8_t> sectors) final {
    return ForEach(decrypt_.get(), first_sector, sectors);
  }

 protected:
  TwoWayWorker(Context encrypt, Context decrypt, Vectors vectors)
      : vectors_(std::move(vectors)), encrypt_(std::move(encrypt)), decrypt_(std::move(decrypt)) {}

  Vectors vectors_;

 private:
  virtual bool ForEach(EVP_CIPHER_CTX* context, uint64_t sector, absl::Span<uint8_t> sectors) = 0;

  const Context encrypt_;
  const Context decrypt_;
};

// A mode that the library has.
class LibraryWorker final : public TwoWayWorker {
 public:
  LibraryWorker(Context encrypt, Context decrypt, bool has_vector, Vectors vectors)
      : TwoWayWorker(std::move(encrypt), std::move(decrypt), std::move(vectors)), has_vector_(has_vector) {}

 private:
  bool ForEach(EVP_CIPHER_CTX* context, uint64_t sector, absl::Span<uint8_t> sectors) override {
    for (; !sectors.empty(); sectors.remove_prefix(kSectorBytes), ++sector) {
      Block vector;
      if (has_vector_ && !vectors_.Make(sector, &vector)) return false;
      if (!Run(context, has_vector_ ? vector.data() : nullptr, sectors.subspan(0, kSectorBytes)))
        return false;
    }
    return true;
  }

  const bool has_vector_;
};

// XTS (IEEE 1619) with AES-192, which the library does not have, over its AES.
class Xts192Worker final : public TwoWayWorker {
 public:
  Xts192Worker(Context encrypt, Context decrypt, Context tweak, Vectors vectors)
      : TwoWayWorker(std::move(encrypt), std::move(decrypt), std::move(vectors)), tweak_(std::move(tweak)) {}

 private:
  using Mask = std::array<uint8_t, kSectorBytes>;

  // The tweak of each block: that of the one before, times x in GF(2^128).
  bool MakeMask(uint64_t sector, Mask* mask) {
    Block block;
    if (!vectors_.Make(sector, &block) || !Run(tweak_.get(), nullptr, absl::MakeSpan(block))) return false;
    for (size_t at = 0; at < mask->size(); at += kBlockBytes) {
      memcpy(mask->data() + at, block.data(), kBlockBytes);
      uint8_t carry = 0;
      for (uint8_t& byte : block) {
        const auto next = static_cast<uint8_t>(byte >> 7);
        byte = static_cast<uint8_t>(byte << 1 | carry);
        carry = next;
      }
      if (carry != 0) block[0] ^= 0x87;
    }
    return true;
  }

  bool ForEach(EVP_CIPHER_CTX* context, uint64_t sector, absl::Span<uint8_t> sectors) override {
    for (; !sectors.empty(); sectors.remove_prefix(kSectorBytes), ++sector) {
      Mask mask;
      if (!MakeMask(sector, &mask)) return false;
      for (size_t i = 0; i < mask.size(); ++i) sectors[i] ^= mask[i];
      if (!Run(context, nullptr, sectors.subspan(0, kSectorBytes))) return false;
      for (size_t i = 0; i < mask.size(); ++i) sectors[i] ^= mask[i];
    }
    return true;
  }

  const Context tweak_;
};

}  // namespace

absl::StatusOr<SectorCipher::Kind> SectorCipher::Parse(const std::string& name, const std::string& mode,
                                                       size_t key_bytes) {
  if (name != "aes") {
    return absl::UnimplementedError(absl::StrCat("the cipher \"", name, "\" is not supported; aes is"));
  }
  const size_t dash = mode.find('-');
  const std::string chaining = mode.substr(0, dash);
  const std::string generator = dash == std::string::npos ? "" : mode.substr(dash + 1);
  Kind kind;
  if (chaining == "xts") {
    kind.mode = Mode::kXts;
  } else if (chaining == "cbc") {
    kind.mode = Mode::kCbc;
  } else if (chaining == "ecb") {
    kind.mode = Mode::kEcb;
  } else {
    return absl::UnimplementedError(
        absl::StrCat("the cipher mode \"", mode, "\" is not supported; xts, cbc and ecb are"));
  }
  if (generator == "plain") {
    kind.vector = Vector::kPlain;
  } else if (generator == "plain64") {
    kind.vector = Vector::kPlain64;
  } else if (generator == "essiv:sha256") {
    kind.vector = Vector::kEssivSha256;
  } else {
    return absl::UnimplementedError(
        absl::StrCat("the initialisation vectors of the cipher mode \"", mode,
                     "\" are not supported; plain, plain64 and essiv:sha256 are"));
  }
  const size_t one_key = kind.mode == Mode::kXts && key_bytes % 2 == 0 ? key_bytes / 2 : key_bytes;
  if (one_key == 16 || one_key == 24 || one_key == 32) {
    if (kind.mode != Mode::kXts || key_bytes % 2 == 0) return kind;
  }
  return absl::InvalidArgumentError(absl::StrCat("a key of ", key_bytes, " bytes is none for ", name, " in ",
                                                 chaining, " mode; it must have ",
                                                 kind.mode == Mode::kXts ? "32, 48 or 64" : "16, 24 or 32"));
}

absl::Status SectorCipher::Check(const std::string& name, const std::string& mode, size_t key_bytes) {
  return Parse(name, mode, key_bytes).status();
}

absl::StatusOr<std::shared_ptr<const SectorCipher>> SectorCipher::Create(const std::string& name,
                                                                         const std::string& mode,
                                                                         const Secret& key) {
  const absl::StatusOr<Kind> kind = Parse(name, mode, key.bytes().size());
  if (!kind.ok()) return kind.status();
  std::shared_ptr<const SectorCipher> cipher(new SectorCipher(*kind, key));
  // What the library refuses (a key whose halves are the same) is known before anybody relies on it.
  if (absl::Status status = cipher->NewWorker().status(); !status.ok()) return status;
  return cipher;
}

absl::StatusOr<std::unique_ptr<SectorCipher::Worker>> SectorCipher::NewWorker() const {
  const absl::string_view key = key_.bytes();
  const absl::Status refused = absl::InternalError("the cryptographic library refuses the key of the image");
  Context essiv;
  if (kind_.vector == Vector::kEssivSha256) {
    std::array<char, kSha256Bytes> hash;
    if (EVP_Digest(key.data(), key.size(), reinterpret_cast<uint8_t*>(hash.data()), nullptr, EVP_sha256(),
                   nullptr) != 1) {
      return refused;
    }
    essiv = NewContext(EVP_aes_256_ecb(), absl::string_view(hash.data(), hash.size()), true);
    WipeBytes(hash.data(), hash.size());
    if (essiv == nullptr) return refused;
  }
  Vectors vectors(kind_.vector != Vector::kPlain, std::move(essiv));
  const size_t half = key.size() / 2;
  const bool emulated = kind_.mode == Mode::kXts && half == 24;
  const EVP_CIPHER* cipher = nullptr;
  absl::string_view data_key = key;
  if (emulated) {
    cipher = EVP_aes_192_ecb();
    data_key = key.substr(0, half);
  } else if (kind_.mode == Mode::kXts) {
    cipher = half == 16 ? EVP_aes_128_xts() : EVP_aes_256_xts();
  } else {
    cipher = kind_.mode == Mode::kCbc ? Cbc(key.size()) : Ecb(key.size());
  }
  Context encrypt = NewContext(cipher, data_key, true);
  Context decrypt = NewContext(cipher, data_key, false);
  if (encrypt == nullptr || decrypt == nullptr) return refused;
  if (!emulated) {
    return std::make_unique<LibraryWorker>(std::move(encrypt), std::move(decrypt), kind_.mode != Mode::kEcb,
                                           std::move(vectors));
  }
  Context tweak = NewContext(EVP_aes_192_ecb(), key.substr(half), true);
  if (tweak == nullptr) return refused;
  return std::make_unique<Xts192Worker>(std::move(encrypt), std::move(decrypt), std::move(tweak),
                                        std::move(vectors));
}

}  // namespace berth::luks
