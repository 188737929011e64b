#include "image/qcow2/format/header.h"

#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/big_endian.h"

namespace berth::qcow2 {
namespace {

using testing::HasSubstr;

constexpr uint64_t kCluster = 65'536;
constexpr uint64_t kFileSize = 16 * kCluster;

// An image of 1 GiB with every kind of extension.
Header Sample() {
  Header header;
  header.size = uint64_t{1} << 30;
  header.l1_size = 2;
  header.l1_table_offset = 3 * kCluster;
  header.refcount_table_offset = kCluster;
  header.refcount_table_clusters = 1;
  header.snapshot_count = 1;
  header.snapshots_offset = 5 * kCluster;
  header.incompatible_features = kCompressionType;
  header.compatible_features = kLazyRefcounts | uint64_t{1} << 40;
  header.autoclear_features = kBitmapsConsistent | uint64_t{1} << 63;
  header.refcount_order = 6;
  header.compression_type = CompressionType::kZstd;
  header.additional_fields = {0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8};
  header.backing_file = "base.raw";
  header.backing_format = "raw";
  header.feature_names = {{0, 0, "dirty bit"}, {0, 17, "time travel"}};
  header.bitmaps = BitmapsExtension{1, 40, 6 * kCluster};
  header.unknown_extensions = {{0x12345678, {1, 2, 3}}};
  return header;
}

std::vector<uint8_t> Encoded(const Header& header) {
  const auto bytes = EncodeHeader(header);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return *bytes;
}

absl::Status DecodeError(const std::vector<uint8_t>& bytes, uint64_t file_size = kFileSize) {
  return DecodeHeader(bytes, file_size).status();
}

TEST(HeaderTest, EveryFieldComesBack) {
  const Header header = Sample();
  const auto decoded = DecodeHeader(Encoded(header), kFileSize);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_TRUE(*decoded == header);

  Header other = Sample();
  other.incompatible_features = kDirty | kCorrupt | kExternalDataFile | kExtendedL2;
  other.compression_type = CompressionType::kDeflate;
  other.additional_fields.clear();
  other.autoclear_features = kRawExternalData;
  other.l1_size = 4;
  other.data_file = "disk.data";
  other.crypt_method = CryptMethod::kLuks;
  other.encryption = EncryptionHeader{7 * kCluster, 1000};
  const auto decoded_other = DecodeHeader(Encoded(other), kFileSize);
  ASSERT_TRUE(decoded_other.ok()) << decoded_other.status();
  EXPECT_TRUE(*decoded_other == other);
  EXPECT_TRUE(decoded_other->extended_l2());
  EXPECT_TRUE(decoded_other->has_data_file());
}

TEST(HeaderTest, Version2HasNoFeatures) {
  Header header = Sample();
  header.version = 2;
  header.incompatible_features = header.compatible_features = header.autoclear_features = 0;
  header.refcount_order = 4;
  header.compression_type = CompressionType::kDeflate;
  header.additional_fields.clear();
  const auto decoded = DecodeHeader(Encoded(header), kFileSize);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_TRUE(*decoded == header);
}

TEST(HeaderTest, TellsHowMuchItNeeds) {
  std::vector<uint8_t> bytes = Encoded(Sample());
  EXPECT_EQ(HeaderBytes(absl::MakeConstSpan(bytes).subspan(0, 24)).value(), kCluster);
  EXPECT_FALSE(HeaderBytes(absl::MakeConstSpan(bytes).subspan(0, 23)).ok());
  bytes[0] = 'q';
  EXPECT_THAT(std::string(HeaderBytes(bytes).status().message()), HasSubstr("no qcow2 image"));
}

TEST(HeaderTest, UnknownFeaturesAreRefusedByTheirName) {
  Header header = Sample();
  header.incompatible_features |= uint64_t{1} << 17 | uint64_t{1} << 18;
  const absl::Status status = DecodeError(Encoded(header));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"time travel\" (bit 17), bit 18"));
}

TEST(HeaderTest, AutoclearBitsStayOnlyWhereTheyAreKeptUp) {
  EXPECT_EQ(AutoclearForWriting(kBitmapsConsistent | kRawExternalData | uint64_t{1} << 9, kRawExternalData),
            kRawExternalData);
}

