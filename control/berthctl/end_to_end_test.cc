// berthctl and berthd together, without a kernel's nbd.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "berth/v1/exports.pb.h"
#include "berth/v1/images.pb.h"
#include "berth/v1/monitoring.pb.h"
#include "berth/v1/operations.pb.h"
#include "control/berthctl/command_line.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"

namespace berth::berthctl {
namespace {

using testing::HasSubstr;

struct Result {
  ExitCode code;
  std::string out;
  std::string err;
};

// A berthd of its own, with a directory for its images, for as long as a test takes.
class EndToEndTest : public testing::Test {
 protected:
  EndToEndTest() {
    char directory[] = "/tmp/berth-e2e.XXXXXX";
    if (mkdtemp(directory) == nullptr) std::abort();
    directory_ = directory;
    std::filesystem::create_directory(Path("images"));
    Start();
  }

  ~EndToEndTest() override {
    Stop();
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  std::string Path(const std::string& name) const { return absl::StrCat(directory_, "/", name); }
  std::string Image(const std::string& name) const { return Path(absl::StrCat("images/", name)); }

  void Start() {
    std::vector<std::string> arguments = {"control/berthd", absl::StrCat("--listen=unix:", Path("s")),
                                          absl::StrCat("--state-dir=", Path("state")),
                                          absl::StrCat("--image-root=", Path("images"))};
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      execv(argv[0], argv.data());
      _exit(127);
    }
    // Waits until it answers.
    const Result result = Do({"export", "list", "--wait=60s"});
    ASSERT_EQ(result.code, ExitCode::kSuccess) << result.err;
  }

  void Stop() {
    if (pid_ <= 0) return;
    kill(pid_, SIGTERM);
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }

  Result Do(std::vector<std::string> arguments) {
    arguments.push_back(absl::StrCat("--endpoint=unix:", Path("s")));
    std::ostringstream out;
    std::ostringstream err;
    Console console{out, err};
    const ExitCode code = RunBerthctl(arguments, console);
    return {code, out.str(), err.str()};
  }

  void Succeeds(const std::vector<std::string>& arguments) {
    const Result result = Do(arguments);
    EXPECT_EQ(result.code, ExitCode::kSuccess) << result.err;
  }

  void Fails(const std::vector<std::string>& arguments, ExitCode code, const std::string& text) {
    const Result result = Do(arguments);
    EXPECT_EQ(result.code, code) << result.out << result.err;
    EXPECT_THAT(result.err, HasSubstr(text));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  }

  template <typename Message>
  Message Json(std::vector<std::string> arguments) {
    arguments.push_back("--json");
    const Result result = Do(arguments);
    EXPECT_EQ(result.code, ExitCode::kSuccess) << result.err;
    Message message;
    EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(result.out, &message).ok()) << result.out;
    return message;
  }

