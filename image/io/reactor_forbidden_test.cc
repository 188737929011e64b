// What a reactor says where a container forbids io_uring. Each case runs in a child, as a filter of system
// calls stays for good.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/reactor.h"

namespace berth {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// From now on `number` fails with `error` in this process.
bool Forbid(unsigned number, int error) {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {4, filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// What Create() says in a child in which `prepare()` has run.
template <typename Prepare>
std::string CreateInChild(Prepare prepare) {
  int ends[2];
  EXPECT_EQ(pipe(ends), 0);
  UniqueFd read_end(ends[0]), write_end(ends[1]);
  const pid_t child = fork();
  if (child == 0) {
    const std::string text = prepare() ? Reactor::Create().status().ToString() : "could not prepare";
    const bool written =
        write(write_end.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
    _exit(written ? 0 : 1);
  }
  write_end.Reset();
  std::string text;
  char buffer[4096];
  ssize_t count;
  while ((count = read(read_end.get(), buffer, sizeof(buffer))) > 0) text.append(buffer, count);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  return text;
}

TEST(ReactorForbiddenTest, ByAContainersProfile) {
  EXPECT_THAT(CreateInChild([] { return Forbid(__NR_io_uring_setup, EPERM); }),
              AllOf(HasSubstr("PERMISSION_DENIED"), HasSubstr("io_uring_setup: Operation not permitted"),
                    HasSubstr("kernel.io_uring_disabled"), HasSubstr("seccomp")));
}

// Some profiles pass the first call and not the rest; a reactor that began to run would hang.
TEST(ReactorForbiddenTest, InPart) {
  EXPECT_THAT(CreateInChild([] { return Forbid(__NR_io_uring_register, EPERM); }),
              AllOf(HasSubstr("PERMISSION_DENIED"), HasSubstr("io_uring_register: Operation not permitted")));
  EXPECT_THAT(CreateInChild([] { return Forbid(__NR_io_uring_enter, EPERM); }),
              AllOf(HasSubstr("PERMISSION_DENIED"), HasSubstr("io_uring_enter: Operation not permitted")));
}

TEST(ReactorForbiddenTest, ByAnOldKernel) {
  EXPECT_THAT(CreateInChild([] { return Forbid(__NR_io_uring_setup, ENOSYS); }),
              AllOf(HasSubstr("UNIMPLEMENTED"), HasSubstr("Linux 5.11 or newer")));
}

TEST(ReactorForbiddenTest, WithoutDescriptors) {
  EXPECT_THAT(CreateInChild([] {
                rlimit limit = {0, 0};
                return setrlimit(RLIMIT_NOFILE, &limit) == 0;
              }),
              AllOf(HasSubstr("RESOURCE_EXHAUSTED"), HasSubstr("ulimit -n")));
}

TEST(ReactorForbiddenTest, NothingIsForbiddenHere) {
  EXPECT_EQ(CreateInChild([] { return true; }), "OK");
}

}  // namespace
}  // namespace berth
