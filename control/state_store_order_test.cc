// What is on disk, and in which order, when the state store answers. The functions of the C library that it
// uses for that are replaced here by ones that write down their call and then make it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "control/state_store.h"

namespace berth::control {
namespace {

using testing::ElementsAre;

// The calls of the one thread that there is, by file names.
std::vector<std::string> calls;

std::string NameOf(int fd) {
  std::array<char, 4096> target;
  const ssize_t length = readlink(absl::StrCat("/proc/self/fd/", fd).c_str(), target.data(), target.size());
  if (length < 0) return "?";
  return std::filesystem::path(std::string(target.data(), static_cast<size_t>(length))).filename();
}

}  // namespace

extern "C" int fsync(int fd) {
  calls.push_back("sync " + NameOf(fd));
  return static_cast<int>(syscall(SYS_fsync, fd));
}
extern "C" int renameat(int old_folder, const char* old_name, int new_folder, const char* new_name) noexcept {
  calls.push_back(absl::StrCat("rename ", old_name, " to ", new_name));
  return static_cast<int>(syscall(SYS_renameat, old_folder, old_name, new_folder, new_name));
}
extern "C" int unlinkat(int folder, const char* name, int flags) noexcept {
  calls.push_back(absl::StrCat("remove ", name));
  return static_cast<int>(syscall(SYS_unlinkat, folder, name, flags));
}

namespace {

class StateStoreOrderTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = testing::TempDir() + "/order.XXXXXX";
    ASSERT_NE(mkdtemp(directory_.data()), nullptr);
    calls.clear();
    auto store = StateStore::Open(directory_ + "/state");
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string directory_;
  std::unique_ptr<StateStore> store_;
};

TEST_F(StateStoreOrderTest, TheIdentityAndTheFoldersAreThereBeforeAnythingElse) {
  EXPECT_THAT(calls, ElementsAre("sync .instance-id.tmp", "rename .instance-id.tmp to instance-id",
                                 "sync state", "sync state"));
}

// A name that is on disk before its content would be an empty file after a crash; one that is not on disk
// when the call is answered would be forgotten.
TEST_F(StateStoreOrderTest, ARecordIsOnDiskBeforeItsNameAndItsNameBeforeTheAnswer) {
  state::v1::ExportRecord disk;
  disk.set_name("a");
  for (int i = 0; i < 2; ++i) {
    calls.clear();
    ASSERT_TRUE(store_->Put(disk).ok());
    EXPECT_THAT(calls, ElementsAre("sync .a.json.tmp", "rename .a.json.tmp to a.json", "sync exports"));
  }
  state::v1::AttachmentRecord attachment;
  attachment.set_name("b");
  calls.clear();
  ASSERT_TRUE(store_->Put(attachment).ok());
  EXPECT_THAT(calls, ElementsAre("sync .b.json.tmp", "rename .b.json.tmp to b.json", "sync attachments"));
}

TEST_F(StateStoreOrderTest, ARemovalIsOnDiskBeforeTheAnswer) {
  state::v1::ExportRecord disk;
  disk.set_name("a");
  ASSERT_TRUE(store_->Put(disk).ok());
  for (int i = 0; i < 2; ++i) {  // Also where an earlier call removed it and went no further.
    calls.clear();
    ASSERT_TRUE(store_->RemoveExport("a").ok());
    EXPECT_THAT(calls, ElementsAre("remove a.json", "sync exports"));
  }
}

}  // namespace
}  // namespace berth::control
