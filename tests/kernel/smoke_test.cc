// What every other test in the virtual machine relies on.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace {

TEST(VirtualMachine, HasTheNbdModuleAndItsDevices) {
  EXPECT_EQ(access("/sys/module/nbd", F_OK), 0);
  struct stat status;
  ASSERT_EQ(stat("/dev/nbd0", &status), 0);
  EXPECT_TRUE(S_ISBLK(status.st_mode));
}

TEST(VirtualMachine, HasTwoCpus) { EXPECT_EQ(std::thread::hardware_concurrency(), 2u); }

TEST(VirtualMachine, HasWritableTemporaryFolders) {
  for (const std::string& folder :
       std::vector<std::string>{"/tmp", "/run", "/dev/shm", std::getenv("TEST_TMPDIR")}) {
    const std::string path = folder + "/probe";
    std::ofstream(path) << "written";
    std::string text;
    std::ifstream(path) >> text;
    EXPECT_EQ(text, "written") << path;
  }
}

TEST(VirtualMachine, CannotHarmTheHost) {
  EXPECT_EQ(open("/etc/berth-vm-probe", O_CREAT | O_WRONLY, 0600), -1);
  EXPECT_EQ(errno, EROFS);
}

}  // namespace
