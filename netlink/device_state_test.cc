#include "netlink/device_state.h"

#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace berth::netlink {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

// A tree of files in place of sysfs and procfs.
class DeviceStateTest : public testing::Test {
 protected:
  DeviceStateTest() {
    std::string root = absl::StrCat(getenv("TEST_TMPDIR"), "/tree.XXXXXX");
    EXPECT_NE(mkdtemp(root.data()), nullptr);
    paths_ = {root + "/sys", root + "/proc", "/dev"};
    std::filesystem::create_directories(paths_.sys + "/block");
    Proc("self/mountinfo", "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n");
  }

  static void Put(const std::string& path, const std::string& content) {
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path) << content;
  }
  void Sys(const std::string& path, const std::string& content) {
    Put(paths_.sys + "/block/" + path, content);
  }
  void Proc(const std::string& path, const std::string& content) { Put(paths_.proc + "/" + path, content); }

  // nbd3, connected, with two partitions.
  void MakeDisk() {
    Sys("nbd3/dev", "43:96\n");
    Sys("nbd3/size", "2048\n");
    Sys("nbd3/ro", "1\n");
    Sys("nbd3/pid", "4711\n");
    Sys("nbd3/backend", "berth:a b\n");
    for (const std::string partition : {"nbd3p1", "nbd3p10", "nbd3p2"}) {
      Sys("nbd3/" + partition + "/partition", "1\n");
      Sys("nbd3/" + partition + "/dev", absl::StrCat("43:", 96 + std::stoi(partition.substr(5)), "\n"));
    }
  }

  std::vector<std::string> MountPoints() {
    absl::StatusOr<std::vector<std::string>> found = FindMountPoints(paths_, ListNodes(paths_, 3));
    EXPECT_TRUE(found.ok()) << found.status();
    return found.ok() ? *found : std::vector<std::string>();
  }

  SystemPaths paths_;
};

TEST_F(DeviceStateTest, ReadsAConnectedDisk) {
  MakeDisk();
  const DeviceState state = InspectDisk(paths_, 3);
  EXPECT_TRUE(state.exists);
  EXPECT_EQ(state.index, 3u);
  EXPECT_EQ(state.pid, 4711);
  EXPECT_EQ(state.size_bytes, 1u << 20);
  EXPECT_EQ(state.backend_identifier, "berth:a b");
  EXPECT_TRUE(state.read_only);
  EXPECT_THAT(state.partitions, ElementsAre("nbd3p1", "nbd3p2", "nbd3p10"));
  EXPECT_THAT(state.holders, IsEmpty());
  EXPECT_FALSE(state.IsFree());
}

TEST_F(DeviceStateTest, FreeAndMissing) {
  Sys("nbd0/dev", "43:0\n");
  Sys("nbd0/size", "0\n");
  Sys("nbd0/ro", "0\n");
  EXPECT_TRUE(InspectDisk(paths_, 0).exists);
  EXPECT_TRUE(InspectDisk(paths_, 0).IsFree());
  EXPECT_FALSE(InspectDisk(paths_, 1).exists);
  EXPECT_THAT(ListNodes(paths_, 1), IsEmpty());
}

TEST_F(DeviceStateTest, HoldersOfDiskAndPartitionsOnceEach) {
  MakeDisk();
  Sys("nbd3/holders/dm-0", "");
  Sys("nbd3/nbd3p2/holders/dm-0", "");
  Sys("nbd3/nbd3p2/holders/md127", "");
  EXPECT_THAT(InspectDisk(paths_, 3).holders, ElementsAre("dm-0", "md127"));
}

TEST_F(DeviceStateTest, LoopDevicesOnDiskAndPartitions) {
  MakeDisk();
  Sys("loop0/loop/backing_file", paths_.dev + "/nbd3\n");
  Sys("loop1/loop/backing_file", "/var/lib/nbd3\n");
  Sys("loop2/loop/backing_file", paths_.dev + "/nbd3p2\n");
  Sys("loop3/loop/backing_file", paths_.dev + "/nbd30\n");
  Sys("loop4/size", "0\n");
  EXPECT_THAT(FindLoops(paths_, ListNodes(paths_, 3)), UnorderedElementsAre("loop0", "loop2"));
}

