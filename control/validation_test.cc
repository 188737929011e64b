#include "control/validation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "control/status_details.h"

namespace berth::control {
namespace {

using testing::HasSubstr;

void ExpectRefused(const absl::Status& status, const std::string& field) {
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_EQ(ReasonOf(status), "INVALID_FIELD");
  EXPECT_THAT(std::string(status.message()), testing::StartsWith(field + ":"));
  EXPECT_LT(status.message().size(), 1000u);
}

TEST(ValidationTest, Names) {
  for (const char* good : {"a", "0", "disk-1", "vm_4.root", "A.B-C_d"})
    EXPECT_TRUE(CheckName("name", good).ok());
  EXPECT_TRUE(CheckName("name", std::string(200, 'x')).ok());
  for (const std::string& bad :
       {std::string(), std::string("a/b"), std::string("../x"), std::string(".hidden"), std::string("-x"),
        std::string("a b"), std::string("ä"), std::string("a\0b", 3), std::string("a\n"),
        std::string(201, 'x'), std::string(10000, '/')}) {
    ExpectRefused(CheckName("name", bad), "name");
  }
}

TEST(ValidationTest, Paths) {
  EXPECT_TRUE(CheckImagePath("path", "/srv/a.raw").ok());
  for (const std::string& bad : {std::string(), std::string("a.raw"), "/" + std::string(4095, 'x'),
                                 std::string("/a\0b", 4), std::string("nbd://host/x")}) {
    ExpectRefused(CheckImagePath("path", bad), "path");
  }
}

v1::ExportSpec Raw() {
  v1::ExportSpec spec;
  spec.mutable_image()->set_format(v1::IMAGE_FORMAT_RAW);
  spec.mutable_image()->set_path("/srv/a.raw");
  return spec;
}

TEST(ValidationTest, RulesOnClients) {
  v1::ExportSpec spec = Raw();
  spec.add_allowed_clients("!dn:CN=agent-7,**");
  spec.add_allowed_clients("*");
  EXPECT_TRUE(CheckExportSpec(spec).ok());
  spec.add_allowed_clients("CN=agent");
  ExpectRefused(CheckExportSpec(spec), "spec.allowed_clients");
  spec = Raw();
  for (int i = 0; i < 257; ++i) spec.add_allowed_clients("*");
  ExpectRefused(CheckExportSpec(spec), "spec.allowed_clients");
}

TEST(ValidationTest, ExportSpecs) {
  EXPECT_TRUE(CheckExportSpec(Raw()).ok());
  ExpectRefused(CheckExportSpec(v1::ExportSpec()), "spec.image");
  v1::ExportSpec spec = Raw();
  spec.mutable_image()->clear_format();
  ExpectRefused(CheckExportSpec(spec), "spec.image.format");
  spec.mutable_image()->set_format(static_cast<v1::ImageFormat>(99));
  ExpectRefused(CheckExportSpec(spec), "spec.image.format");
  spec = Raw();
  spec.mutable_image()->set_cache(static_cast<v1::CacheMode>(99));
  ExpectRefused(CheckExportSpec(spec), "spec.image.cache");
  spec = Raw();
  spec.mutable_image()->set_discard(static_cast<v1::DiscardMode>(99));
  ExpectRefused(CheckExportSpec(spec), "spec.image.discard");
  spec = Raw();
  spec.mutable_image()->set_size_bytes(4096);
  ExpectRefused(CheckExportSpec(spec), "spec.image.size_bytes");
  spec = Raw();
  spec.set_description(std::string(4097, 'x'));
  ExpectRefused(CheckExportSpec(spec), "spec.description");
  spec = Raw();
  spec.set_offset_bytes(512);
  spec.set_length_bytes(~uint64_t{0});
  ExpectRefused(CheckExportSpec(spec), "spec.length_bytes");
  // Each alone would do.
  spec.set_offset_bytes(kMaxSizeBytes - 4096);
  spec.set_length_bytes(4096);
  EXPECT_TRUE(CheckExportSpec(spec).ok());
  spec.set_length_bytes(4097);
  ExpectRefused(CheckExportSpec(spec), "spec.length_bytes");
  spec.set_offset_bytes(~uint64_t{0});
  ExpectRefused(CheckExportSpec(spec), "spec.offset_bytes");
  spec = Raw();
  spec.set_read_only(true);
  spec.set_shared_writers(true);
  ExpectRefused(CheckExportSpec(spec), "spec.shared_writers");
  spec = Raw();
  spec.mutable_rate_limit()->set_burst_bytes(1);
  ExpectRefused(CheckExportSpec(spec), "spec.rate_limit.burst_bytes");

  v1::ExportSpec memory;
  memory.mutable_image()->set_format(v1::IMAGE_FORMAT_MEMORY);
  ExpectRefused(CheckExportSpec(memory), "spec.image.size_bytes");
  memory.mutable_image()->set_size_bytes(uint64_t{1} << 63);
  ExpectRefused(CheckExportSpec(memory), "spec.image.size_bytes");
  memory.mutable_image()->set_size_bytes(4096);
  EXPECT_TRUE(CheckExportSpec(memory).ok());
  memory.mutable_image()->set_path("/srv/a.raw");
  ExpectRefused(CheckExportSpec(memory), "spec.image.path");

  v1::ExportSpec qcow2 = Raw();
  qcow2.mutable_image()->set_snapshot("nightly");
  ExpectRefused(CheckExportSpec(qcow2), "spec.image.snapshot");
  qcow2.mutable_image()->set_format(v1::IMAGE_FORMAT_QCOW2);
  EXPECT_TRUE(CheckExportSpec(qcow2).ok());
  qcow2.mutable_image()->set_size_bytes(4096);
  ExpectRefused(CheckExportSpec(qcow2), "spec.image.size_bytes");
  qcow2.mutable_image()->set_size_bytes(0);
  qcow2.mutable_image()->set_backing_format(v1::IMAGE_FORMAT_RAW);
  EXPECT_TRUE(CheckExportSpec(qcow2).ok());
  qcow2.mutable_image()->set_backing_format(v1::IMAGE_FORMAT_NULL);
  ExpectRefused(CheckExportSpec(qcow2), "spec.image.backing_format");
  v1::ExportSpec raw = Raw();
  raw.mutable_image()->set_backing_format(v1::IMAGE_FORMAT_RAW);
  ExpectRefused(CheckExportSpec(raw), "spec.image.backing_format");
  qcow2.mutable_image()->clear_backing_format();
  qcow2.mutable_image()->set_snapshot(std::string(1025, 'x'));
  ExpectRefused(CheckExportSpec(qcow2), "spec.image.snapshot");
}

TEST(ValidationTest, BlockSizes) {
  const auto check = [](uint32_t minimum, uint32_t preferred, uint32_t payload, bool required = false) {
    v1::ExportSpec spec = Raw();
    spec.mutable_block_sizes()->set_minimum_bytes(minimum);
    spec.mutable_block_sizes()->set_preferred_bytes(preferred);
    spec.mutable_block_sizes()->set_maximum_payload_bytes(payload);
    spec.mutable_block_sizes()->set_must_be_asked_for(required);
    return CheckExportSpec(spec);
  };
  EXPECT_TRUE(check(0, 0, 0).ok());
  EXPECT_TRUE(check(1, 512, 1 << 20, true).ok());
  EXPECT_TRUE(check(65536, 65536, 32 << 20, true).ok());
  for (uint32_t minimum : {3u, 4095u, 131072u, ~0u}) {
    ExpectRefused(check(minimum, 0, 0), "spec.block_sizes.minimum_bytes");
  }
  for (uint32_t payload : {1u, (1u << 20) - 1, (32u << 20) + 1, ~0u}) {
    ExpectRefused(check(4096, 0, payload), "spec.block_sizes.maximum_payload_bytes");
  }
  for (uint32_t preferred : {1u, 256u, 2048u, 5000u, 2u << 20, ~0u}) {
    ExpectRefused(check(4096, preferred, 1 << 20), "spec.block_sizes.preferred_bytes");
  }
  // Nobody could be refused.
  ExpectRefused(check(0, 0, 0, true), "spec.block_sizes.must_be_asked_for");
  ExpectRefused(check(1, 4096, 32 << 20, true), "spec.block_sizes.must_be_asked_for");
}

TEST(ValidationTest, ClientResize) {
  v1::ExportSpec spec = Raw();
  spec.set_client_resize(true);
  spec.set_offset_bytes(4096);
  EXPECT_TRUE(CheckExportSpec(spec).ok());
  spec.set_length_bytes(4096);
  ExpectRefused(CheckExportSpec(spec), "spec.client_resize");
  spec.clear_length_bytes();
  spec.set_read_only(true);
  ExpectRefused(CheckExportSpec(spec), "spec.client_resize");
  spec.set_client_resize(false);
  EXPECT_TRUE(CheckExportSpec(spec).ok());
}

TEST(ValidationTest, AttachmentSpecs) {
  v1::AttachmentSpec good;
  good.set_export_("a");
  EXPECT_TRUE(CheckAttachmentSpec(good).ok());
  good.set_device("/dev/nbd1048575");
  EXPECT_TRUE(CheckAttachmentSpec(good).ok());
  for (const char* bad : {"nbd0", "/dev/nbd", "/dev/nbd01", "/dev/nbd-1", "/dev/nbd1048576", "/dev/sda",
                          "/dev/nbd0p1", "/dev/nbd99999999999999999999", "/dev/nbd 1"}) {
    v1::AttachmentSpec spec = good;
    spec.set_device(bad);
    ExpectRefused(CheckAttachmentSpec(spec), "spec.device");
  }
  v1::AttachmentSpec spec = good;
  spec.set_connections(17);
  ExpectRefused(CheckAttachmentSpec(spec), "spec.connections");
  spec = good;
  spec.set_block_size(8192);
  ExpectRefused(CheckAttachmentSpec(spec), "spec.block_size");
  spec = good;
  spec.mutable_timeout()->set_seconds(-1);
  ExpectRefused(CheckAttachmentSpec(spec), "spec.timeout");
  spec.mutable_timeout()->set_seconds(1);
  spec.mutable_timeout()->set_nanos(1);
  ExpectRefused(CheckAttachmentSpec(spec), "spec.timeout");
  spec = good;
  spec.mutable_dead_connection_timeout()->set_seconds(int64_t{1} << 62);
  ExpectRefused(CheckAttachmentSpec(spec), "spec.dead_connection_timeout");
}

TEST(ValidationTest, Pages) {
  EXPECT_EQ(ParsePage(0, "")->size, 100u);
  EXPECT_EQ(ParsePage(5000, "")->size, 1000u);
  const auto page = ParsePage(7, PageToken("disk-1"));
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_EQ(page->after, "disk-1");
  EXPECT_EQ(page->size, 7u);
  EXPECT_TRUE(ParsePage(7, PageToken(std::string(200, 'x'))).ok());
  ExpectRefused(ParsePage(-1, "").status(), "page_size");
  for (const std::string& bad : {std::string("disk-1"), std::string("%%%"), std::string(10000, 'A')}) {
    ExpectRefused(ParsePage(0, bad).status(), "page_token");
  }
}

}  // namespace
}  // namespace berth::control
