#include "image/raw/flush_group.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "image/io/gate.h"
#include "image/io/reactor_pool.h"
#include "image/raw/temporary_image.h"

namespace berth {
namespace {

File FileOf(const std::string& path) { return File(UniqueFd(open(path.c_str(), O_RDWR | O_CLOEXEC)), path); }

// Starts `count` flushes at once on each reactor and counts what comes out.
struct Counts {
  std::atomic<int> ok = 0, eio = 0, other = 0;
};
void FlushTogether(FlushGroup& group, ReactorPool& reactors, int count, Counts* counts) {
  std::vector<std::thread> threads;
  for (size_t r = 0; r < reactors.size(); ++r) {
    threads.emplace_back([&, r] {
      Reactor& reactor = reactors.at(r);
      auto run = [&]() -> Task<void> {
        Gate gate(reactor);
        for (int i = 0; i < count; ++i) {
          Spawn([](FlushGroup& flushes, Reactor& ring, Counts* sums, Gate::Holder) -> Task<void> {
            const IoResult result = co_await flushes.Flush(ring);
            ++(result.ok() ? sums->ok : result.error == EIO ? sums->eio : sums->other);
          }(group, reactor, counts, gate.Enter()));
        }
        co_await gate.Close();
      };
      RunOn(reactor, run);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(FlushGroupTest, EverybodyGetsAnAnswerOnItsReactor) {
  auto reactors = ReactorPool::Create(3);
  ASSERT_TRUE(reactors.ok());
  TemporaryImage image(DiskDirectory(), 4096);
  const File file = FileOf(image.path());
  FlushGroup group(file);
  Counts counts;
  FlushTogether(group, **reactors, 200, &counts);
  EXPECT_EQ(counts.ok, 600);
}

TEST(FlushGroupTest, AFailureIsRemembered) {
  auto reactors = ReactorPool::Create(2);
  ASSERT_TRUE(reactors.ok());
  TemporaryImage image(DiskDirectory(), 4096);
  // The file's descriptor becomes one that cannot be synced, and then a good one again.
  const File file = FileOf(image.path());
  const UniqueFd good(dup(file.fd()));
  int pipe_fds[2];
  ASSERT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
  const UniqueFd reading(pipe_fds[0]), writing(pipe_fds[1]);
  ASSERT_EQ(dup3(writing.get(), file.fd(), O_CLOEXEC), file.fd());

  FlushGroup group(file);
  Counts counts;
  FlushTogether(group, **reactors, 50, &counts);
  EXPECT_EQ(counts.ok, 0);
  EXPECT_GE(counts.other, 1);  // EINVAL for those who shared the first one.
  EXPECT_EQ(counts.other + counts.eio, 100);

  ASSERT_EQ(dup3(good.get(), file.fd(), O_CLOEXEC), file.fd());
  ASSERT_EQ(fdatasync(file.fd()), 0);
  Counts later;
  FlushTogether(group, **reactors, 10, &later);
  EXPECT_EQ(later.eio, 20);
}

}  // namespace
}  // namespace berth
