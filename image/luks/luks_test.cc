// Header, cipher, splitter, key slots and devices of LUKS images. What other programs make of them, and they
// of ours, is tests/interop:encryption_test's.
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/block/error_reason.h"
#include "image/io/big_endian.h"
#include "image/io/reactor_pool.h"
#include "image/luks/anti_forensic.h"
#include "image/luks/encrypted_device.h"
#include "image/luks/key_slots.h"
#include "image/luks/luks_header.h"
#include "image/luks/luks_image.h"
#include "image/luks/sector_cipher.h"
#include "image/memory/memory_device.h"
#include "tests/conformance/block_device_conformance.h"

namespace berth::luks {
namespace {

Secret Key(absl::string_view bytes) { return *Secret::FromBytes(bytes); }
Secret HexKey(absl::string_view hex) { return Key(absl::HexStringToBytes(hex)); }

// Fast enough for a test.
CreateOptions Quick() {
  CreateOptions options;
  options.iteration_time = kMinIterationTime;
  return options;
}

Header Sample() {
  Header header;
  header.cipher_name = "aes";
  header.cipher_mode = "xts-plain64";
  header.hash = "sha256";
  header.payload_sector = 4040;
  header.key_bytes = 64;
  header.digest.fill(1);
  header.digest_salt.fill(2);
  header.digest_iterations = 1000;
  header.uuid = "a5b1b0f4-3d5a-4f6a-8a4e-0d9a1c6f7e21";
  for (size_t i = 0; i < kKeySlots; ++i) {
    KeySlot& slot = header.slots[i];
    slot.active = i < 2;
    slot.iterations = 1000;
    slot.salt.fill(static_cast<uint8_t>(i));
    slot.material_sector = static_cast<uint32_t>(8 + i * 504);
    slot.stripes = kStripes;
  }
  return header;
}

constexpr uint64_t kRoom = 10 << 20;

TEST(LuksHeaderTest, IsTheSameAfterEncodingAndDecoding) {
  const absl::StatusOr<Header> decoded = DecodeHeader(EncodeHeader(Sample()), kRoom);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(*decoded, Sample());
}

TEST(LuksHeaderTest, HostileValuesAreRefusedByName) {
  struct Case {
    std::function<void(Header*)> change;
    const char* error;
  };
  for (const Case& one : std::vector<Case>{
           {[](Header* h) { h->payload_sector = 1; }, "payload-offset is 1 sectors"},
           {[](Header* h) { h->payload_sector = 0xffffffff; }, "inside the 10485760 bytes there are"},
           {[](Header* h) { h->key_bytes = 0; }, "key-bytes is 0; it must be 1 to 64"},
           {[](Header* h) { h->key_bytes = 0x7fffffff; }, "key-bytes is 2147483647"},
           {[](Header* h) { h->digest_iterations = 0; }, "mk-digest-iter is 0; it must be 1 to 33554432"},
           {[](Header* h) { h->slots[1].iterations = kMaxIterations + 1; },
            "key slot 1: iterations is 33554433; it must be 1 to 33554432"},
           {[](Header* h) { h->slots[0].stripes = 0xffffffff; },
            "key slot 0: stripes is 4294967295; it must be 4000"},
           {[](Header* h) { h->slots[0].material_sector = 1; }, "key slot 0: key-material-offset is 1"},
           {[](Header* h) { h->slots[1].material_sector = 3541; }, "key slot 1: key-material-offset is 3541"},
           {[](Header* h) { h->slots[1].material_sector = 0xffffffff; }, "key-material-offset is 4294967295"},
           {[](Header* h) { h->slots[1].material_sector = 507; }, "of key slots 0 and 1 overlaps"},
           {[](Header* h) { h->hash = "sha\n256"; }, "hash-spec is no printable text"},
       }) {
    Header header = Sample();
    one.change(&header);
    const absl::Status status = DecodeHeader(EncodeHeader(header), kRoom).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << one.error;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(one.error));
  }
  // A slot that is not in use may have anything.
  Header header = Sample();
  header.slots[5].iterations = header.slots[5].stripes = header.slots[5].material_sector = 0xffffffff;
  EXPECT_TRUE(DecodeHeader(EncodeHeader(header), kRoom).ok());
}

TEST(LuksHeaderTest, BytesThatAreNone) {
  auto bytes = EncodeHeader(Sample());
  EXPECT_THAT(std::string(DecodeHeader(absl::MakeSpan(bytes).subspan(1), kRoom).status().message()),
              ::testing::HasSubstr("not a LUKS image"));
  EXPECT_FALSE(DecodeHeader({}, 0).ok());
  bytes[7] = 2;
  EXPECT_EQ(DecodeHeader(bytes, kRoom).status().code(), absl::StatusCode::kUnimplemented);
  bytes[7] = 1;
  std::fill_n(&bytes[8], 32, 'a');
  EXPECT_THAT(std::string(DecodeHeader(bytes, kRoom).status().message()),
              ::testing::HasSubstr("cipher-name has no end within its 32 bytes"));
  bytes = EncodeHeader(Sample());
  Store32(&bytes[208], 7);
  EXPECT_THAT(std::string(DecodeHeader(bytes, kRoom).status().message()),
              ::testing::HasSubstr("key slot 0: active is 7"));
}

std::vector<uint8_t> Counting() {
  std::vector<uint8_t> sector(kSectorBytes);
  for (size_t i = 0; i < sector.size(); ++i) sector[i] = static_cast<uint8_t>(i);
  return sector;
}

std::string Encrypted(const std::string& mode, const Secret& key, uint64_t sector, size_t shown = 64) {
  const auto cipher = SectorCipher::Create("aes", mode, key);
  if (!cipher.ok()) return cipher.status().ToString();
  auto worker = *(*cipher)->NewWorker();
  std::vector<uint8_t> bytes = Counting();
  EXPECT_TRUE(worker->Encrypt(sector, absl::MakeSpan(bytes)));
  const std::string text(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(shown));
  EXPECT_TRUE(worker->Decrypt(sector, absl::MakeSpan(bytes)));
  EXPECT_EQ(bytes, Counting()) << mode;
  return absl::BytesToHexString(text);
}

// IEEE 1619-2007, annex B, vectors 4 and 10: sectors of 512 bytes.
TEST(SectorCipherTest, XtsHasTheStandardsVectors) {
  EXPECT_EQ(
      Encrypted("xts-plain64", HexKey("2718281828459045235360287471352631415926535897932384626433832795"), 0),
      "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c"
      "c78cf7f5e543445f8333d8fa7f56000005279fa5d8b5e4ad40e736ddb4d35412");
  EXPECT_EQ(Encrypted("xts-plain64",
                      HexKey("2718281828459045235360287471352662497757247093699959574966967627"
                             "3141592653589793238462643383279502884197169399375105820974944592"),
                      0xff),
            "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"
            "5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd");
}

// NIST SP 800-38A, F.1.1 and F.2.1, have other sectors; what a block is encrypted with is theirs.
TEST(SectorCipherTest, VectorsFollowTheSectorsNumber) {
  const Secret key = HexKey("2b7e151628aed2a6abf7158809cf4f3c");
  const uint64_t far = (uint64_t{1} << 32) + 5;
  EXPECT_EQ(Encrypted("cbc-plain", key, far), Encrypted("cbc-plain", key, 5));
  EXPECT_NE(Encrypted("cbc-plain64", key, far), Encrypted("cbc-plain64", key, 5));
  EXPECT_EQ(Encrypted("cbc-plain64", key, 5), Encrypted("cbc-plain", key, 5));
  EXPECT_NE(Encrypted("cbc-essiv:sha256", key, 5), Encrypted("cbc-plain64", key, 5));
  EXPECT_NE(Encrypted("cbc-essiv:sha256", key, 5), Encrypted("cbc-essiv:sha256", key, 6));
  EXPECT_EQ(Encrypted("ecb-plain64", key, 5), Encrypted("ecb-plain64", key, 6));
  const Secret key192 = Key(std::string(24, 'a') + std::string(24, 'b'));
  EXPECT_NE(Encrypted("xts-plain64", key192, 5), Encrypted("xts-plain64", key192, 6));
}

TEST(SectorCipherTest, WhatIsNotKnownIsRefusedByName) {
  const auto error = [](const std::string& name, const std::string& mode, size_t key_bytes) {
    return std::string(SectorCipher::Check(name, mode, key_bytes).message());
  };
  EXPECT_EQ(error("serpent", "xts-plain64", 64), "the cipher \"serpent\" is not supported; aes is");
  EXPECT_THAT(error("aes", "ctr-plain64", 32), ::testing::HasSubstr("\"ctr-plain64\""));
  EXPECT_THAT(error("aes", "cbc-essiv:md5", 16), ::testing::HasSubstr("\"cbc-essiv:md5\""));
  EXPECT_THAT(error("aes", "cbc", 16), ::testing::HasSubstr("\"cbc\""));
  EXPECT_EQ(error("aes", "cbc-plain", 33),
            "a key of 33 bytes is none for aes in cbc mode; it must have 16, 24 or 32");
  EXPECT_THAT(error("aes", "xts-plain", 16), ::testing::HasSubstr("it must have 32, 48 or 64"));
}

TEST(AntiForensicTest, EveryByteOfTheStripesIsNeeded) {
  const std::vector<uint8_t> key = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11,
                                    12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22};
  for (const EVP_MD* hash : {EVP_sha1(), EVP_sha512()}) {
    std::vector<uint8_t> split(key.size() * 10);
    ASSERT_TRUE(SplitKey(hash, key, absl::MakeSpan(split)).ok());
    std::vector<uint8_t> merged(key.size());
    ASSERT_TRUE(MergeKey(hash, split, absl::MakeSpan(merged)).ok());
    EXPECT_EQ(merged, key);
    for (const size_t lost : {size_t{0}, split.size() / 2, split.size() - 1}) {
      std::vector<uint8_t> damaged = split;
      damaged[lost] ^= 1;
      ASSERT_TRUE(MergeKey(hash, damaged, absl::MakeSpan(merged)).ok());
      EXPECT_NE(merged, key);
    }
  }
}

