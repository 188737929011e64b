// qemu's programs, fio's nbd engine and nbd-client.
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/memory/memory_device.h"
#include "nlohmann/json.hpp"
#include "tests/interop/interop_fixture.h"

namespace berth::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr size_t kMiB = size_t{1} << 20;

class QemuTest : public InteropTest {};

TEST_P(QemuTest, ImgInfo) {
  Start({.size = 10 * kMiB});
  const json info = json::parse(Run({"qemu-img", "info", "--output=json", Uri()}));
  EXPECT_EQ(info["virtual-size"], 10 * kMiB);
  EXPECT_EQ(info["format"], "raw");
}

TEST_P(QemuTest, UnknownExportIsToldInWords) {
  Start({.size = kMiB, .export_name = "disk"});
  ASSERT_TRUE(server_->AddExport("second", MemoryDevice::Create(kMiB).value()).ok());
  std::string uri = Uri();
  uri.replace(uri.find("/disk"), 5, "/dist");
  const ProgramResult result = RunProgram({"qemu-img", "info", uri});
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.errors, HasSubstr("there is no export 'dist' here"));
}

TEST_P(QemuTest, ImgConvertsAndComparesBothWays) {
  Start({.size = 24 * kMiB});
  WriteFile(Path("in"), RandomBytes(10 * kMiB, 2) + std::string(13 * kMiB, '\0') + RandomBytes(kMiB, 3));
  Run({"qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", Path("in"), Uri()});
  Run({"qemu-img", "compare", "-f", "raw", "-F", "raw", Path("in"), Uri()});
  EXPECT_TRUE(ReadFile(server_->image_path()) == ReadFile(Path("in")));
  Run({"qemu-img", "convert", "-f", "raw", "-O", "qcow2", Uri(), Path("out.qcow2")});
  Run({"qemu-img", "compare", "-f", "qcow2", "-F", "raw", Path("out.qcow2"), Uri()});
  Run({"qemu-io", "-f", "raw", "-c", "write -P 0x55 1M 512", Uri()});
  EXPECT_EQ(RunProgram({"qemu-img", "compare", "-f", "raw", "-F", "raw", Path("in"), Uri()}).exit_code, 1);
}

TEST_P(QemuTest, ImgMap) {
  Start({.size = 8 * kMiB});
  Run({"qemu-io", "-f", "raw", "-c", "write -P 1 2M 1M", "-c", "flush", Uri()});
  const json map = json::parse(Run({"qemu-img", "map", "-f", "raw", "--output=json", Uri()}));
  ASSERT_EQ(map.size(), 3u) << map;
  EXPECT_EQ(map[1]["start"], 2 * kMiB);
  EXPECT_EQ(map[1]["length"], kMiB);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(map[i]["zero"], i != 1);
    EXPECT_EQ(map[i]["data"], i == 1);
  }
}

TEST_P(QemuTest, IoWritesReadsZeroesAndDiscards) {
  Start({.size = 16 * kMiB});
  const std::string output = Run({"qemu-io",
                                  "-f",
                                  "raw",
                                  "-d",
                                  "unmap",
                                  "-c",
                                  "write -P 0xab 0 4M",
                                  "-c",
                                  "read -P 0xab 0 4M",
                                  "-c",
                                  "write -f -P 0xcd 777 4000",
                                  "-c",
                                  "read -P 0xcd 777 4000",
                                  "-c",
                                  "read -P 0xab 4777 100",
                                  "-c",
                                  "write -z 1M 1M",
                                  "-c",
                                  "read -P 0 1M 1M",
                                  "-c",
                                  "write -z -u 2M 1M",
                                  "-c",
                                  "read -P 0 2M 1M",
                                  "-c",
                                  "discard 3M 64k",
                                  "-c",
                                  "flush",
                                  "-c",
                                  "aio_write -P 1 8M 1M",
                                  "-c",
                                  "aio_write -P 2 9M 1M",
                                  "-c",
                                  "aio_flush",
                                  "-c",
                                  "read -P 2 9M 1M",
                                  Uri()});
  EXPECT_THAT(output, Not(HasSubstr("failed")));
  const std::string image = ReadFile(server_->image_path());
  EXPECT_EQ(image.substr(777, 4000), std::string(4000, '\xcd'));
  EXPECT_EQ(image.substr(8 * kMiB, kMiB), std::string(kMiB, '\1'));
}

TEST_P(QemuTest, IoIsRefusedWhatIsReadOnly) {
  Start({.size = kMiB, .read_only = true});
  EXPECT_NE(RunProgram({"qemu-io", "-f", "raw", "-c", "write 0 512", Uri()}).exit_code, 0);
  Run({"qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 512", Uri()});
}

TEST_P(QemuTest, FioVerifiesWhatItWrote) {
  Start({.size = 32 * kMiB});
  Run({"fio", "--name=verify", "--ioengine=nbd", "--uri=" + Uri(), "--rw=randwrite", "--bsrange=512-64k",
       "--bs_unaligned=0", "--iodepth=32", "--size=32M", "--io_size=16M", "--verify=crc32c", "--do_verify=1",
       "--verify_fatal=1", "--randseed=7", "--output-format=json", "--output=" + Path("report")},
      120);
  const json report = json::parse(ReadFile(Path("report")));
  EXPECT_EQ(report["jobs"][0]["error"], 0);
  EXPECT_GT(report["jobs"][0]["read"]["total_ios"], 100);
}

TEST_P(QemuTest, NbdClientLists) {
  Start({.size = kMiB, .export_name = "disk", .description = "the first"});
  ASSERT_TRUE(server_->AddExport("a/b", MemoryDevice::Create(kMiB).value()).ok());
  std::vector<std::string> command = {"/usr/sbin/nbd-client", "-l"};
  switch (GetParam()) {
    case Way::kUnix:
      command.insert(command.end(), {"-unix", server_->socket_path()});
      break;
    case Way::kIpv4:
      command.insert(command.end(), {"127.0.0.1", std::to_string(server_->ipv4_port())});
      break;
    case Way::kIpv6:
      command.insert(command.end(), {"::1", std::to_string(server_->ipv6_port())});
      break;
  }
  const std::string output = Run(command);
  EXPECT_THAT(output, HasSubstr("a/b\n"));
  EXPECT_THAT(output, HasSubstr("disk"));
}

INSTANTIATE_TEST_SUITE_P(Ways, QemuTest, ::testing::Values(Way::kUnix, Way::kIpv4, Way::kIpv6), WayName);

}  // namespace
}  // namespace berth::testing
