// What a tree of files can stand in for; tests/kernel has real devices.
#include "netlink/device_access.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace berth::netlink {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

class DeviceAccessTest : public testing::Test {
 protected:
  DeviceAccessTest() {
    std::string root = absl::StrCat(getenv("TEST_TMPDIR"), "/tree.XXXXXX");
    EXPECT_NE(mkdtemp(root.data()), nullptr);
    paths_ = {root + "/sys", root + "/proc", root + "/dev"};
    std::filesystem::create_directories(paths_.dev);
    std::filesystem::create_directories(paths_.proc);
  }

  SystemPaths paths_;
};

TEST_F(DeviceAccessTest, MissingNodeIsNamed) {
  const absl::Status status = CheckNode(paths_, {"nbd3", "43:96"});
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(paths_.dev + "/nbd3"));
}

TEST_F(DeviceAccessTest, SomethingElseInItsPlace) {
  std::ofstream(paths_.dev + "/nbd3") << "a file";
  EXPECT_EQ(CheckNode(paths_, {"nbd3", "43:96"}).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_EQ(mkfifo((paths_.dev + "/nbd4").c_str(), 0600), 0);
  EXPECT_EQ(CheckNode(paths_, {"nbd4", "43:128"}).code(), absl::StatusCode::kFailedPrecondition);
  std::filesystem::create_symlink("/dev/null", paths_.dev + "/nbd5");
  EXPECT_EQ(CheckNode(paths_, {"nbd5", "1:3"}).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(DeviceAccessTest, OpenersSkipWhatIsNoBlockDevice) {
  std::filesystem::create_directories(paths_.proc + "/12/fd");
  std::filesystem::create_directories(paths_.proc + "/self/fd");
  std::ofstream(paths_.proc + "/12/comm") << "cat\n";
  std::filesystem::create_symlink("/dev/null", paths_.proc + "/12/fd/0");
  std::filesystem::create_symlink("socket:[1]", paths_.proc + "/12/fd/1");
  EXPECT_THAT(FindOpeners(paths_, {{"null", "1:3"}}), IsEmpty());
}

}  // namespace
}  // namespace berth::netlink
