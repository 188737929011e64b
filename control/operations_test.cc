#include "control/operations.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "berth/v1/images.pb.h"
#include "control/status_details.h"
#include "control/watcher_slots.h"

namespace berth::control {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

// Work that waits until it is let go, or cancelled.
class HeldWork {
 public:
  absl::Status Do(Progress& progress) {
    ++runs;
    progress.SetTotal(10);
    progress.SetDone(3);
    begun_.store(true);
    begun_.notify_all();
    while (!released_) {
      if (heeds_cancel && progress.cancelled()) return absl::CancelledError("3 of 10 were done");
      std::this_thread::yield();
    }
    return result;
  }
  void WaitUntilBegun() { begun_.wait(false); }
  void Release() { released_ = true; }

  std::atomic<int> runs = 0;
  bool heeds_cancel = true;
  absl::Status result;

 private:
  std::atomic<bool> begun_ = false;
  std::atomic<bool> released_ = false;
};

class OperationsTest : public testing::Test {
 protected:
  explicit OperationsTest(OperationsOptions options = {}) : operations_(options, &watchers_, &events_) {}

  // As CreateImage of `path` under `name`; the answer's path says who did the work.
  absl::Status Run(const std::string& name, const std::string& path, HeldWork& work,
                   v1::ImageInfo* answer = nullptr, std::function<bool()> abandoned = nullptr) {
    v1::CreateImageRequest request;
    request.set_path(path);
    v1::ImageInfo unused;
    v1::ImageInfo& made = answer == nullptr ? unused : *answer;
    Operations::Call call;
    call.name = name;
    call.kind = v1::OPERATION_KIND_CREATE_IMAGE;
    call.subject = path;
    call.unit = v1::OPERATION_UNIT_BYTES;
    call.request = &request;
    call.abandoned = std::move(abandoned);
    const auto body = [&](Progress& progress) {
      made.set_path(absl::StrCat("made ", path));
      return work.Do(progress);
    };
    return operations_.Run(call, body, &made);
  }
  absl::Status RunAtOnce(const std::string& name, const std::string& path, absl::Status result = {}) {
    HeldWork work;
    work.result = std::move(result);
    work.Release();
    return Run(name, path, work);
  }
  std::vector<std::string> Names() {
    std::vector<std::string> names;
    for (const v1::Operation& one : operations_.ListPage({"", 100})) names.push_back(one.name());
    return names;
  }

