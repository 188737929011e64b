#include "image/raw/file_extents.h"

#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/unique_fd.h"
#include "image/raw/temporary_image.h"

namespace berth {
namespace {

using testing::ElementsAre;

constexpr uint64_t kMiB = 1 << 20;
constexpr Extent Data(uint64_t length) { return {length, true, false}; }
constexpr Extent Hole(uint64_t length) { return {length, false, true}; }
constexpr Extent Reserved(uint64_t length) { return {length, true, true}; }

class FileExtentsTest : public testing::TestWithParam<bool> {
 protected:
  FileExtentsTest()
      : image_(GetParam() ? MemoryDirectory() : DiskDirectory(), 16 * kMiB),
        fd_(open(image_.path().c_str(), O_RDWR | O_CLOEXEC)) {
    EXPECT_TRUE(fd_);
    fiemap map = {};
    map.fm_length = 1;
    knows_space_ = ioctl(fd_.get(), FS_IOC_FIEMAP, &map) == 0;
  }

  void Write(uint64_t offset, uint64_t length) {
    const std::vector<uint8_t> ones(length, 1);
    EXPECT_EQ(pwrite(fd_.get(), ones.data(), length, static_cast<off_t>(offset)),
              static_cast<ssize_t>(length));
  }
  void Reserve(uint64_t offset, uint64_t length) {
    EXPECT_EQ(fallocate(fd_.get(), 0, static_cast<off_t>(offset), static_cast<off_t>(length)), 0);
  }
  std::vector<Extent> Read(uint64_t offset = 0, uint64_t stop = 16 * kMiB) {
    std::vector<Extent> extents;
    EXPECT_EQ(ReadFileExtents(fd_.get(), offset, stop, 16 * kMiB, &extents), 0);
    return extents;
  }
  // What was set aside and not written, where the file system can tell.
  Extent Space(uint64_t length) const { return knows_space_ ? Reserved(length) : Hole(length); }

  TemporaryImage image_;
  UniqueFd fd_;
  bool knows_space_ = false;
};

TEST_P(FileExtentsTest, HolesAndData) {
  EXPECT_THAT(Read(), ElementsAre(Hole(16 * kMiB)));
  Write(4 * kMiB, kMiB);
  EXPECT_THAT(Read(), ElementsAre(Hole(4 * kMiB), Data(kMiB), Hole(11 * kMiB)));
  EXPECT_THAT(Read(4 * kMiB + 4096, 5 * kMiB), ElementsAre(Data(kMiB - 4096)));
  EXPECT_THAT(Read(5 * kMiB), ElementsAre(Hole(11 * kMiB)));
}

// "base:allocation metadata context": where NBD_STATE_HOLE is set, a write may find no space.
TEST_P(FileExtentsTest, SpaceThatWasSetAsideIsNoHole) {
  Reserve(kMiB, 2 * kMiB);
  Write(4 * kMiB, kMiB);
  Reserve(8 * kMiB, 8 * kMiB);
  std::vector<Extent> expected = {Hole(kMiB), Space(2 * kMiB), Hole(kMiB),
                                  Data(kMiB), Hole(3 * kMiB),  Space(8 * kMiB)};
  if (!knows_space_) expected = {Hole(4 * kMiB), Data(kMiB), Hole(11 * kMiB)};
  EXPECT_EQ(Read(), expected);
  Write(2 * kMiB, kMiB);
  fsync(fd_.get());
  const std::vector<Extent> extents = Read(0, 4 * kMiB);
  ASSERT_GE(extents.size(), knows_space_ ? 3u : 2u);
  if (knows_space_) {
    EXPECT_EQ(extents[1], Reserved(kMiB));
    EXPECT_EQ(extents[2], Data(kMiB));
  }
}

TEST_P(FileExtentsTest, ManyPiecesComeInSeveralCalls) {
  // Every second block is set aside, none is written.
  for (uint64_t at = 0; at < 8 * kMiB; at += 8192) Reserve(at, 4096);
  uint64_t position = 0;
  int calls = 0;
  std::vector<Extent> all;
  while (position < 16 * kMiB && ++calls < 100) {
    const std::vector<Extent> some = Read(position);
    ASSERT_FALSE(some.empty());
    ASSERT_LE(some.size(), kMostFileExtents);
    for (const Extent& extent : some) {
      position += extent.length;
      all.push_back(extent);
    }
  }
  EXPECT_EQ(position, 16 * kMiB);
  if (knows_space_) {
    EXPECT_GE(all.size(), 2048u);
  }
  for (const Extent& extent : all) EXPECT_TRUE(extent.zero);
}

INSTANTIATE_TEST_SUITE_P(FileSystems, FileExtentsTest, testing::Bool(),
                         [](const auto& memory) { return memory.param ? "Memory" : "Disk"; });

}  // namespace
}  // namespace berth
