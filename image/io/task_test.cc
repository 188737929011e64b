#include "image/io/task.h"

#include <memory>
#include <utility>

#include "gtest/gtest.h"

namespace berth {
namespace {

// Suspends once; the test resumes it.
struct Pause {
  std::coroutine_handle<>* where;
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) const noexcept { *where = handle; }
  void await_resume() const noexcept {}
};

Task<int> Immediately(int value) { co_return value; }

TEST(TaskTest, StartsOnlyWhenAwaited) {
  bool started = false;
  auto body = [&started]() -> Task<void> {
    started = true;
    co_return;
  };
  {
    Task<void> never_awaited = body();
    EXPECT_FALSE(started);
  }
  Spawn(body());
  EXPECT_TRUE(started);
}

TEST(TaskTest, DeliversValuesThroughSuspendedFrames) {
  std::coroutine_handle<> paused;
  int result = 0;
  auto inner = [&paused]() -> Task<std::unique_ptr<int>> {
    co_await Pause{&paused};
    co_return std::make_unique<int>(42);
  };
  auto outer = [&]() -> Task<void> {
    std::unique_ptr<int> value = co_await inner();
    result = *value + co_await Immediately(1);
  };
  Spawn(outer());
  EXPECT_EQ(result, 0);
  paused.resume();
  EXPECT_EQ(result, 43);
}

TEST(TaskTest, ReadyValueNeedsNoFrame) {
  int result = 0;
  auto outer = [&result]() -> Task<void> { result = co_await Task<int>(7); };
  Spawn(outer());
  EXPECT_EQ(result, 7);
}

// g++ 12: symmetric transfer is no tail call at -O0 and under the address sanitizer.
TEST(TaskTest, LongRunsOfSynchronousAwaitsDoNotGrowTheStack) {
  int64_t sum = 0;
  auto loop = [&sum]() -> Task<void> {
    for (int i = 0; i < 2'000'000; ++i) sum += co_await Immediately(1);
  };
  Spawn(loop());
  EXPECT_EQ(sum, 2'000'000);
}

struct CountsDestruction {
  explicit CountsDestruction(int* count) : count(count) {}
  CountsDestruction(CountsDestruction&& other) noexcept : count(std::exchange(other.count, nullptr)) {}
  ~CountsDestruction() {
    if (count != nullptr) ++*count;
  }
  int* count;
};

Task<void> Consume(CountsDestruction) { co_return; }

// g++ 12 destroys a temporary aggregate, or a temporary lambda with captures, once too often when it is a
// by-value argument inside co_await. Arguments with constructors, and arguments that were given a name, are
// destroyed once.
TEST(TaskTest, ArgumentsAreDestroyedOnce) {
  int temporaries = 0, named = 0;
  auto body = [&]() -> Task<void> {
    co_await Consume(CountsDestruction(&temporaries));
    CountsDestruction argument(&named);
    co_await Consume(std::move(argument));
  };
  Spawn(body());
  EXPECT_EQ(temporaries, 1);
  EXPECT_EQ(named, 1);
}

TEST(TaskTest, DestroyingASuspendedTaskDestroysItsFrame) {
  std::coroutine_handle<> paused;
  int destroyed = 0;
  auto inner = [&]() -> Task<void> {
    CountsDestruction local(&destroyed);
    co_await Pause{&paused};
  };
  {
    Task<void> task = inner();
    task.await_suspend(std::noop_coroutine());
    EXPECT_EQ(destroyed, 0);
  }
  EXPECT_EQ(destroyed, 1);
}

}  // namespace
}  // namespace berth