class LuksImageTest : public ::testing::Test {
 protected:
  void SetUp() override { pool_ = *ReactorPool::Create(1); }

  std::shared_ptr<BlockDevice> Disk(const std::vector<uint8_t>& header, uint64_t payload) {
    std::shared_ptr<BlockDevice> disk = *MemoryDevice::Create(header.size() + payload);
    EXPECT_TRUE(BlockingChannel(*disk, pool_->at(0)).Write(0, header).ok());
    return disk;
  }

  std::unique_ptr<ReactorPool> pool_;
};

TEST_F(LuksImageTest, TheSecretOpensItAndNothingElseDoes) {
  const auto header = MakeHeader(Quick(), Key("open sesame"));
  ASSERT_TRUE(header.ok()) << header.status();
  const std::shared_ptr<BlockDevice> disk = Disk(*header, 100'000);
  {
    const auto image = OpenLuksImage(disk, Key("open sesame"));
    ASSERT_TRUE(image.ok()) << image.status();
    // Whole sectors.
    EXPECT_EQ((*image)->size(), 99'840u);
    BlockingChannel channel(**image, pool_->at(0));
    EXPECT_TRUE(channel.Write(1000, std::vector<uint8_t>(3000, 7)).ok());
  }
  const auto again = OpenLuksImage(disk, Key("open sesame"));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(BlockingChannel(**again, pool_->at(0)).Read(1000, 3000), std::vector<uint8_t>(3000, 7));
  EXPECT_NE(BlockingChannel(*disk, pool_->at(0)).Read(header->size() + 1024, 512),
            std::vector<uint8_t>(512, 7));

  const absl::Status wrong = OpenLuksImage(disk, Key("open sesame\n")).status();
  EXPECT_EQ(wrong.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ErrorReason(wrong), kReasonWrongSecret);
  EXPECT_EQ(wrong.message(), "the secret does not open the encrypted image");
  EXPECT_EQ(ErrorReason(OpenLuksImage(disk, Secret()).status()), kReasonSecretNeeded);
}

TEST_F(LuksImageTest, ASecondSlotAndNoSlot) {
  const auto made = MakeHeader(Quick(), Key("first"));
  ASSERT_TRUE(made.ok()) << made.status();
  std::vector<uint8_t> bytes = *made;
  // The slot in use is not the first.
  std::vector<uint8_t> slot(bytes.begin() + 208, bytes.begin() + 256);
  std::copy(bytes.begin() + 256, bytes.begin() + 304, bytes.begin() + 208);
  std::copy(slot.begin(), slot.end(), bytes.begin() + 256);
  EXPECT_TRUE(OpenLuksImage(Disk(bytes, 4096), Key("first")).ok());
  std::copy(bytes.begin() + 208, bytes.begin() + 256, bytes.begin() + 256);
  EXPECT_EQ(ErrorReason(OpenLuksImage(Disk(bytes, 4096), Key("first")).status()), kReasonWrongSecret);
}

TEST_F(LuksImageTest, TimeIsBounded) {
  const auto made = MakeHeader(Quick(), Key("secret"));
  const std::shared_ptr<BlockDevice> disk = Disk(*made, 4096);
  EXPECT_EQ(OpenCipher(*disk, {0, disk->size()}, Key("secret"), absl::ZeroDuration()).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST_F(LuksImageTest, WhatCannotBeMade) {
  const auto error = [](const std::function<void(CreateOptions*)>& change) {
    CreateOptions options = Quick();
    change(&options);
    return std::string(MakeHeader(options, Key("secret")).status().message());
  };
  EXPECT_THAT(error([](CreateOptions* o) { o->cipher_algorithm = "serpent-256"; }),
              ::testing::HasSubstr("\"serpent-256\""));
  EXPECT_THAT(error([](CreateOptions* o) { o->cipher_mode = "ctr"; }), ::testing::HasSubstr("ctr"));
  EXPECT_THAT(error([](CreateOptions* o) { o->iv_generator = "benbi"; }), ::testing::HasSubstr("benbi"));
  EXPECT_THAT(error([](CreateOptions* o) { o->hash = "crc32"; }), ::testing::HasSubstr("\"crc32\""));
  EXPECT_THAT(error([](CreateOptions* o) { o->iteration_time = absl::Hours(1); }),
              ::testing::HasSubstr("10ms to 10s"));
  EXPECT_EQ(ErrorReason(MakeHeader(Quick(), Secret()).status()), kReasonSecretNeeded);
  EXPECT_FALSE(OpenLuksImage(Disk(*MakeHeader(Quick(), Key("secret")), 100), Key("secret")).ok());
}

TEST_F(LuksImageTest, NewSpaceIsEncryptedZeroesAndADiscardGoesDown) {
  const std::shared_ptr<BlockDevice> disk = *MemoryDevice::Create(4096 + 8192);
  const auto cipher =
      SectorCipher::Create("aes", "xts-plain64", HexKey(std::string(32, '1') + std::string(32, '2')));
  EncryptedDevice device(disk, *cipher, 4096);
  ASSERT_TRUE(device.Resize(200'192).ok());
  EXPECT_EQ(disk->size(), 204'288u);
  EXPECT_FALSE(device.Resize(1000).ok());
  BlockingChannel channel(device, pool_->at(0));
  EXPECT_EQ(channel.Read(8192, 192'000), std::vector<uint8_t>(192'000));
  BlockingChannel below(*disk, pool_->at(0));
  EXPECT_NE(below.Read(4096 + 8192, 512), std::vector<uint8_t>(512));
  // The sectors at the ends, which are cut, keep what they have.
  ASSERT_TRUE(channel.Write(8192, std::vector<uint8_t>(65'536, 9)).ok());
  ASSERT_TRUE(channel.Discard(8193, 65'534).ok());
  EXPECT_EQ(channel.Read(8192, 512), std::vector<uint8_t>(512, 9));
  EXPECT_EQ(below.Read(4096 + 8192 + 8192, 4096), std::vector<uint8_t>(4096));
  EXPECT_EQ(channel.Zero(0, 512, ZeroFlags::kFastOnly), IoResult::Error(ENOTSUP));
}

absl::StatusOr<std::shared_ptr<BlockDevice>> Over(const std::string& mode, size_t key_bytes, uint64_t begin,
                                                  uint64_t size) {
  std::string key(key_bytes, 'k');
  key[0] = 'l';
  const auto cipher = SectorCipher::Create("aes", mode, Key(key));
  if (!cipher.ok()) return cipher.status();
  absl::StatusOr<std::shared_ptr<BlockDevice>> memory = MemoryDevice::Create(begin);
  if (!memory.ok()) return memory.status();
  auto device = std::make_shared<EncryptedDevice>(*memory, *cipher, begin);
  if (absl::Status status = device->Resize(size); !status.ok()) return status;
  return device;
}

INSTANTIATE_TEST_SUITE_P(Encrypted, BlockDeviceConformance,
                         testing::Values(ConformanceCase{.name = "xts",
                                                         .make =
                                                             [](uint64_t size) {
                                                               return Over("xts-plain64", 64, 2'068'480,
                                                                           size);
                                                             }},
                                         ConformanceCase{.name = "cbc with essiv", .make = [](uint64_t size) {
                                                           return Over("cbc-essiv:sha256", 32, 512, size);
                                                         }}));

}  // namespace
}  // namespace berth::luks
