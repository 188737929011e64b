// Who is let in on the Unix socket. Outside Bazel's sandbox, in which there is one user only.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "control/berthd_process.h"

namespace berth::control {
namespace {

using testing::HasSubstr;

// Connects as `uid` and says whether gRPC speaks first, as it does to whom it lets in.
bool IsLetIn(const std::string& path, uid_t uid) {
  const pid_t child = fork();
  if (child == 0) {
    sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
    strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char byte;
    if (setuid(uid) != 0 || connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)
      _exit(2);
    pollfd polled = {.fd = fd, .events = POLLIN, .revents = 0};
    if (poll(&polled, 1, 30000) != 1) _exit(3);
    _exit(read(fd, &byte, 1) == 1 ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) <= 1) << status;
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST(PeerCredentialsTest, PeersAreCheckedWhenTheyConnect) {
  ASSERT_EQ(geteuid(), 0u) << "needs root, to be somebody else";
  BerthdProcess berthd;
  ASSERT_EQ(chmod(berthd.directory().c_str(), 0755), 0);
  ASSERT_TRUE(berthd.Start({"--allow-uid=4711"}));
  EXPECT_TRUE(IsLetIn(berthd.rpc_path(), 0));
  EXPECT_TRUE(IsLetIn(berthd.rpc_path(), 4711));
  EXPECT_FALSE(IsLetIn(berthd.rpc_path(), 4712));
  EXPECT_THAT(berthd.log(), HasSubstr("client refused uid=4712"));
}

}  // namespace
}  // namespace berth::control