TEST_F(DeviceStateTest, HeldFromAboveIsNotFree) {
  Sys("nbd0/size", "0\n");
  Sys("nbd0/holders/dm-0", "");
  EXPECT_FALSE(InspectDisk(paths_, 0).IsFree());
}

TEST_F(DeviceStateTest, OddContent) {
  Sys("nbd0/size", "lots\n");
  EXPECT_FALSE(InspectDisk(paths_, 0).exists);
  Sys("nbd1/size", "18446744073709551615\n");
  Sys("nbd1/pid", "-\n");
  Sys("nbd1/backend", std::string(100000, 'x'));
  EXPECT_EQ(InspectDisk(paths_, 1).size_bytes, UINT64_MAX);
  EXPECT_FALSE(InspectDisk(paths_, 1).pid.has_value());
  EXPECT_LE(InspectDisk(paths_, 1).backend_identifier.size(), 4096u);
}

TEST_F(DeviceStateTest, ListsOnlyDisksInOrder) {
  for (const char* name : {"nbd10", "nbd2", "nbd", "nbd1p1", "nbdx", "nbd-1", "nbd99999999999", "sda"}) {
    Sys(std::string(name) + "/size", "0\n");
  }
  EXPECT_THAT(*ListDisks(paths_), ElementsAre(2, 10));
  std::filesystem::remove_all(paths_.sys);
  EXPECT_FALSE(ListDisks(paths_).ok());
}

TEST_F(DeviceStateTest, ModuleLoadedOrNot) {
  EXPECT_FALSE(HasNbdModule(paths_));
  Put(paths_.sys + "/module/nbd/refcnt", "0\n");
  EXPECT_TRUE(HasNbdModule(paths_));
}

TEST_F(DeviceStateTest, MountPointsByNumber) {
  MakeDisk();
  Proc("self/mountinfo",
       "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
       "30 22 43:96 / /mnt/a\\040b\\134c rw shared:2 master:1 - xfs /dev/nbd3 rw\n"
       // Under another name, and a folder of it bound elsewhere.
       "31 22 43:106 /dir /srv rw - ext4 /dev/disk/by-label/x rw\n"
       // Another disk whose name begins with ours.
       "32 22 43:992 / /mnt/other rw - ext4 /dev/nbd31 rw\n"
       "33 22 43:9 / /mnt/third rw - ext4 /dev/nbd3 rw\n");
  EXPECT_THAT(MountPoints(), ElementsAre("/mnt/a b\\c", "/srv"));
}

TEST_F(DeviceStateTest, MountPointsByNameWhereTheNumberIsAnonymous) {
  MakeDisk();
  Proc("self/mountinfo",
       "30 22 0:45 /@ /mnt/btrfs rw - btrfs /dev/nbd3p2 rw,subvol=/@\n"
       "31 22 0:46 / /mnt/tmp rw - tmpfs nbd3 rw\n"
       "32 22 0:47 / /mnt/other rw - btrfs /dev/nbd31 rw\n");
  EXPECT_THAT(MountPoints(), ElementsAre("/mnt/btrfs"));
}

TEST_F(DeviceStateTest, Swap) {
  MakeDisk();
  Proc("swaps",
       "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
       "/dev/sda2                               partition\t1\t0\t-2\n"
       "/dev/nbd3p1                             partition\t1\t0\t-3\n");
  EXPECT_THAT(MountPoints(), ElementsAre("swap"));
}

TEST_F(DeviceStateTest, OddMountinfo) {
  MakeDisk();
  std::string many;
  for (int i = 0; i < 1000; ++i) absl::StrAppend(&many, "30 22 43:96 / /m", i, " rw - ext4 /dev/nbd3 rw\n");
  // Lines too short, without a separator, with a broken escape and with nothing behind the separator.
  Proc("self/mountinfo",
       "\n43:96\n1 2 0:1 / /a rw\n1 2 0:1 / /b rw -\n1 2 43:96 / /c\\04 rw - x y z\n" + many);
  const std::vector<std::string> found = MountPoints();
  ASSERT_THAT(found, SizeIs(64));
  EXPECT_EQ(found[0], "/c\\04");
  std::filesystem::remove_all(paths_.proc);
  EXPECT_FALSE(FindMountPoints(paths_, ListNodes(paths_, 3)).ok());
}

}  // namespace
}  // namespace berth::netlink
