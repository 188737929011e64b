// The programme itself: top on a terminal, completion in a shell, a pipe whose reader is gone.
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "control/berthctl/fake_berthd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/unique_fd.h"

namespace berth::berthctl {
namespace {

using testing::HasSubstr;

constexpr char kBerthctl[] = "control/berthctl/berthctl";
constexpr absl::Duration kPatience = absl::Seconds(30);

// berthctl with a terminal of its own, 30 lines of 100 columns.
class Terminal {
 public:
  explicit Terminal(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), kBerthctl);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const winsize window = {30, 100, 0, 0};
    int master = -1;
    pid_ = forkpty(&master, nullptr, nullptr, &window);
    if (pid_ == 0) {
      execv(kBerthctl, argv.data());
      _exit(127);
    }
    master_.Reset(master);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;
  ~Terminal() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
  }

  // Reads until `text` was printed; false when it does not come.
  bool WaitFor(const std::string& text) {
    const absl::Time end = absl::Now() + kPatience;
    while (output_.find(text) == std::string::npos) {
      if (absl::Now() > end || !Read()) return false;
    }
    return true;
  }

  void Type(const std::string& keys) {
    ASSERT_EQ(write(master_.get(), keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
  }

  void Send(int signal) { kill(pid_, signal); }

  // The exit status, after reading all output; -1 when it does not end.
  int Wait() {
    const absl::Time end = absl::Now() + kPatience;
    while (Read()) {
      if (absl::Now() > end) return -1;
    }
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  const std::string& output() const { return output_; }

 private:
  bool Read() {
    pollfd ready = {master_.get(), POLLIN, 0};
    if (poll(&ready, 1, 1000) == 0) return true;
    std::array<char, 4096> buffer;
    const ssize_t count = read(master_.get(), buffer.data(), buffer.size());
    if (count <= 0) return false;
    output_.append(buffer.data(), static_cast<size_t>(count));
    return true;
  }

  pid_t pid_ = -1;
  UniqueFd master_;
  std::string output_;
};

std::string Shell(const std::string& script) {
  FILE* pipe = popen(absl::StrCat("bash -c '", script, "' 2>&1").c_str(), "r");
  if (pipe == nullptr) return "";
  std::string output;
  std::array<char, 4096> buffer;
  while (const size_t count = fread(buffer.data(), 1, buffer.size(), pipe))
    output.append(buffer.data(), count);
  pclose(pipe);
  return output;
}

class ProgramTest : public testing::Test {
 protected:
  ProgramTest() {
    // 7,000 reads within a second, and nothing afterwards.
    for (int i = 0; i < 2; ++i) {
      v1::GetStatisticsResponse& answer = fake_.statistics.emplace_back();
      answer.mutable_time()->set_seconds(1000 + i);
      v1::ExportStatistics& disk = *answer.add_exports();
      disk.set_export_("the-disk");
      v1::OperationStatistics& read = *disk.add_operations();
      read.set_operation(v1::IO_OPERATION_READ);
      read.set_completed(7000 * i);
    }
    fake_.exports["alpha"].set_name("alpha");
    fake_.exports["beta"].set_name("beta");
    fake_.operations["make-db"].set_name("make-db");
  }

  std::string EndpointOption() { return absl::StrCat("--endpoint=", fake_.endpoint()); }

  FakeBerthd fake_;
};

TEST_F(ProgramTest, TopDrawsATableUntilQ) {
  Terminal terminal({"top", "--interval=100ms", EndpointOption()});
  ASSERT_TRUE(terminal.WaitFor("7000")) << terminal.output();
  EXPECT_THAT(terminal.output(), HasSubstr("\033[?1049h"));
  EXPECT_THAT(terminal.output(), HasSubstr("the-disk  read"));
  terminal.Type("xq");
  EXPECT_EQ(terminal.Wait(), 0) << terminal.output();
  EXPECT_THAT(terminal.output(), testing::EndsWith("\033[?25h\033[?1049l"));
}

TEST_F(ProgramTest, TopGivesTheTerminalBackOnCtrlC) {
  Terminal terminal({"top", EndpointOption()});
  ASSERT_TRUE(terminal.WaitFor("OPERATION")) << terminal.output();
  terminal.Type("\003");
  EXPECT_EQ(terminal.Wait(), 0) << terminal.output();
  EXPECT_THAT(terminal.output(), testing::EndsWith("\033[?25h\033[?1049l"));
}

TEST_F(ProgramTest, TopTellsAnErrorAfterTheTable) {
  Terminal terminal({"top", "--interval=50ms", EndpointOption()});
  ASSERT_TRUE(terminal.WaitFor("OPERATION")) << terminal.output();
  fake_.FailNext(grpc::Status(grpc::StatusCode::INTERNAL, "out of order"));
  EXPECT_EQ(terminal.Wait(), 1) << terminal.output();
  EXPECT_THAT(terminal.output(), HasSubstr("\033[?1049lberthctl: top: out of order"));
}

class PreallocationTest : public ProgramTest {
 protected:
  PreallocationTest() {
    v1::Operation& now = fake_.progress.emplace_back();
    now.set_state(v1::OPERATION_STATE_RUNNING);
    now.set_unit(v1::OPERATION_UNIT_BYTES);
    now.set_done(uint64_t{3} << 30);
    now.set_total(uint64_t{4} << 30);
  }

  Terminal Create(std::vector<std::string> options = {}) {
    options.insert(options.begin(), {"image", "create", "/d", "4G", "--preallocate", EndpointOption()});
    return Terminal(std::move(options));
  }
};

TEST_F(PreallocationTest, ABarOnATerminal) {
  Terminal terminal = Create();
  ASSERT_TRUE(terminal.WaitFor("##")) << terminal.output();
  ASSERT_TRUE(terminal.WaitFor(" 75%  3 GiB of 4 GiB")) << terminal.output();
  fake_.EndOperation();
  EXPECT_EQ(terminal.Wait(), 0) << terminal.output();
  // It is gone before the answer.
  EXPECT_THAT(terminal.output(), HasSubstr("\r\033[Kpath:       /d"));
  EXPECT_FALSE(fake_.operation_cancelled());
}

TEST_F(PreallocationTest, CtrlCCancelsAndSaysSo) {
  Terminal terminal = Create();
  ASSERT_TRUE(terminal.WaitFor(" 75%")) << terminal.output();
  terminal.Type("\003");
  EXPECT_EQ(terminal.Wait(), 130) << terminal.output();
  EXPECT_TRUE(fake_.operation_cancelled());
  EXPECT_THAT(terminal.output(), HasSubstr("\r\033[Kberthctl: image create /d: cancelled half way"));
}

TEST_F(PreallocationTest, ASignalCancelsWithoutABarToo) {
  Terminal terminal = Create({"--quiet"});
  // The call itself is what can be waited for.
  const absl::Time end = absl::Now() + kPatience;
  while (fake_.calls() == 0 && absl::Now() < end) std::this_thread::yield();
  terminal.Send(SIGTERM);
  EXPECT_EQ(terminal.Wait(), 130) << terminal.output();
  EXPECT_TRUE(fake_.operation_cancelled());
  EXPECT_THAT(terminal.output(), testing::Not(HasSubstr("GiB")));
  EXPECT_THAT(terminal.output(), testing::StartsWith("berthctl: image create /d: cancelled half way"));
}

TEST_F(PreallocationTest, NoBarInFrontOfJson) {
  Terminal terminal = Create({"--json"});
  fake_.EndOperation();
  EXPECT_EQ(terminal.Wait(), 0) << terminal.output();
  EXPECT_THAT(terminal.output(), testing::StartsWith("{"));
}

TEST_F(ProgramTest, BashCompletesCommandsOptionsValuesAndNames) {
  const auto complete = [this](const std::string& words, const std::string& line) {
    return Shell(absl::StrCat(
        "eval \"$(", kBerthctl, " completion bash)\"; export BERTH_ENDPOINT=", fake_.endpoint(),
        "; COMP_WORDS=(", kBerthctl, " ", words, "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE=\"",
        line, "\"; COMP_POINT=${#COMP_LINE}; compopt() { :; }; _berthctl; echo ${COMPREPLY[*]}"));
  };
  EXPECT_EQ(complete("exp", "berthctl exp"), "export\n");
  EXPECT_EQ(complete("export \"\"", "berthctl export "), "create list show update delete\n");
  EXPECT_EQ(complete("export create d --disc", "berthctl export create d --disc"), "--discard=\n");
  EXPECT_EQ(complete("export create d --min", "berthctl export create d --min"), "--min-block-size=\n");
  EXPECT_EQ(complete("export update alpha --cl", "berthctl export update alpha --cl"), "--client-resize=\n");
  EXPECT_EQ(complete("export create d --cache = w", "berthctl export create d --cache=w"),
            "writeback writethrough\n");
  EXPECT_EQ(complete("export create d --cache =", "berthctl export create d --cache="),
            "writeback writethrough none directsync unsafe\n");
  EXPECT_EQ(complete("attach \"\"", "berthctl attach "), "alpha beta\n");
  EXPECT_EQ(complete("--json export show a", "berthctl --json export show a"), "alpha\n");
  EXPECT_EQ(complete("attach alpha --conn", "berthctl attach alpha --conn"), "--connections=\n");
  EXPECT_EQ(complete("operation \"\"", "berthctl operation "), "list show watch cancel\n");
  EXPECT_EQ(complete("operation watch m", "berthctl operation watch m"), "make-db\n");
  EXPECT_EQ(complete("attach alpha \"\"", "berthctl attach alpha "), "\n");
}

TEST_F(ProgramTest, CompletionAsksTheServerOfTheCommandLine) {
  EXPECT_EQ(Shell(absl::StrCat("BERTH_ENDPOINT=unix:/nonexistent ", kBerthctl,
                               " complete \"berthctl --endpoint=", fake_.endpoint(), " stats \"")),
            "alpha\nbeta\n");
  EXPECT_EQ(
      Shell(absl::StrCat("BERTH_ENDPOINT=unix:/nonexistent ", kBerthctl, " complete \"berthctl stats \"")),
      "");
}

TEST_F(ProgramTest, AReaderThatIsGoneIsAFailureAndNoCrash) {
  EXPECT_THAT(
      Shell(absl::StrCat(kBerthctl, " ", EndpointOption(), " export list >/dev/full; echo status $?")),
      HasSubstr("standard output: cannot be written\nstatus 1\n"));
}

}  // namespace
}  // namespace berth::berthctl