  WatcherSlots watchers_{4};
  EventHub events_{100, "server"};
  Operations operations_;
};

TEST_F(OperationsTest, ShowsWhatRunsAndWhatCameOfIt) {
  HeldWork work;
  v1::ImageInfo answer;
  std::thread caller([&] { EXPECT_TRUE(Run("a", "/disk", work, &answer).ok()); });
  work.WaitUntilBegun();
  v1::Operation shown = *operations_.Get("a");
  EXPECT_EQ(shown.state(), v1::OPERATION_STATE_RUNNING);
  EXPECT_EQ(shown.kind(), v1::OPERATION_KIND_CREATE_IMAGE);
  EXPECT_EQ(shown.subject(), "/disk");
  EXPECT_EQ(shown.done(), 3u);
  EXPECT_EQ(shown.total(), 10u);
  EXPECT_TRUE(shown.has_start_time() && shown.has_update_time());
  EXPECT_FALSE(shown.cancel_requested());
  const Operations::Handle handle = *operations_.Find("a");
  EXPECT_EQ(operations_.WaitForEnd(handle, absl::Now()).state(), v1::OPERATION_STATE_RUNNING);
  work.Release();
  // The end wakes those who wait: this is longer than a test may take.
  shown = operations_.WaitForEnd(handle, absl::Now() + absl::Minutes(10));
  EXPECT_EQ(shown.state(), v1::OPERATION_STATE_SUCCEEDED);
  EXPECT_EQ(shown.done(), 10u);
  EXPECT_FALSE(shown.has_error());
  caller.join();
  EXPECT_EQ(answer.path(), "made /disk");
  EXPECT_TRUE(absl::IsNotFound(operations_.Get("b").status()));
  EXPECT_TRUE(absl::IsNotFound(operations_.Cancel("b").status()));
  const auto event = events_.WaitForNext(0, Soon());
  ASSERT_TRUE(event.ok() && event->has_value());
  EXPECT_EQ((*event)->type(), v1::EVENT_TYPE_OPERATION_ENDED);
  EXPECT_EQ((*event)->operation(), "a");
  EXPECT_EQ((*event)->message(), "create image /disk: succeeded");
}

TEST_F(OperationsTest, TheSameRequestJoinsAndGetsTheSameAnswer) {
  HeldWork work;
  HeldWork never;
  std::vector<std::thread> callers;
  std::vector<v1::ImageInfo> answers(4);
  callers.emplace_back([&] { EXPECT_TRUE(Run("a", "/disk", work, &answers[0]).ok()); });
  work.WaitUntilBegun();
  for (int i = 1; i < 4; ++i) {
    callers.emplace_back([&, i] { EXPECT_TRUE(Run("a", "/disk", never, &answers[i]).ok()); });
  }
  const absl::Status other = Run("a", "/other", never);
  EXPECT_TRUE(absl::IsAlreadyExists(other)) << other;
  EXPECT_THAT(std::string(other.message()), HasSubstr("path: \"/disk\" -> \"/other\""));
  const v1::ResizeImageRequest resize;
  Operations::Call another;
  another.name = "a";
  another.request = &resize;
  v1::ImageInfo unused;
  const absl::Status type = operations_.Run(
      another, [](Progress&) { return absl::OkStatus(); }, &unused);
  EXPECT_TRUE(absl::IsAlreadyExists(type)) << type;
  EXPECT_THAT(std::string(type.message()), HasSubstr("CreateImageRequest -> ResizeImageRequest"));
  work.Release();
  for (std::thread& caller : callers) caller.join();
  for (const v1::ImageInfo& answer : answers) EXPECT_EQ(answer.path(), "made /disk");
  // Afterwards too.
  v1::ImageInfo again;
  EXPECT_TRUE(Run("a", "/disk", never, &again).ok());
  EXPECT_EQ(again.path(), "made /disk");
  EXPECT_EQ(work.runs, 1);
  EXPECT_EQ(never.runs, 0);
}

TEST_F(OperationsTest, AFailureIsTheAnswerToo) {
  HeldWork never;
  for (int i = 0; i < 2; ++i) {
    const absl::Status status =
        i == 0 ? RunAtOnce("a", "/disk", LimitReached("disk", "it is full")) : Run("a", "/disk", never);
    EXPECT_TRUE(absl::IsResourceExhausted(status));
    EXPECT_EQ(ReasonOf(status), "LIMIT_REACHED");
  }
  EXPECT_EQ(never.runs, 0);
  const v1::Operation shown = *operations_.Get("a");
  EXPECT_EQ(shown.state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(shown.error().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(shown.error().reason(), "LIMIT_REACHED");
  EXPECT_EQ(shown.error().message(), "it is full");
  EXPECT_EQ((*events_.WaitForNext(0, Soon()))->message(), "create image /disk: failed: it is full");
  // What is kept of it is bounded.
  EXPECT_FALSE(RunAtOnce("b", "/disk", absl::InternalError(std::string(100000, 'x'))).ok());
  EXPECT_LE(operations_.Get("b")->error().message().size(), 1024u);
}

TEST_F(OperationsTest, CancelEndsTheWorkForAllWhoWait) {
  HeldWork work;
  HeldWork never;
  std::vector<absl::Status> ends(2);
  std::thread first([&] { ends[0] = Run("a", "/disk", work); });
  work.WaitUntilBegun();
  std::thread second([&] { ends[1] = Run("a", "/disk", never); });
  EXPECT_TRUE(operations_.Cancel("a")->cancel_requested());
  first.join();
  second.join();
  for (const absl::Status& end : ends) {
    EXPECT_TRUE(absl::IsCancelled(end)) << end;
    EXPECT_EQ(ReasonOf(end), "OPERATION_CANCELLED");
  }
  EXPECT_EQ(never.runs, 0);
  const v1::Operation shown = *operations_.Cancel("a");  // Once more changes nothing.
  EXPECT_EQ(shown.state(), v1::OPERATION_STATE_CANCELLED);
  EXPECT_EQ(shown.done(), 3u);
  EXPECT_EQ(shown.error().reason(), "OPERATION_CANCELLED");
}

TEST_F(OperationsTest, CancelOfWhatIsDoneChangesNothing) {
  ASSERT_TRUE(RunAtOnce("a", "/disk").ok());
  const v1::Operation shown = *operations_.Cancel("a");
  EXPECT_EQ(shown.state(), v1::OPERATION_STATE_SUCCEEDED);
  EXPECT_FALSE(shown.cancel_requested());
}

TEST_F(OperationsTest, ACallerThatHangsUpEndsOnlyUnnamedWork) {
  std::atomic<bool> gone = false;
  const auto abandoned = [&gone] { return gone.load(); };
  HeldWork unnamed;
  HeldWork named;
  absl::Status unnamed_end;
  std::thread first([&] { unnamed_end = Run("", "/disk", unnamed, nullptr, abandoned); });
  std::thread second([&] { EXPECT_TRUE(Run("a", "/disk", named, nullptr, abandoned).ok()); });
  unnamed.WaitUntilBegun();
  named.WaitUntilBegun();
  EXPECT_THAT(Names(), ElementsAre("a"));
  gone = true;
  first.join();
  EXPECT_TRUE(absl::IsCancelled(unnamed_end)) << unnamed_end;
  // Whoever joined and hung up is let go; the work is not.
  HeldWork never;
  EXPECT_TRUE(absl::IsCancelled(Run("a", "/disk", never, nullptr, abandoned)));
  EXPECT_EQ(operations_.Get("a")->state(), v1::OPERATION_STATE_RUNNING);
  named.Release();
  second.join();
  EXPECT_EQ(operations_.Get("a")->state(), v1::OPERATION_STATE_SUCCEEDED);
}

TEST_F(OperationsTest, AStopCancelsAllAndSaysThatItCameBack) {
  HeldWork named;
  HeldWork unnamed;
  std::vector<absl::Status> ends(3);
  std::thread first([&] { ends[0] = Run("a", "/disk", named); });
  std::thread second([&] { ends[1] = Run("", "/disk", unnamed); });
  named.WaitUntilBegun();
  unnamed.WaitUntilBegun();
  HeldWork never;
  std::thread third([&] { ends[2] = Run("a", "/disk", never); });
  operations_.Close();
  first.join();
  second.join();
  third.join();
  for (const absl::Status& end : ends) {
    EXPECT_TRUE(absl::IsUnavailable(end)) << end;
    EXPECT_EQ(ReasonOf(end), "SERVER_STOPPING");
  }
  EXPECT_EQ(operations_.Get("a")->state(), v1::OPERATION_STATE_CANCELLED);
  EXPECT_TRUE(absl::IsUnavailable(Run("b", "/disk", never)));
  EXPECT_TRUE(absl::IsUnavailable(Run("", "/disk", never)));
  EXPECT_EQ(never.runs, 0);
}

// Work may be in a system call that takes its time.
TEST_F(OperationsTest, AStopDoesNotKeepThoseWhoJoined) {
  std::atomic<bool> joins = false;
  HeldWork never;
  HeldWork work;
  work.heeds_cancel = false;
  std::thread first([&] { EXPECT_TRUE(Run("a", "/disk", work).ok()); });
  work.WaitUntilBegun();
  absl::Status joined;
  std::thread second([&] {
    joined = Run("a", "/disk", never, nullptr, [&joins] {
      joins = true;
      joins.notify_all();
      return false;
    });
  });
  joins.wait(false);
  operations_.Close();
  second.join();
  EXPECT_EQ(ReasonOf(joined), "SERVER_STOPPING") << joined;
  EXPECT_EQ(operations_.Get("a")->state(), v1::OPERATION_STATE_RUNNING);
  work.Release();
  first.join();
}

TEST_F(OperationsTest, ListsComeInPagesInTheOrderOfNames) {
  for (const char* name : {"c", "a", "d", "b"}) ASSERT_TRUE(RunAtOnce(name, "/disk").ok());
  EXPECT_THAT(Names(), ElementsAre("a", "b", "c", "d"));
  const std::vector<v1::Operation> page = operations_.ListPage({"a", 2});
  ASSERT_EQ(page.size(), 2u);
  EXPECT_EQ(page[0].name(), "b");
  EXPECT_EQ(page[1].name(), "c");
}

TEST_F(OperationsTest, WaitersAreBounded) {
  WatcherSlots none(0);
  Operations operations(OperationsOptions(), &none, nullptr);
  v1::CreateImageRequest request;
  Operations::Call call;
  call.name = "a";
  call.request = &request;
  v1::ImageInfo answer;
  HeldWork work;
  std::thread first([&] {
    EXPECT_TRUE(operations
                    .Run(
                        call, [&](Progress& p) { return work.Do(p); }, &answer)
                    .ok());
  });
  work.WaitUntilBegun();
  v1::ImageInfo other;
  const absl::Status refused = operations.Run(
      call, [](Progress&) { return absl::OkStatus(); }, &other);
  EXPECT_EQ(ReasonOf(refused), "LIMIT_REACHED") << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("--max-watchers"));
  work.Release();
  first.join();
  // An answer that is there needs no wait.
  EXPECT_TRUE(operations
                  .Run(
                      call, [](Progress&) { return absl::OkStatus(); }, &other)
                  .ok());
}

TEST(WatcherSlotsTest, ASlotIsOnePlaceForAsLongAsItLives) {
  WatcherSlots slots(1);
  for (int i = 0; i < 2; ++i) {
    absl::StatusOr<WatcherSlots::Slot> taken = slots.Take();
    ASSERT_TRUE(taken.ok()) << taken.status();
    const WatcherSlots::Slot moved = *std::move(taken);
    taken = absl::CancelledError("its place is where it was moved to");
    for (int refused = 0; refused < 2; ++refused) {
      EXPECT_TRUE(absl::IsResourceExhausted(slots.Take().status()));
    }
  }
}

class SmallOperationsTest : public OperationsTest {
 protected:
  SmallOperationsTest() : OperationsTest({.max_running = 1, .max_kept = 2, .keep = absl::Hours(1000)}) {}
};

TEST_F(SmallOperationsTest, SoManyRunAndSoManyAreKept) {
  HeldWork work;
  std::thread caller([&] { EXPECT_TRUE(Run("running", "/disk", work).ok()); });
  work.WaitUntilBegun();
  for (const char* name : {"more", ""}) {
    const absl::Status status = RunAtOnce(name, "/disk");
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_EQ(ReasonOf(status), "LIMIT_REACHED");
  }
  work.Release();
  caller.join();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(RunAtOnce(absl::StrCat("n", i), "/disk").ok());
  EXPECT_THAT(Names(), ElementsAre("n1", "n2"));
  // What has no name takes nobody's place.
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(RunAtOnce("", "/disk").ok());
  EXPECT_THAT(Names(), ElementsAre("n1", "n2"));
  // A name that is forgotten is free again, for other work.
  EXPECT_TRUE(RunAtOnce("running", "/other").ok());
  EXPECT_THAT(Names(), ElementsAre("n2", "running"));
}

class ForgetfulOperationsTest : public OperationsTest {
 protected:
  ForgetfulOperationsTest() : OperationsTest({.keep = absl::ZeroDuration()}) {}
};

TEST_F(ForgetfulOperationsTest, WhatIsOldIsForgottenButNotForThoseWhoWatch) {
  HeldWork work;
  std::thread caller([&] { EXPECT_TRUE(Run("a", "/disk", work).ok()); });
  work.WaitUntilBegun();
  const Operations::Handle handle = *operations_.Find("a");
  work.Release();
  caller.join();
  EXPECT_EQ(operations_.WaitForEnd(handle, Soon()).state(), v1::OPERATION_STATE_SUCCEEDED);
  EXPECT_TRUE(absl::IsNotFound(operations_.Get("a").status()));
  EXPECT_THAT(Names(), ElementsAre());
}

// Callers, watchers and those who cancel, on a few names at once: every call ends, each with the one answer
// of its operation.
TEST_F(OperationsTest, ManyAtOnce) {
  constexpr int kRounds = 30;
  for (int round = 0; round < kRounds; ++round) {
    const std::string name = absl::StrCat("n", round);
    std::atomic<int> runs = 0;
    std::vector<absl::Status> ends(4);
    std::vector<std::thread> threads;
    for (absl::Status& end : ends) {
      threads.emplace_back([&] {
        v1::CreateImageRequest request;
        request.set_path("/disk");
        v1::ImageInfo answer;
        Operations::Call call;
        call.name = name;
        call.request = &request;
        end = operations_.Run(
            call,
            [&](Progress& progress) -> absl::Status {
              ++runs;
              progress.SetTotal(1000);
              for (uint64_t done = 0; done < 1000; ++done) {
                if (progress.cancelled()) return absl::CancelledError("cancelled");
                progress.SetDone(done);
              }
              answer.set_path("made");
              return absl::OkStatus();
            },
            &answer);
        if (end.ok()) {
          EXPECT_EQ(answer.path(), "made");
        }
      });
    }
    threads.emplace_back([&] {
      while (!operations_.Cancel(name).ok()) std::this_thread::yield();
    });
    threads.emplace_back([&] {
      absl::StatusOr<Operations::Handle> handle = operations_.Find(name);
      while (!handle.ok()) handle = operations_.Find(name);
      uint64_t last = 0;
      while (true) {
        const v1::Operation shown = operations_.WaitForEnd(*handle, absl::Now());
        EXPECT_GE(shown.done(), last);
        last = shown.done();
        if (shown.state() != v1::OPERATION_STATE_RUNNING) break;
      }
    });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(runs, 1);
    for (const absl::Status& end : ends) EXPECT_EQ(end.code(), ends[0].code());
    EXPECT_TRUE(ends[0].ok() || absl::IsCancelled(ends[0])) << ends[0];
  }
}

}  // namespace
}  // namespace berth::control
