#include "netlink/call_thread.h"

#include <condition_variable>
#include <mutex>
#include <thread>

#include "gtest/gtest.h"

namespace berth::netlink {
namespace {

// Opens once.
class Door {
 public:
  void Open() {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void Pass() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
};

constexpr absl::Duration kLong = absl::Minutes(2);

TEST(CallThreadTest, HandsOnTheResult) {
  CallThread thread("test");
  EXPECT_TRUE(thread.Run("a", kLong, [] { return absl::OkStatus(); }).ok());
  EXPECT_EQ(thread.Run("b", kLong, [] { return absl::NotFoundError("x"); }).message(), "x");
}

TEST(CallThreadTest, OneThreadServesAllCalls) {
  CallThread thread("test");
  std::thread::id first, second;
  ASSERT_TRUE(
      thread.Run("a", kLong, [&] { return first = std::this_thread::get_id(), absl::OkStatus(); }).ok());
  ASSERT_TRUE(
      thread.Run("b", kLong, [&] { return second = std::this_thread::get_id(), absl::OkStatus(); }).ok());
  EXPECT_EQ(first, second);
  EXPECT_NE(first, std::this_thread::get_id());
}

TEST(CallThreadTest, WhatACallOwnsIsGoneWhenRunReturns) {
  CallThread thread("test");
  auto owned = std::make_shared<int>(1);
  const std::weak_ptr<int> seen = owned;
  ASSERT_TRUE(thread.Run("a", kLong, [owned = std::move(owned)] { return absl::OkStatus(); }).ok());
  EXPECT_TRUE(seen.expired());
}

TEST(CallThreadTest, HangingCallIsNamedAndUndone) {
  auto door = std::make_shared<Door>();
  auto undone = std::make_shared<Door>();
  CallThread thread("test");
  const absl::Status late = thread.Run(
      "connect nbd7", absl::Milliseconds(1),
      [door] {
        door->Pass();
        return absl::OkStatus();
      },
      [undone] { undone->Open(); });
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_NE(late.message().find("connect nbd7"), absl::string_view::npos) << late;

  bool ran = false;
  const absl::Status refused =
      thread.Run("disconnect nbd1", kLong, [&] { return ran = true, absl::OkStatus(); });
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(refused.message().find("connect nbd7"), absl::string_view::npos) << refused;
  EXPECT_FALSE(ran);

  door->Open();
  undone->Pass();
  // The thread is idle a moment after the undo.
  while (absl::IsUnavailable(thread.Run("again", kLong, [] { return absl::OkStatus(); })))
    std::this_thread::yield();
}

TEST(CallThreadTest, FailureIsNotUndone) {
  auto door = std::make_shared<Door>();
  auto undone = std::make_shared<bool>(false);
  CallThread thread("test");
  EXPECT_TRUE(absl::IsDeadlineExceeded(thread.Run(
      "a", absl::Milliseconds(1),
      [door] {
        door->Pass();
        return absl::InternalError("no");
      },
      [undone] { *undone = true; })));
  door->Open();
  while (absl::IsUnavailable(thread.Run("b", kLong, [] { return absl::OkStatus(); })))
    std::this_thread::yield();
  EXPECT_FALSE(*undone);
}

TEST(CallThreadTest, ThoseWhoWaitLearnAtOnceThatACallHangs) {
  auto door = std::make_shared<Door>();
  Door running;
  absl::Status behind;
  CallThread thread("test");
  std::thread waiter([&] {
    running.Pass();
    behind = thread.Run("b", kLong, [] { return absl::OkStatus(); });
  });
  EXPECT_TRUE(absl::IsDeadlineExceeded(thread.Run("a", absl::Milliseconds(50), [door, &running] {
    running.Open();
    door->Pass();
    return absl::OkStatus();
  })));
  waiter.join();
  EXPECT_TRUE(absl::IsUnavailable(behind)) << behind;
  door->Open();
}

TEST(CallThreadTest, DestructorDoesNotWaitForAHangingCall) {
  auto door = std::make_shared<Door>();
  auto undone = std::make_shared<Door>();
  {
    CallThread thread("test");
    EXPECT_TRUE(absl::IsDeadlineExceeded(thread.Run(
        "a", absl::Milliseconds(1),
        [door] {
          door->Pass();
          return absl::OkStatus();
        },
        [undone] { undone->Open(); })));
  }
  door->Open();
  undone->Pass();
}

}  // namespace
}  // namespace berth::netlink
