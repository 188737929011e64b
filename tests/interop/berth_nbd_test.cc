// The same command line through qemu-nbd and through berth-nbd, and what clients see of both.
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "image/io/unique_fd.h"
#include "nlohmann/json.hpp"
#include "tests/interop/program.h"
#include "tests/interop/temporary_directory.h"

namespace berth::testing {
namespace {

using Arguments = std::vector<std::string>;

constexpr char kQemuNbd[] = "qemu-nbd";
constexpr int kSeconds = 20;
constexpr uint64_t kDiskBytes = 4 << 20;

std::string BerthNbd() { return std::filesystem::absolute("control/berth_nbd/berth-nbd"); }

Arguments operator+(Arguments left, const Arguments& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

ProgramResult MustRun(const Arguments& arguments) {
  ProgramResult result = RunProgram(arguments, kSeconds);
  EXPECT_EQ(result.exit_code, 0) << absl::StrJoin(arguments, " ") << "\n" << result.errors;
  return result;
}

// The images that every test gets copies of: a raw and a qcow2 one, which has snapshots of other states.
const TemporaryDirectory& Originals() {
  static const TemporaryDirectory* const originals = [] {
    auto* made = new TemporaryDirectory;
    WriteFile(made->Path("raw"), RandomBytes(300'000, 1));
    const std::string qcow2 = made->Path("qcow2");
    MustRun({"qemu-img", "resize", "-q", "-f", "raw", made->Path("raw"), absl::StrCat(kDiskBytes)});
    MustRun({"qemu-img", "create", "-q", "-f", "qcow2", qcow2, absl::StrCat(kDiskBytes)});
    MustRun({"qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", qcow2});
    MustRun({"qemu-img", "snapshot", "-c", "before", qcow2});
    MustRun({"qemu-io", "-f", "qcow2", "-c", "write -P 2 512k 1M", "-c", "write -z 2M 256k", qcow2});
    MustRun({"qemu-img", "snapshot", "-c", "after", qcow2});
    return made;
  }();
  return *originals;
}

class Images {
 public:
  Images() {
    for (const char* name : {"raw", "qcow2"}) std::filesystem::copy_file(Originals().Path(name), Path(name));
  }
  Images(const Images&) = delete;
  ~Images() { std::filesystem::remove_all(directory_); }

  std::string Path(const std::string& name) const { return directory_ + "/" + name; }
  std::string Socket() const { return Path("socket"); }
  std::string Uri(const std::string& name = "") const {
    return absl::StrCat("nbd+unix:///", name, "?socket=", Socket());
  }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(directory_))
      names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  static std::string MakeDirectory() {
    std::string path = "/tmp/berth-nbd-XXXXXX";  // A socket's path must be short.
    EXPECT_NE(mkdtemp(path.data()), nullptr) << path;
    return path;
  }

  const std::string directory_ = MakeDirectory();
};

// A program that has gone to the background with --fork. Ends with the object.
class Daemon {
 public:
  Daemon(const Images& images, const std::string& program, const Arguments& options) {
    const std::string pid_file = images.Path("pid");
    const Arguments common = {program, "--fork", "--pid-file", pid_file, "-k", images.Socket()};
    started = RunProgram(common + options, kSeconds);
    if (started.exit_code != 0) return;
    EXPECT_TRUE(absl::SimpleAtoi(ReadFile(pid_file), &pid_)) << pid_file;
    process_.Reset(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  }
  ~Daemon() { EXPECT_TRUE(!process_ || End(SIGTERM)) << pid_; }

  bool End(int signal) {
    kill(pid_, signal);
    return Ended();
  }
  // Waits for its end.
  bool Ended() {
    if (!process_) return true;
    pollfd event = {process_.get(), POLLIN, 0};
    const bool ended = poll(&event, 1, kSeconds * 1000) == 1;
    if (!ended) kill(pid_, SIGKILL);
    process_.Reset();
    return ended;
  }

  ProgramResult started;

 private:
  pid_t pid_ = 0;
  UniqueFd process_;
};

// What nbdinfo says, without what is meant to differ.
nlohmann::json Info(const Images& images, const std::string& name) {
  nlohmann::json info =
      nlohmann::json::parse(MustRun({"nbdinfo", "--json", images.Uri(name)}).output, nullptr, false);
  for (nlohmann::json& served : info["exports"]) {
    served.erase("uri");
    served.erase("is_rotational");  // qemu does not know it.
  }
  return info;
}

struct View {
  nlohmann::json info;
  nlohmann::json map;
  std::string content;
};

View ViewOf(const Images& images, const std::string& program, const Arguments& options,
            const std::string& name) {
  const Daemon daemon(images, program, options);
  EXPECT_EQ(daemon.started.exit_code, 0) << daemon.started.errors;
  View view;
  if (daemon.started.exit_code != 0) return view;
  view.info = Info(images, name);
  view.map =
      nlohmann::json::parse(MustRun({"nbdinfo", "--json", "--map", images.Uri(name)}).output, nullptr, false);
  MustRun({"nbdcopy", images.Uri(name), images.Path("copy")});
  view.content = ReadFile(images.Path("copy"));
  return view;
}

struct PairCase {
  std::string title;
  Arguments options;
  std::string name = "";
};

class BerthNbdPairTest : public ::testing::TestWithParam<PairCase> {};

TEST_P(BerthNbdPairTest, ClientsSeeTheSame) {
  const PairCase& one = GetParam();
  const Images images;
  Arguments options = {"-t"};
  for (const std::string& option : one.options) {
    options.push_back(option == "RAW"     ? images.Path("raw")
                      : option == "QCOW2" ? images.Path("qcow2")
                                          : option);
  }
  const View theirs = ViewOf(images, kQemuNbd, options, one.name);
  const View ours = ViewOf(images, BerthNbd(), options, one.name);
  EXPECT_EQ(ours.info.dump(1), theirs.info.dump(1));
  EXPECT_EQ(ours.map.dump(), theirs.map.dump());
  EXPECT_TRUE(ours.content == theirs.content) << ours.content.size() << " and " << theirs.content.size();
}

INSTANTIATE_TEST_SUITE_P(
    CommandLines, BerthNbdPairTest,
    ::testing::Values(
        PairCase{"raw", {"-f", "raw", "RAW"}}, PairCase{"qcow2", {"-fqcow2", "QCOW2"}},
        PairCase{"probed", {"QCOW2"}}, PairCase{"read only", {"--read", "-f", "raw", "RAW"}},
        PairCase{"named", {"-x", "disk", "-D", "a description", "-f", "raw", "RAW"}, "disk"},
        PairCase{"offset", {"-o", "0x1000", "-f", "raw", "RAW"}},
        PairCase{"any number", {"--share=0", "-f", "raw", "RAW"}},
        PairCase{"two clients", {"-e2", "-r", "-f", "qcow2", "QCOW2"}},
        PairCase{"unsafe", {"--cache=unsafe", "--aio=threads", "-f", "raw", "RAW"}},
        PairCase{"discard", {"--discard=unmap", "--detect-zeroes=unmap", "-f", "qcow2", "QCOW2"}},
        PairCase{"snapshot by name", {"-l", "before", "-f", "qcow2", "QCOW2"}},
        PairCase{"snapshot by id", {"-l", "2", "-f", "qcow2", "QCOW2"}},
        PairCase{"snapshot by both", {"-l", "snapshot.id=1,snapshot.name=before", "-f", "qcow2", "QCOW2"}}),
    [](const auto& info) {
      std::string name = info.param.title;
      std::replace(name.begin(), name.end(), ' ', '_');
      return name;
    });

TEST(BerthNbdTest, EndsCleanlyBySignals) {
  for (int signal : {SIGTERM, SIGINT, SIGHUP}) {
    const Images images;
    const std::vector<std::string> before = images.Names();
    Daemon daemon(images, BerthNbd(), {"-t", "-f", "raw", images.Path("raw")});
    ASSERT_EQ(daemon.started.exit_code, 0) << daemon.started.errors;
    EXPECT_EQ(daemon.started.output + daemon.started.errors, "");
    EXPECT_TRUE(daemon.End(signal));
    EXPECT_EQ(images.Names(), before) << signal;
  }
}

TEST(BerthNbdTest, EndsAfterTheLastClientAndKeepsWhatItWrote) {
  const Images images;
  const std::vector<std::string> before = images.Names();
  Daemon daemon(images, BerthNbd(), {"-f", "qcow2", images.Path("qcow2")});
  ASSERT_EQ(daemon.started.exit_code, 0) << daemon.started.errors;
  // A client that only looks at the list is none.
  MustRun({"nbdinfo", "--list", images.Uri()});
  MustRun({"qemu-io", "-f", "raw", "-c", "write -P 9 3M 64k", images.Uri()});
  EXPECT_TRUE(daemon.Ended());
  EXPECT_EQ(images.Names(), before);
  MustRun({"qemu-io", "-f", "qcow2", "-c", "read -P 9 3M 64k", images.Path("qcow2")});
  MustRun({"qemu-img", "check", "-q", "-f", "qcow2", images.Path("qcow2")});
}

TEST(BerthNbdTest, LetsNoClientChangeWhatAGuessedImageLooksLike) {
  const Images images;
  Daemon daemon(images, BerthNbd(), {"-t", images.Path("raw")});
  ASSERT_EQ(daemon.started.exit_code, 0);
  EXPECT_TRUE(absl::StrContains(daemon.started.errors, "WARNING: ")) << daemon.started.errors;
  const std::string header = images.Path("header");
  MustRun({"qemu-img", "create", "-q", "-f", "qcow2", header, "1M"});
  WriteFile(header, ReadFile(header).substr(0, 512));
  const auto write = [&](const std::string& command) {
    return RunProgram({"qemu-io", "-f", "raw", "-c", command, images.Uri()}, kSeconds);
  };
  EXPECT_NE(write(absl::StrCat("write -s ", header, " 0 512")).exit_code, 0);
  EXPECT_EQ(write("write -P 1 0 512").exit_code, 0);
  EXPECT_EQ(write("write -P 1 512 1k").exit_code, 0);
}

TEST(BerthNbdTest, IsStartedByProgramsThatKnowQemuNbd) {
  const Images images;
  const std::string link = images.Path("qemu-nbd");
  std::filesystem::create_symlink(BerthNbd(), link);
  MustRun({"nbdcopy", "--", "[", link, "-f", "qcow2", images.Path("qcow2"), "]", images.Path("copy")});
  EXPECT_EQ(std::filesystem::file_size(images.Path("copy")), kDiskBytes);
  const std::string script =
      "import nbd, sys\n"
      "h = nbd.NBD()\n"
      "h.connect_systemd_socket_activation(sys.argv[1:])\n"
      "print(h.get_size())\n"
      "h.shutdown()\n";
  EXPECT_EQ(MustRun({"/usr/bin/python3", "-c", script, link, "-r", "-f", "raw", images.Path("raw")}).output,
            absl::StrCat(kDiskBytes, "\n"));
}

struct WrongCase {
  Arguments options;
  std::vector<std::string> said;
};

TEST(BerthNbdTest, SaysInOneLineWhatIsWrong) {
  const Images images;
  const std::string raw = images.Path("raw");
  const std::string qcow2 = images.Path("qcow2");
  const std::string missing = images.Path("missing");
  const std::string socket = images.Socket();
  const Arguments serve = {"-k", socket, "-f", "raw", raw};
  const WrongCase cases[] = {
      {{"--nope", raw}, {"--nope"}},
      {{"--di", raw}, {"--di"}},
      {{"-z", raw}, {"-z"}},
      {{"-e"}, {"-e", "value"}},
      {{"-r"}, {"0"}},
      {{raw, qcow2}, {"2"}},
      {{"-e", "many", raw}, {"-e", "'many'", "number"}},
      {{"-p", "70000", raw}, {"-p", "'70000'", "65535"}},
      {{"-o", "-1", raw}, {"-o", "'-1'", "bytes"}},
      {{"-P", "0", raw}, {"-P", "'0'", "from 1"}},
      {{"-k", "here", raw}, {"-k", "'here'", "absolute"}},
      {{"-k", "/" + std::string(199, 'x'), raw}, {"-k", "107", "200"}},
      {{"--cache=some", raw}, {"--cache", "'some'", "writethrough"}},
      {{"--cache=none", "-n", raw}, {"-n", "--cache", "once"}},
      {{"--aio=posix", raw}, {"--aio", "'posix'", "io_uring"}},
      {{"--discard=yes", raw}, {"--discard", "'yes'", "unmap"}},
      {{"--detect-zeroes=yes", raw}, {"--detect-zeroes", "'yes'", "unmap"}},
      {{"--detect-zeroes=unmap", raw}, {"--detect-zeroes", "--discard=unmap"}},
      {{"-o", "512", "-P", "1", raw}, {"-o", "-P"}},
      {{"-c", "/dev/sda", raw}, {"-c", "'/dev/sda'", "/dev/nbdN"}},
      {{"-c", "/dev/nbd0", "-d", raw}, {"-c", "-d"}},
      {{"-L", raw}, {"-L", raw}},
      {{"-L", "-x", "name"}, {"-L", "-x"}},
      {{"--tls-authz", "id", raw}, {"--tls-authz", "--tls-creds"}},
      {{"-f", "vmdk", raw}, {"-f", "'vmdk'", "qcow2"}},
      {{"-k", socket, "-f", "raw", missing}, {missing, "No such file"}},
      {{"-k", socket, "-f", "qcow2", raw}, {raw, "qcow2"}},
      {Arguments{"-o", "99999999"} + serve, {"-o", "99999999", absl::StrCat(kDiskBytes)}},
      {Arguments{"-P", "1"} + serve, {"-P", "'1'", "partition table"}},
      {Arguments{"-B", "none"} + serve, {"-B", "'none'"}},
      {Arguments{"-l", "none", "-k", socket, "-f", "qcow2", qcow2}, {qcow2, "none"}},
      {Arguments{"--pid-file", missing + "/pid"} + serve, {"--pid-file", missing}},
  };
  const std::vector<std::string> before = images.Names();
  for (const WrongCase& wrong : cases) {
    for (const Arguments& extra : {Arguments{}, Arguments{"--fork"}}) {
      // What is refused with -L is refused for that.
      if (!extra.empty() && wrong.options[0] == "-L") continue;
      const ProgramResult result = RunProgram(Arguments{BerthNbd()} + extra + wrong.options, kSeconds);
      const std::string text = absl::StrJoin(wrong.options, " ") + ": " + result.errors;
      EXPECT_EQ(result.exit_code, 1) << text;
      EXPECT_EQ(result.output, "") << text;
      EXPECT_TRUE(absl::StartsWith(result.errors, "berth-nbd: ")) << text;
      EXPECT_EQ(std::count(result.errors.begin(), result.errors.end(), '\n'), 1) << text;
      for (const std::string& part : wrong.said)
        EXPECT_TRUE(absl::StrContains(result.errors, part)) << part << " " << text;
      EXPECT_EQ(images.Names(), before) << text;
    }
  }
}

}  // namespace
}  // namespace berth::testing
