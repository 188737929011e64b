// libnbd's programs: nbdinfo, nbdcopy, nbddump, and nbdsh's Python for every command and flag.
#include <set>
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

std::shared_ptr<BlockDevice> Memory(uint64_t size) { return MemoryDevice::Create(size).value(); }

class LibnbdTest : public InteropTest {};

TEST_P(LibnbdTest, InfoOfAnExport) {
  Start({.size = 10 * kMiB, .description = "Füße und Öl"});
  const json info = json::parse(Run({"nbdinfo", "--json", Uri()}));
  EXPECT_EQ(info["protocol"], "newstyle-fixed");
  EXPECT_EQ(info["TLS"], false);
  EXPECT_EQ(info["structured"], true);
  const json& served = info["exports"][0];
  EXPECT_EQ(served["export-name"], "disk");
  EXPECT_EQ(served["description"], "Füße und Öl");
  EXPECT_EQ(served["export-size"], 10 * kMiB);
  EXPECT_EQ(served["contexts"], json::array({"base:allocation"}));
  EXPECT_EQ(served["is_read_only"], false);
  for (const char* can :
       {"can_cache", "can_df", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"}) {
    EXPECT_EQ(served[can], true) << can;
  }
  EXPECT_EQ(served["block_size_minimum"], 1);
  EXPECT_EQ(served["block_size_preferred"], 4096);
  EXPECT_EQ(served["block_size_maximum"], 32 * kMiB);
}

TEST_P(LibnbdTest, InfoOfAReadOnlyExport) {
  Start({.size = kMiB, .read_only = true, .multi_connection = false});
  const json served = json::parse(Run({"nbdinfo", "--json", Uri()}))["exports"][0];
  EXPECT_EQ(served["is_read_only"], true);
  EXPECT_EQ(served["can_multi_conn"], false);
  for (const char* can : {"can_trim", "can_zero", "can_fast_zero"}) EXPECT_EQ(served[can], false) << can;
  EXPECT_EQ(RunProgram({"nbdinfo", "--can", "write", Uri()}).exit_code, 2);
  EXPECT_EQ(RunProgram({"nbdinfo", "--is", "read-only", Uri()}).exit_code, 0);
}

TEST_P(LibnbdTest, ListOfExports) {
  const std::set<std::string> names = {"disk", "a/b/c", "Füße", "with space", std::string(4096, 'n')};
  Start({.size = kMiB, .export_name = "disk", .description = "first"});
  for (const std::string& name : names) {
    if (name != "disk") {
      ASSERT_TRUE(server_->AddExport(name, Memory(3 * kMiB), "of " + name.substr(0, 7)).ok());
    }
  }
  const json list = json::parse(Run({"nbdinfo", "--list", "--json", Uri()}));
  std::set<std::string> seen;
  for (const json& listed : list["exports"]) {
    const std::string name = listed["export-name"];
    seen.insert(name);
    EXPECT_EQ(listed["export-size"], name == "disk" ? kMiB : 3 * kMiB);
    EXPECT_EQ(listed["description"], name == "disk" ? "first" : "of " + name.substr(0, 7));
  }
  EXPECT_EQ(seen, names);
}

TEST_P(LibnbdTest, MapShowsDataAndHoles) {
  Start({.size = 4 * kMiB});
  // Written before the server has learned where data is, so the image says it.
  Run({"nbdsh", "-u", Uri(), "-c", "h.pwrite(b'x' * 65536, 1 << 20)", "-c", "h.flush()"});
  const json map = json::parse(Run({"nbdinfo", "--map", "--json", Uri()}));
  ASSERT_EQ(map.size(), 3u) << map;
  const uint64_t offsets[] = {0, kMiB, kMiB + 65536};
  const uint64_t lengths[] = {kMiB, 65536, 3 * kMiB - 65536};
  const int types[] = {3, 0, 3};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(map[i]["offset"], offsets[i]);
    EXPECT_EQ(map[i]["length"], lengths[i]);
    EXPECT_EQ(map[i]["type"], types[i]);
  }
}

TEST_P(LibnbdTest, CopyBothWaysOverSeveralConnections) {
  // No multiple of anything.
  const std::string content = RandomBytes(24 * kMiB + 1234, 1);
  Start({.size = content.size()});
  WriteFile(Path("in"), content);
  Run({"nbdcopy", "--connections=4", "--requests=32", "--flush", Path("in"), Uri()});
  EXPECT_TRUE(ReadFile(server_->image_path()) == content);
  Run({"nbdcopy", "--connections=4", "--requests=32", Uri(), Path("out")});
  EXPECT_TRUE(ReadFile(Path("out")) == content);
  // One request at a time, as the simplest client.
  Run({"nbdcopy", "--synchronous", "--connections=1", "--request-size=65536", Uri(), Path("again")});
  EXPECT_TRUE(ReadFile(Path("again")) == content);
}

TEST_P(LibnbdTest, CopyFromServerToServerKeepsHoles) {
  Start({.size = 16 * kMiB});
  ASSERT_TRUE(server_->AddExport("copy", Memory(16 * kMiB)).ok());
  Run({"nbdsh", "-u", Uri(), "-c", "h.pwrite(b'data' * 4096, 5 << 20)"});
  Run({"nbdcopy", "--connections=4", Uri(), server_->UnixUri("copy")});
  const json map = json::parse(Run({"nbdinfo", "--map", "--json", server_->UnixUri("copy")}));
  uint64_t data = 0;
  for (const json& extent : map) {
    if (extent["type"] == 0) data += extent["length"].get<uint64_t>();
  }
  EXPECT_EQ(data, 16384u) << map;
  Run({"nbdcopy", server_->UnixUri("copy"), Path("copy")});
  EXPECT_TRUE(ReadFile(Path("copy")) == ReadFile(server_->image_path()));
}

TEST_P(LibnbdTest, DumpShowsTheBytes) {
  Start({.size = kMiB});
  Run({"nbdsh", "-u", Uri(), "-c", "h.pwrite(b'Hello, Berth', 512)"});
  const std::string dump = Run({"nbddump", Uri()});
  EXPECT_THAT(dump, HasSubstr("0000000200: 48 65 6c 6c 6f 2c 20 42  65 72 74 68"));
}

// The checks are in the script, which names the one that failed.
TEST_P(LibnbdTest, EveryCommandAndFlag) {
  Start({.size = 64 * kMiB});
  Run({"/usr/bin/python3", "tests/interop/commands.py", Uri()}, 120);
}

TEST_P(LibnbdTest, EveryOptionAndHandshakeFlag) {
  Start({.size = kMiB, .description = "the first"});
  ASSERT_TRUE(server_->AddExport("cdrom", Memory(2 * kMiB), "the second", true).ok());
  Run({"/usr/bin/python3", "tests/interop/options.py", Uri()}, 120);
}

INSTANTIATE_TEST_SUITE_P(Ways, LibnbdTest, ::testing::Values(Way::kUnix, Way::kIpv4, Way::kIpv6), WayName);

}  // namespace
}  // namespace berth::testing
