#include "netlink/module_loader.h"

#include <stdlib.h>
#include <sys/stat.h>

#include <fstream>

#include "gtest/gtest.h"

namespace berth::netlink {
namespace {

std::string Program(const std::string& name, const std::string& body) {
  const std::string path = std::string(getenv("TEST_TMPDIR")) + "/" + name;
  std::ofstream(path) << "#!/bin/sh\n" << body << "\n";
  chmod(path.c_str(), 0755);
  return path;
}

TEST(ModuleLoaderTest, AsksForNbd) {
  EXPECT_TRUE(LoadNbdModule(Program("right", "[ \"$*\" = nbd ]"), absl::Minutes(1)).ok());
}

TEST(ModuleLoaderTest, SaysWhatTheProgramSaid) {
  const absl::Status status =
      LoadNbdModule(Program("wrong", "echo 'FATAL: Module nbd not found.' >&2; exit 1"), absl::Minutes(1));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("FATAL: Module nbd not found."), absl::string_view::npos) << status;
}

TEST(ModuleLoaderTest, MissingProgram) {
  const absl::Status status = LoadNbdModule("/nonexistent/modprobe", absl::Minutes(1));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("/nonexistent/modprobe"), absl::string_view::npos) << status;
}

TEST(ModuleLoaderTest, EndsOneThatHangs) {
  // exec: the shell's child would survive it.
  EXPECT_EQ(LoadNbdModule(Program("hangs", "exec sleep 600"), absl::Milliseconds(20)).code(),
            absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace berth::netlink
