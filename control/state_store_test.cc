#include "control/state_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <sstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"

namespace berth::control {
namespace {

using testing::HasSubstr;

class StateStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = testing::TempDir() + "/state.XXXXXX";
    ASSERT_NE(mkdtemp(directory_.data()), nullptr);
    Open();
  }
  void TearDown() override {
    store_.reset();
    std::filesystem::remove_all(directory_);
  }

  void Open() {
    store_.reset();
    auto store = StateStore::Open(directory_);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  static state::v1::ExportRecord Record(const std::string& name, const std::string& description = "") {
    state::v1::ExportRecord record;
    record.set_name(name);
    record.mutable_spec()->set_description(description);
    record.mutable_spec()->mutable_image()->set_size_bytes(uint64_t{1} << 62);
    return record;
  }

  std::string FileOf(const std::string& name) const { return directory_ + "/exports/" + name + ".json"; }
  static std::string Read(const std::string& path) {
    std::ostringstream content;
    content << std::ifstream(path).rdbuf();
    return content.str();
  }

  // The one object there is cannot be read, for a reason that names its file; and the file stays as it is.
  void ExpectUnreadable(const std::string& content, const std::string& reason) {
    std::ofstream(FileOf("a"), std::ios::trunc) << content;
    Open();
    const auto objects = store_->LoadExports();
    ASSERT_TRUE(objects.ok()) << objects.status();
    ASSERT_EQ(objects->size(), 1u);
    EXPECT_EQ((*objects)[0].name, "a");
    const absl::Status error = (*objects)[0].record.status();
    EXPECT_FALSE(error.ok());
    EXPECT_THAT(std::string(error.message()), HasSubstr(FileOf("a")));
    EXPECT_THAT(std::string(error.message()), HasSubstr(reason));
    EXPECT_EQ(Read(FileOf("a")), content);
  }

  std::string directory_;
  std::unique_ptr<StateStore> store_;
};

TEST_F(StateStoreTest, KeepsObjectsAndItsIdentity) {
  const std::string id = store_->instance_id();
  EXPECT_EQ(id.size(), 32u);
  ASSERT_TRUE(store_->Put(Record("b", "second")).ok());
  ASSERT_TRUE(store_->Put(Record("a", "first")).ok());
  ASSERT_TRUE(store_->Put(Record("b", "changed")).ok());
  Open();
  EXPECT_EQ(store_->instance_id(), id);
  const auto objects = store_->LoadExports();
  ASSERT_TRUE(objects.ok()) << objects.status();
  ASSERT_EQ(objects->size(), 2u);
  EXPECT_EQ((*objects)[0].record->spec().description(), "first");
  EXPECT_EQ((*objects)[1].record->spec().description(), "changed");
  EXPECT_EQ((*objects)[1].record->spec().image().size_bytes(), uint64_t{1} << 62);
  ASSERT_TRUE(store_->RemoveExport("a").ok());
  ASSERT_TRUE(store_->RemoveExport("a").ok());
  EXPECT_EQ(store_->LoadExports()->size(), 1u);
}

TEST_F(StateStoreTest, LongestName) {
  const std::string name(200, 'x');
  ASSERT_TRUE(store_->Put(Record(name)).ok());
  ASSERT_EQ(store_->LoadExports()->size(), 1u);
  EXPECT_EQ((*store_->LoadExports())[0].record->name(), name);
}

TEST_F(StateStoreTest, TornEmptyForeignAndNewerFiles) {
  ASSERT_TRUE(store_->Put(Record("a")).ok());
  const std::string whole = Read(FileOf("a"));
  ExpectUnreadable(whole.substr(0, whole.size() / 2), "is damaged");
  ExpectUnreadable("", "is empty");
  ExpectUnreadable(std::string(100, '\0'), "is damaged");
  ExpectUnreadable("{}", "no format_version");
  ExpectUnreadable("[1, 2]", "is damaged");
  ExpectUnreadable(R"({"format_version": 1, "name": "other"})", "holds the object");
  ExpectUnreadable(R"({"format_version": 1, "name": "a", "surprise": 1})", "is damaged");
  ExpectUnreadable(R"({"format_version": 2, "name": "a", "surprise": 1})", "format version 2");
  ExpectUnreadable(std::string(3 << 20, ' '), "longer than");
}

TEST_F(StateStoreTest, WhatIsNoRegularFileIsNotRead) {
  ASSERT_EQ(mkfifo(FileOf("fifo").c_str(), 0600), 0);
  ASSERT_EQ(symlink("/etc/passwd", FileOf("link").c_str()), 0);
  ASSERT_EQ(mkdir(FileOf("directory").c_str(), 0700), 0);
  const auto objects = store_->LoadExports();
  ASSERT_TRUE(objects.ok());
  ASSERT_EQ(objects->size(), 3u);
  for (const auto& object : *objects) EXPECT_FALSE(object.record.ok()) << object.name;
}

// An object of such a name could neither be shown nor deleted through the API.
TEST_F(StateStoreTest, WhatHasNoNameOfOursIsIgnored) {
  ASSERT_TRUE(store_->Put(Record("a")).ok());
  for (const std::string name : {"\xff", "a b", "-x", "a\nINFO forged"}) std::ofstream(FileOf(name)) << "{}";
  Open();
  const auto objects = store_->LoadExports();
  ASSERT_TRUE(objects.ok()) << objects.status();
  ASSERT_EQ(objects->size(), 1u);
  EXPECT_EQ((*objects)[0].name, "a");
  EXPECT_TRUE(std::filesystem::exists(FileOf("a b")));
}

TEST_F(StateStoreTest, WhatACrashLeftHalfWrittenIsDropped) {
  ASSERT_TRUE(store_->Put(Record("a", "whole")).ok());
  const std::string temporary = directory_ + "/exports/.a.json.tmp";
  std::ofstream(temporary) << "{\"form";
  Open();
  EXPECT_NE(access(temporary.c_str(), F_OK), 0);
  EXPECT_EQ((*store_->LoadExports())[0].record->spec().description(), "whole");
}

TEST_F(StateStoreTest, OneBerthdAtATime) {
  const auto second = StateStore::Open(directory_);
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(directory_));
  store_.reset();
  EXPECT_TRUE(StateStore::Open(directory_).ok());
}

