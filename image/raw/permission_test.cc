// An image that may not be opened. Not for Bazel's sandbox, which has one user: this takes another.

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "image/raw/raw_device.h"
#include "image/raw/temporary_image.h"

namespace berth {
namespace {

// In a child that is nobody, as root may read anything; returns its exit status: 0 where permission was
// denied.
int OpenAsNobody(const std::string& directory, const std::string& name, const RawOptions& options) {
  const pid_t child = fork();
  if (child == 0) {
    // By a relative name, as nobody may not search what lies above the directory.
    if (chdir(directory.c_str()) != 0) _exit(2);
    if (geteuid() == 0 && setuid(65534) != 0) _exit(3);
    const absl::Status status = RawDevice::Open(name, options).status();
    _exit(absl::IsPermissionDenied(status) && status.message().find(name) != absl::string_view::npos ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

TEST(PermissionTest, WhatMayNotBeOpenedIsSaid) {
  std::string directory = DiskDirectory() + "/permission-XXXXXX";
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  ASSERT_EQ(chmod(directory.c_str(), 0755), 0);
  {
    const TemporaryImage image(directory, 4096);
    const std::string name = image.path().substr(directory.size() + 1);
    const RawOptions writing;
    const RawOptions reading = {.read_only = true};
    ASSERT_EQ(chmod(image.path().c_str(), 0), 0);
    EXPECT_EQ(OpenAsNobody(directory, name, writing), 0);
    EXPECT_EQ(OpenAsNobody(directory, name, reading), 0);
    ASSERT_EQ(chmod(image.path().c_str(), 0444), 0);
    EXPECT_EQ(OpenAsNobody(directory, name, writing), 0);
    EXPECT_EQ(OpenAsNobody(directory, name, reading), 1);
  }
  EXPECT_EQ(rmdir(directory.c_str()), 0);
}

}  // namespace
}  // namespace berth