  std::string directory_;
  pid_t pid_ = -1;
};

TEST_F(EndToEndTest, ImagesAreMadeShownAndResized) {
  const std::string disk = Image("disk.raw");
  Succeeds({"image", "create", disk, "10M"});
  Succeeds({"image", "create", disk, "10M"});
  EXPECT_EQ(std::filesystem::file_size(disk), uint64_t{10} << 20);
  Fails({"image", "create", disk, "20M"}, ExitCode::kAlreadyExists, disk);
  EXPECT_EQ(Json<v1::ImageInfo>({"image", "info", disk}).size_bytes(), uint64_t{10} << 20);
  Succeeds({"image", "resize", disk, "12M"});
  Fails({"image", "resize", disk, "4M"}, ExitCode::kPrecondition, "--allow-shrink");
  Succeeds({"image", "resize", disk, "4M", "--allow-shrink"});
  EXPECT_EQ(std::filesystem::file_size(disk), uint64_t{4} << 20);
  Fails({"image", "info", Image("none.raw")}, ExitCode::kNotFound, "none.raw");
  Fails({"image", "create", "/etc/berth.raw", "1M"}, ExitCode::kPermissionDenied, "/etc/berth.raw");
}

TEST_F(EndToEndTest, PreallocationIsAnOperation) {
  const std::string disk = Image("disk.raw");
  const std::vector<std::string> create = {"image", "create",        disk,
                                           "200M",  "--preallocate", "--operation=make"};
  Succeeds(create);
  Succeeds(create);
  EXPECT_GE(Json<v1::ImageInfo>({"image", "info", disk}).allocated_bytes(), uint64_t{200} << 20);
  const auto shown = Json<v1::Operation>({"operation", "show", "make"});
  EXPECT_EQ(shown.state(), v1::OPERATION_STATE_SUCCEEDED);
  EXPECT_EQ(shown.subject(), disk);
  EXPECT_EQ(shown.done(), uint64_t{200} << 20);
  Succeeds({"operation", "watch", "make"});
  Succeeds({"operation", "cancel", "make"});  // It has ended: nothing changes.
  EXPECT_EQ(Json<v1::Operation>({"operation", "show", "make"}).state(), v1::OPERATION_STATE_SUCCEEDED);
  Fails({"image", "create", disk, "100M", "--preallocate", "--operation=make"}, ExitCode::kAlreadyExists,
        "size_bytes: 209715200 -> 104857600");
  Fails({"operation", "show", "none"}, ExitCode::kNotFound, "operation list");

  // A restart forgets; the same again is what is there.
  Stop();
  Start();
  Fails({"operation", "show", "make"}, ExitCode::kNotFound, "make");
  Succeeds(create);
}

// Whenever the cancellation comes, the file is whole or not there.
TEST_F(EndToEndTest, CancelledPreallocationIsAllOrNothing) {
  for (int i = 0; i < 5; ++i) {
    const std::string disk = Image(absl::StrCat("disk", i, ".raw"));
    const std::string name = absl::StrCat("make", i);
    Result made{};
    std::thread maker([&] {
      made = Do({"image", "create", disk, "2G", "--preallocate", absl::StrCat("--operation=", name)});
    });
    while (Do({"operation", "cancel", name}).code == ExitCode::kNotFound) std::this_thread::yield();
    maker.join();
    const auto state = Json<v1::Operation>({"operation", "show", name}).state();
    if (made.code == ExitCode::kSuccess) {
      EXPECT_EQ(state, v1::OPERATION_STATE_SUCCEEDED);
      EXPECT_GE(Json<v1::ImageInfo>({"image", "info", disk}).allocated_bytes(), uint64_t{2} << 30);
      std::filesystem::remove(disk);
    } else {
      EXPECT_EQ(state, v1::OPERATION_STATE_CANCELLED);
      EXPECT_THAT(made.err, HasSubstr("[OPERATION_CANCELLED]"));
      EXPECT_FALSE(std::filesystem::exists(disk));
    }
  }
}

TEST_F(EndToEndTest, ExportsLiveUntilTheyAreDeleted) {
  const std::string disk = Image("disk.raw");
  Succeeds({"image", "create", disk, "10M"});
  Succeeds({"export", "create", "disk", disk, "--description=first", "--iops=100"});
  Succeeds({"export", "create", "disk", disk, "--description=first", "--iops=100"});
  Fails({"export", "create", "disk", disk, "--read-only"}, ExitCode::kAlreadyExists, "disk");
  Fails({"export", "create", "-bad", disk}, ExitCode::kUsage, "");
  Fails({"export", "create", "other", Image("none.raw")}, ExitCode::kNotFound, "none.raw");

  Succeeds({"export", "update", "disk", "--size=16M", "--description=", "--iops=0"});
  const auto shown = Json<v1::Export>({"export", "show", "disk"});
  EXPECT_EQ(shown.size_bytes(), uint64_t{16} << 20);
  EXPECT_EQ(shown.spec().description(), "");
  EXPECT_EQ(shown.spec().rate_limit().operations_per_second(), 0u);
  EXPECT_EQ(std::filesystem::file_size(disk), uint64_t{16} << 20);
  Fails({"export", "update", "disk", "--size=1M"}, ExitCode::kPrecondition, "--allow-shrink");

  // What was acknowledged is there after a restart.
  Stop();
  Start();
  EXPECT_EQ(Json<v1::ListExportsResponse>({"export", "list"}).exports(0).name(), "disk");
  Succeeds({"export", "delete", "disk"});
  Fails({"export", "delete", "disk"}, ExitCode::kNotFound, "berthctl export list");
  Succeeds({"export", "delete", "disk", "--allow-missing"});
  EXPECT_TRUE(std::filesystem::exists(disk));
}

TEST_F(EndToEndTest, ManyExportsAreListedWhole) {
  for (int i = 0; i < 150; ++i) {
    Succeeds({"export", "create", absl::StrCat("null-", i), "--format=null", "--size=1M"});
  }
  EXPECT_EQ(Json<v1::ListExportsResponse>({"export", "list"}).exports_size(), 150);
  EXPECT_EQ(Json<v1::GetStatisticsResponse>({"stats"}).exports_size(), 150);
  EXPECT_EQ(Json<v1::GetStatisticsResponse>({"stats", "null-7"}).exports_size(), 1);
  Fails({"stats", "missing"}, ExitCode::kNotFound, "missing");
}

TEST_F(EndToEndTest, EventsCanBeReadAgain) {
  Succeeds({"export", "create", "a", "--format=null", "--size=1M"});
  // An event tells the server's id, and comes only to those who watch already: so something happens until one
  // was seen.
  std::atomic<bool> seen = false;
  std::thread maker([this, &seen] {
    while (!seen) {
      Succeeds({"export", "create", "b", "--format=null", "--size=1M"});
      Succeeds({"export", "delete", "b"});
    }
  });
  const auto event = Json<v1::Event>({"events", "--count=1"});
  seen = true;
  maker.join();
  EXPECT_FALSE(event.server_id().empty());
  const Result again =
      Do({"events", "--after=1", absl::StrCat("--server-id=", event.server_id()), "--count=1"});
  EXPECT_EQ(again.code, ExitCode::kSuccess) << again.err;
  EXPECT_THAT(again.out, testing::StartsWith("2  "));
  Fails({"events", "--after=1", "--server-id=another"}, ExitCode::kFailure, "list everything anew");
}

TEST_F(EndToEndTest, AttachWithoutAnExportOrAKernelSaysSo) {
  Fails({"attach", "nothing"}, ExitCode::kNotFound, "nothing");
  Fails({"detach", "nothing"}, ExitCode::kNotFound, "nothing");
  Succeeds({"detach", "nothing", "--allow-missing"});
  EXPECT_EQ(Do({"attachment", "list"}).out, "NAME  EXPORT  DEVICE  SIZE  STATE  PARTITIONS\n");
}

}  // namespace
}  // namespace berth::berthctl