TEST_F(StateStoreTest, ADamagedIdentityIsNotReplaced) {
  store_.reset();
  const std::string path = directory_ + "/instance-id";
  for (const std::string content : {"", "abc\n", "0123456789abcdef0123456789abcdeX\n"}) {
    std::ofstream(path, std::ios::trunc) << content;
    const auto opened = StateStore::Open(directory_);
    EXPECT_TRUE(absl::IsDataLoss(opened.status())) << opened.status();
    EXPECT_THAT(std::string(opened.status().message()), HasSubstr(path));
    EXPECT_EQ(Read(path), content);
  }
}

TEST_F(StateStoreTest, AFailedWriteLeavesTheOldObject) {
  ASSERT_TRUE(store_->Put(Record("a", "old")).ok());
  // A limit on the size of files fails a write as a full disk does.
  signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small = {.rlim_cur = 64, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status status = store_->Put(Record("a", std::string(1000, 'n')));
  const absl::Status fresh = store_->Put(Record("b", std::string(1000, 'n')));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(FileOf("a")));
  EXPECT_FALSE(fresh.ok());
  const auto objects = store_->LoadExports();
  ASSERT_EQ(objects->size(), 1u);
  EXPECT_EQ((*objects)[0].record->spec().description(), "old");
  EXPECT_NE(access((directory_ + "/exports/.a.json.tmp").c_str(), F_OK), 0) << "it takes a full disk's space";
  EXPECT_TRUE(store_->Put(Record("a", "new")).ok());
}

TEST_F(StateStoreTest, ADirectoryThatCannotBeMadeIsNamed) {
  const auto opened = StateStore::Open("/proc/no/such");
  EXPECT_THAT(std::string(opened.status().message()), HasSubstr("/proc/no/such"));
}

// A process that was killed, and which nobody has waited for yet.
class Zombie {
 public:
  Zombie() : pid_(fork()) {
    if (pid_ == 0) _exit(0);
    siginfo_t info;
    EXPECT_EQ(waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT), 0);
  }
  ~Zombie() { waitpid(pid_, nullptr, 0); }
  pid_t pid() const { return pid_; }

 private:
  const pid_t pid_;
};

TEST_F(StateStoreTest, ABerthdThatRunsIsNotWaitedFor) {
  const auto second = StateStore::Open(directory_);
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(absl::StrCat("(pid ", getpid(), ")")));
}

// Its last threads are still in the kernel, where they hold the lock.
TEST_F(StateStoreTest, ABerthdThatWasKilledIsWaitedFor) {
  const Zombie killed;
  std::ofstream(directory_ + "/lock", std::ios::trunc) << killed.pid() << "\n";
  std::promise<void> opened;
  std::thread next([&] {
    const auto store = StateStore::Open(directory_);
    EXPECT_TRUE(store.ok()) << store.status();
    opened.set_value();
  });
  // It has found the lock held: else it would be through.
  const std::filesystem::path name = std::filesystem::path(directory_).filename();
  const auto opens_of_the_lock = [&name] {
    int count = 0;
    for (const auto& fd : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code gone;
      const std::filesystem::path open = std::filesystem::read_symlink(fd.path(), gone);
      if (open.filename() == "lock" && open.parent_path().filename() == name) ++count;
    }
    return count;
  };
  while (opens_of_the_lock() < 2) std::this_thread::yield();
  std::future<void> done = opened.get_future();
  EXPECT_EQ(done.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
  store_.reset();
  next.join();
}

}  // namespace
}  // namespace berth::control
