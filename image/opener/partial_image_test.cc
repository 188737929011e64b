#include "image/opener/partial_image.h"

#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/raw/raw_device.h"

namespace berth {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

class PartialImageTest : public testing::Test {
 protected:
  PartialImageTest() {
    EXPECT_NE(mkdtemp(directory_.data()), nullptr);
    roots_ = std::make_unique<ImageRoots>(*ImageRoots::Within({directory_}));
  }
  ~PartialImageTest() override { std::filesystem::remove_all(directory_); }

  std::string Path(const std::string& name) const { return directory_ + "/" + name; }
  static void Make(const std::string& path) { std::ofstream(path) << std::string(4096, 'x'); }

  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
      names.push_back(entry.path().filename());
    }
    return names;
  }

  std::string directory_ = testing::TempDir() + "/partial-XXXXXX";
  std::unique_ptr<ImageRoots> roots_;
};

TEST_F(PartialImageTest, AppearsWhole) {
  auto image = PartialImage::Begin(*roots_, Path("disk"));
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->path(), Path(".disk.berth-part"));
  EXPECT_THAT(Files(), IsEmpty());
  Make(image->path());
  ASSERT_EQ(image->Publish(), absl::OkStatus());
  EXPECT_THAT(Files(), UnorderedElementsAre("disk"));
}

TEST_F(PartialImageTest, NothingStaysOfWhatWasGivenUp) {
  {
    auto image = PartialImage::Begin(*roots_, Path("disk"));
    ASSERT_TRUE(image.ok()) << image.status();
    Make(image->path());
    EXPECT_THAT(Files(), UnorderedElementsAre(".disk.berth-part"));
  }
  EXPECT_THAT(Files(), IsEmpty());
}

TEST_F(PartialImageTest, WhatACrashLeftGoes) {
  Make(Path(".disk.berth-part"));
  auto image = PartialImage::Begin(*roots_, Path("disk"));
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_THAT(Files(), IsEmpty());
}

TEST_F(PartialImageTest, WhatAnotherProcessIsFillingStays) {
  Make(Path(".disk.berth-part"));
  const auto other = RawDevice::Open(Path(".disk.berth-part"), {});
  ASSERT_TRUE(other.ok()) << other.status();
  const auto image = PartialImage::Begin(*roots_, Path("disk"));
  EXPECT_TRUE(absl::IsFailedPrecondition(image.status())) << image.status();
  EXPECT_THAT(Files(), UnorderedElementsAre(".disk.berth-part"));
}

TEST_F(PartialImageTest, NothingIsReplaced) {
  Make(Path("taken"));
  const auto taken = PartialImage::Begin(*roots_, Path("taken"));
  EXPECT_TRUE(absl::IsAlreadyExists(taken.status()));
  EXPECT_THAT(std::string(taken.status().message()), HasSubstr("taken\" exists"));
  auto image = PartialImage::Begin(*roots_, Path("disk"));
  ASSERT_TRUE(image.ok()) << image.status();
  Make(image->path());
  std::filesystem::create_directory(Path("disk"));
  EXPECT_TRUE(absl::IsAlreadyExists(image->Publish()));
  EXPECT_TRUE(std::filesystem::is_directory(Path("disk")));
}

TEST_F(PartialImageTest, OutsideTheRootsIsRefused) {
  EXPECT_TRUE(absl::IsPermissionDenied(PartialImage::Begin(*roots_, "/tmp/elsewhere").status()));
}

}  // namespace
}  // namespace berth