// Each breaks one field; the error names it.
TEST(HeaderTest, BrokenFieldsAreNamed) {
  struct Case {
    const char* named;
    std::function<void(Header&)> change;
  };
  const Case cases[] = {
      {"the L1 table at offset 0", [](Header& h) { h.l1_table_offset = 0; }},
      {"the L1 table at offset 196609", [](Header& h) { ++h.l1_table_offset; }},
      {"the L1 table", [](Header& h) { h.l1_table_offset = kFileSize; }},
      {"the L1 table", [](Header& h) { h.l1_table_offset = ~uint64_t{0} << 16; }},
      {"the L1 table has 1 entries, too few", [](Header& h) { h.l1_size = 1; }},
      {"the L1 table has 4294967295 entries", [](Header& h) { h.l1_size = ~uint32_t{0}; }},
      {"too few", [](Header& h) { h.size = ~uint64_t{0}; }},
      {"the refcount table", [](Header& h) { h.refcount_table_offset = 512; }},
      {"the refcount table at offset 0", [](Header& h) { h.refcount_table_offset = 0; }},
      {"lies over", [](Header& h) { h.refcount_table_offset = h.l1_table_offset; }},
      {"the refcount table", [](Header& h) { h.refcount_table_clusters = 100; }},
      {"refcount_table_clusters is 0", [](Header& h) { h.refcount_table_clusters = 0; }},
      {"refcount_table_clusters", [](Header& h) { h.refcount_table_clusters = ~uint32_t{0}; }},
      {"refcount_order is 7", [](Header& h) { h.refcount_order = 7; }},
      {"nb_snapshots", [](Header& h) { h.snapshot_count = kMaxSnapshots + 1; }},
      {"the snapshot table", [](Header& h) { h.snapshots_offset = kFileSize; }},
      {"the snapshot table", [](Header& h) { h.snapshots_offset = h.l1_table_offset; }},
      {"compression_type", [](Header& h) { h.incompatible_features = 0; }},
      {"compression_type", [](Header& h) { h.compression_type = CompressionType::kDeflate; }},
      {"raw external data", [](Header& h) { h.autoclear_features |= kRawExternalData; }},
      {"bitmaps", [](Header& h) { h.bitmaps.reset(); }},
      {"\"bitmaps\" counts no bitmap", [](Header& h) { h.bitmaps->count = 0; }},
      {"the bitmap directory", [](Header& h) { h.bitmaps->directory_size = ~uint64_t{0}; }},
      {"the encryption header",
       [](Header& h) {
         h.encryption = EncryptionHeader{kFileSize, 1};
       }},
      {"name contains a NUL", [](Header& h) { h.backing_file[3] = '\0'; }},
      {"\"backing file format\" contains a NUL", [](Header& h) { (*h.backing_format)[1] = '\0'; }},
      {"cluster_bits is 13",
       [](Header& h) {
         h.cluster_bits = 13;
         h.l1_size = 2000;
         h.incompatible_features |= kExtendedL2;
       }},
  };
  for (const Case& one : cases) {
    Header header = Sample();
    one.change(header);
    const absl::Status status = DecodeError(Encoded(header));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << one.named;
    EXPECT_THAT(std::string(status.message()), HasSubstr(one.named));
  }
}

// What no Header can say is written over the bytes.
TEST(HeaderTest, BrokenBytesAreNamed) {
  struct Case {
    const char* named;
    size_t at;
    uint32_t value;
  };
  const Case cases[] = {
      {"version is 1", 4, 1},
      {"version is 4", 4, 4},
      {"cluster_bits is 8", 20, 8},
      {"cluster_bits is 22", 20, 22},
      {"crypt_method is 3", 32, 3},
      {"backing_file_size is 0", 16, 0},
      {"backing_file_size is 1024", 16, 1024},
      {"backing file's name", 8, 1},
      {"backing file's name", 12, 100},
      {"backing file's name", 12, 65'535},
      {"header_length is 96", 100, 96},
      {"header_length is 108", 100, 108},
      {"header_length is 65544", 100, 65'544},
      {"header_length", 100, 0xfffffff8},
      {"compression_type is 2", 104, 0x02000000},
      {"0xe2792aca has 4294967295 bytes", 124, ~uint32_t{0}},
  };
  for (const Case& one : cases) {
    std::vector<uint8_t> bytes = Encoded(Sample());
    Store32(&bytes[one.at], one.value);
    const absl::Status status = DecodeError(bytes);
    EXPECT_FALSE(status.ok()) << one.named;
    EXPECT_THAT(std::string(status.message()), HasSubstr(one.named));
  }
}

TEST(HeaderTest, EveryShorterFileIsRefused) {
  const std::vector<uint8_t> bytes = Encoded(Sample());
  for (size_t size = 0; size < bytes.size(); ++size) {
    const std::vector<uint8_t> cut(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(size));
    EXPECT_FALSE(DecodeHeader(cut, size).ok()) << size;
  }
}

TEST(HeaderTest, AnExtensionMayNotBeThereTwice) {
  Header header = Sample();
  header.unknown_extensions = {{0xe2792aca, {'r', 'a', 'w'}}};
  EXPECT_THAT(std::string(DecodeError(Encoded(header)).message()), HasSubstr("twice"));
}

TEST(HeaderTest, WhatDoesNotFitInAClusterIsNotEncoded) {
  Header header = Sample();
  header.cluster_bits = 9;
  header.backing_file = std::string(300, 'x');
  EXPECT_THAT(std::string(EncodeHeader(header).status().message()), HasSubstr("shorten the name"));
}

}  // namespace
}  // namespace berth::qcow2
