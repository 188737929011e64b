#include "netlink/child_call.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <new>
#include <string>
#include <thread>

namespace berth::netlink {
namespace {

TEST(ChildCallTest, TheStatusComesBack) {
  EXPECT_TRUE(RunInChild([] { return absl::OkStatus(); }).ok());
  const absl::Status status = RunInChild([] { return absl::NotFoundError("there is no /dev/nbd7"); });
  EXPECT_EQ(status, absl::NotFoundError("there is no /dev/nbd7"));
  const absl::Status longer = RunInChild([] { return absl::InternalError(std::string(100000, 'x')); });
  EXPECT_EQ(longer, absl::InternalError(std::string(2000, 'x')));
}

TEST(ChildCallTest, ItIsAnotherProcess) {
  int changed = 0;
  const pid_t parent = getpid();
  EXPECT_TRUE(RunInChild([&] {
                ++changed;
                return getpid() == parent ? absl::InternalError("the same") : absl::OkStatus();
              }).ok());
  EXPECT_EQ(changed, 0);
}

TEST(ChildCallTest, AKilledChildIsAnError) {
  const absl::Status status = RunInChild([]() -> absl::Status {
    raise(SIGKILL);
    return absl::OkStatus();
  });
  EXPECT_TRUE(absl::IsInternal(status)) << status;
}

// What the other end of a socket sees while a child hangs: that this process closed its own.
TEST(ChildCallTest, AChildThatHangsHoldsNoDescriptor) {
  struct Shared {
    std::atomic<bool> runs = false;
    std::atomic<bool> go_on = false;
  };
  void* const page = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  auto* const shared = new (page) Shared;
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  std::thread hangs([shared] {
    EXPECT_TRUE(RunInChild([shared] {
                  shared->runs = true;
                  while (!shared->go_on) usleep(1000);
                  return absl::OkStatus();
                }).ok());
  });
  while (!shared->runs) std::this_thread::yield();
  close(ends[0]);
  pollfd polled = {ends[1], POLLRDHUP, 0};
  EXPECT_EQ(poll(&polled, 1, 0), 1);
  shared->go_on = true;
  hangs.join();
  close(ends[1]);
  munmap(page, sizeof(Shared));
}

}  // namespace
}  // namespace berth::netlink
