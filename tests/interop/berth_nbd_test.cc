// The same command line through qemu-nbd and through berth-nbd, and what clients see of both.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
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
#include "absl/strings/str_replace.h"
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
    setenv("TMPDIR", made->path().c_str(), 1);  // Where temporary overlays go.
    WriteFile(made->Path("raw"), RandomBytes(300'000, 1));
    const std::string qcow2 = made->Path("qcow2");
    MustRun({"qemu-img", "resize", "-q", "-f", "raw", made->Path("raw"), absl::StrCat(kDiskBytes)});
    MustRun({"qemu-img", "create", "-q", "-f", "qcow2", qcow2, absl::StrCat(kDiskBytes)});
    MustRun({"qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", qcow2});
    MustRun({"qemu-img", "snapshot", "-c", "before", qcow2});
    MustRun({"qemu-img", "bitmap", "--add", "-f", "qcow2", qcow2, "changes"});
    MustRun({"qemu-io", "-f", "qcow2", "-c", "write -P 2 512k 1M", "-c", "write -z 2M 256k", qcow2});
    MustRun({"qemu-img", "snapshot", "-c", "after", qcow2});
    // The secret is the bytes 1 to 4.
    MustRun({"qemu-img", "create", "-q", "--object", "secret,id=k,data=AQIDBA==,format=base64", "-f", "luks",
             "-o", "key-secret=k,iter-time=10", made->Path("luks"), "1M"});
    const std::string secret = "secret,id=k,data=AQIDBA==,format=base64";
    MustRun({"qemu-img", "create", "-q", "--object", secret, "-f", "qcow2", "-o",
             "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10", made->Path("encrypted"), "1M"});
    MustRun({"qemu-io", "--object", secret, "--image-opts", "-c", "write -P 3 64k 100k",
             absl::StrCat("driver=qcow2,encrypt.format=luks,encrypt.key-secret=k,file.filename=",
                          made->Path("encrypted"))});
    return made;
  }();
  return *originals;
}

class Images {
 public:
  Images() {
    for (const char* name : {"raw", "qcow2", "luks", "encrypted"})
      std::filesystem::copy_file(Originals().Path(name), Path(name));
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
    // qemu asks clients for whole blocks of some formats; we serve any range of all of them.
    served.erase("block_size_minimum");
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
  for (const nlohmann::json& context : view.info["exports"][0]["contexts"]) {
    const std::string map = absl::StrCat("--map=", context.get<std::string>());
    view.map.push_back(
        nlohmann::json::parse(MustRun({"nbdinfo", "--json", map, images.Uri(name)}).output, nullptr, false));
  }
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
    options.push_back(absl::StrReplaceAll(option, {{"RAW", images.Path("raw")},
                                                   {"QCOW2", images.Path("qcow2")},
                                                   {"ENCRYPTED", images.Path("encrypted")},
                                                   {"LUKS", images.Path("luks")}}));
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
        PairCase{"raw", {"-f", "raw", "RAW"}}, PairCase{"depth of raw", {"-A", "-f", "raw", "RAW"}},
        PairCase{"depth and bitmap of qcow2", {"-A", "-B", "changes", "-r", "-f", "qcow2", "QCOW2"}},
        PairCase{"depth of an overlay", {"-A", "-s", "-f", "raw", "RAW"}},
        PairCase{"qcow2", {"-fqcow2", "QCOW2"}}, PairCase{"probed", {"QCOW2"}},
        PairCase{"read only", {"--read", "-f", "raw", "RAW"}},
        PairCase{"named", {"-x", "disk", "-D", "a description", "-f", "raw", "RAW"}, "disk"},
        PairCase{"offset", {"-o", "0x1000", "-f", "raw", "RAW"}},
        PairCase{"any number", {"--share=0", "-f", "raw", "RAW"}},
        PairCase{"two clients", {"-e2", "-r", "-f", "qcow2", "QCOW2"}},
        PairCase{"unsafe", {"--cache=unsafe", "--aio=threads", "-f", "raw", "RAW"}},
        PairCase{"discard", {"--discard=unmap", "--detect-zeroes=unmap", "-f", "qcow2", "QCOW2"}},
        PairCase{"snapshot by name", {"-l", "before", "-f", "qcow2", "QCOW2"}},
        PairCase{"snapshot by id", {"-l", "2", "-f", "qcow2", "QCOW2"}},
        PairCase{"snapshot by both", {"-l", "snapshot.id=1,snapshot.name=before", "-f", "qcow2", "QCOW2"}},
        PairCase{"temporary overlay", {"-s", "-f", "raw", "RAW"}},
        PairCase{"overlay over qcow2", {"--snapshot", "QCOW2"}},
        PairCase{"options",
                 {"--image-opts", "driver=raw,offset=4k,size=1M,file.driver=file,file.filename=RAW"}},
        PairCase{"options of qcow2",
                 {"-r", "--image-opts", "driver=qcow2,file.filename=QCOW2,discard=unmap"}},
        PairCase{"another backing image",
                 {"--image-opts",
                  "driver=qcow2,file.driver=file,file.filename=QCOW2,backing.driver=raw,"
                  "backing.file.driver=file,backing.file.filename=RAW"}},
        PairCase{"json",
                 {R"(json:{"driver": "raw", "size": 65536, "file": {"driver": "file", "filename": "RAW"}})"}},
        PairCase{"null", {"--image-opts", "driver=null-co,size=1M,read-zeroes=on"}},
        PairCase{"encrypted",
                 {"--object", "secret,id=key,data=AQIDBA==,format=base64", "--image-opts",
                  "driver=qcow2,encrypt.format=luks,encrypt.key-secret=key,file.driver=file,file.filename="
                  "ENCRYPTED"}},
        PairCase{"luks",
                 {"--object", "secret,id=key,data=AQIDBA==,format=base64", "--image-opts",
                  "driver=luks,key-secret=key,file.driver=file,file.filename=LUKS"}}),
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

TEST(BerthNbdTest, ListsExportsAsQemuNbdDoes) {
  const Images images;
  for (const std::string& server : {std::string(kQemuNbd), BerthNbd()}) {
    const Daemon daemon(images, server,
                        {"-t", "-x", "a disk", "-D", "with a text", "-f", "qcow2", images.Path("qcow2")});
    ASSERT_EQ(daemon.started.exit_code, 0) << daemon.started.errors;
    const std::string theirs = MustRun({kQemuNbd, "-L", "-k", images.Socket()}).output;
    EXPECT_EQ(MustRun({BerthNbd(), "-L", "-k", images.Socket()}).output, theirs);
    const nlohmann::json listed = nlohmann::json::parse(
        MustRun({BerthNbd(), "--list", "--json", "-k", images.Socket()}).output, nullptr, false);
    EXPECT_EQ(listed["exports"][0]["name"], "a disk");
    EXPECT_EQ(listed["exports"][0]["size"], kDiskBytes);
  }
  const ProgramResult nobody = RunProgram({BerthNbd(), "-L", "-k", images.Path("nobody")}, kSeconds);
  EXPECT_EQ(nobody.exit_code, 1);
  EXPECT_EQ(std::count(nobody.errors.begin(), nobody.errors.end(), '\n'), 1) << nobody.errors;
}

TEST(BerthNbdTest, ServesUnderTlsToThoseWhoMayComeIn) {
  const Images images;
  WriteFile(images.Path("keys.psk"),
            "alice:0102030405060708090a0b0c0d0e0f10\nmallory:1112131415161718191a1b1c1d1e1f20\n");
  std::filesystem::permissions(images.Path("keys.psk"), std::filesystem::perms(0600));
  const std::string directory = std::filesystem::path(images.Path("keys.psk")).parent_path();
  const Daemon daemon(
      images, BerthNbd(),
      {"-t", "--object", absl::StrCat("tls-creds-psk,id=tls,endpoint=server,dir=", directory), "--object",
       "authz-list,id=who,policy=deny,rules.0.match=al*,rules.0.format=glob,rules.0.policy=allow",
       "--tls-creds", "tls", "--tls-authz", "who", "-f", "raw", images.Path("raw")});
  ASSERT_EQ(daemon.started.exit_code, 0) << daemon.started.errors;
  const auto size = [&](const std::string& user) {
    return RunProgram({"nbdinfo", "--size",
                       absl::StrCat("nbds+unix://", user, "@/?socket=", images.Socket(),
                                    "&tls-psk-file=", images.Path("keys.psk"))},
                      kSeconds);
  };
  EXPECT_EQ(size("alice").output, absl::StrCat(kDiskBytes, "\n")) << size("alice").errors;
  EXPECT_NE(size("mallory").exit_code, 0);
  EXPECT_NE(RunProgram({"nbdinfo", "--size", images.Uri()}, kSeconds).exit_code, 0);
  const Arguments list = {BerthNbd(), "-L", "-k", images.Socket()};
  const std::string client =
      absl::StrCat("tls-creds-psk,id=tls,endpoint=client,dir=", directory, ",username=alice");
  EXPECT_TRUE(absl::StrContains(MustRun(list + Arguments{"--object", client, "--tls-creds", "tls"}).output,
                                "size:  4194304"));
  EXPECT_EQ(RunProgram(list, kSeconds).exit_code, 1);
}

TEST(BerthNbdTest, ShowsAPartition) {
  const Images images;
  // A master boot record with a partition of 8 sectors from sector 3 on.
  std::string disk = ReadFile(images.Path("raw"));
  std::string record(512, '\0');
  record[446 + 4] = '\x83';
  record[446 + 8] = 3;
  record[446 + 12] = 8;
  record[510] = '\x55';
  record[511] = '\xaa';
  disk.replace(0, 512, record);
  WriteFile(images.Path("raw"), disk);
  const View part = ViewOf(images, BerthNbd(), {"-t", "-P", "1", "-f", "raw", images.Path("raw")}, "");
  EXPECT_TRUE(part.content == disk.substr(3 * 512, 8 * 512)) << part.content.size();
}

TEST(BerthNbdTest, ForgetsWhatATemporaryOverlayTook) {
  const Images images;
  const std::string before = ReadFile(images.Path("raw"));
  {
    const Daemon daemon(images, BerthNbd(), {"-t", "-s", "-f", "raw", images.Path("raw")});
    ASSERT_EQ(daemon.started.exit_code, 0) << daemon.started.errors;
    MustRun({"qemu-io", "-f", "raw", "-c", "write -P 5 1M 128k", "-c", "flush", images.Uri()});
    MustRun({"qemu-io", "-f", "raw", "-c", "read -P 5 1M 128k", images.Uri()});
  }
  EXPECT_TRUE(ReadFile(images.Path("raw")) == before);
}

// A port of 127.0.0.1 that nobody had a moment ago.
int FreePort() {
  const UniqueFd probe(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(bind(probe.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(getsockname(probe.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  return ntohs(address.sin_port);
}

TEST(BerthNbdTest, TracesAndCountsWhatItServes) {
  const Images images;
  const std::string metrics = absl::StrCat("127.0.0.1:", FreePort());
  std::string counted;
  {
    const Daemon daemon(
        images, BerthNbd(),
        {"-t", "--trace", absl::StrCat("nbd_*,enable=-nbd_client_left,file=", images.Path("trace")),
         "--metrics", metrics, "-f", "raw", images.Path("raw")});
    ASSERT_EQ(daemon.started.exit_code, 0) << daemon.started.errors;
    MustRun({"qemu-io", "-r", "-f", "raw", "-c", "read 0 64k", images.Uri()});
    const std::string script =
        "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())";
    counted =
        MustRun({"/usr/bin/python3", "-c", script, absl::StrCat("http://", metrics, "/metrics")}).output;
  }
  EXPECT_TRUE(absl::StrContains(counted, "berth_")) << counted;
  const std::string trace = ReadFile(images.Path("trace"));
  EXPECT_TRUE(absl::StrContains(trace, "nbd_client_connected unix:")) << trace;
  EXPECT_TRUE(absl::StrContains(trace, "nbd_request read bytes=65536")) << trace;
  EXPECT_FALSE(absl::StrContains(trace, "nbd_client_left")) << trace;
  EXPECT_TRUE(absl::StrContains(MustRun({BerthNbd(), "-T", "help"}).output, "nbd_request\n"));
}

TEST(BerthNbdTest, RefusesSocketsThatAreHandedOverWrongly) {
  const Images images;
  const auto run = [&](const std::string& count, const Arguments& options) {
    const std::string script = absl::StrCat("LISTEN_PID=$$ LISTEN_FDS=", count, " exec \"$@\"");
    return RunProgram(Arguments{"bash", "-c", script, "bash", BerthNbd()} + options, kSeconds);
  };
  const Arguments image = {"-f", "raw", images.Path("raw")};
  EXPECT_TRUE(absl::StrContains(run("2", image).errors, "LISTEN_FDS is '2'"));
  EXPECT_TRUE(absl::StrContains(run("1", image).errors, "descriptor 3"));
  for (const Arguments& option :
       {Arguments{"-p", "1"}, {"-b", "::1"}, {"-k", images.Socket()}, {"-c", "auto"}}) {
    const ProgramResult result = run("1", option + image);
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_TRUE(absl::StrContains(result.errors, option[0] + " does not go together")) << result.errors;
  }
}

TEST(BerthNbdTest, EveryOptionIsInTheManualTheTableAndTheCompletion) {
  const std::string manual = ReadFile("deploy/berth-nbd.1");
  const std::string table = ReadFile("docs/qemu-nbd.md");
  const std::string completion = ReadFile("deploy/berth-nbd.bash");
  const std::string help = MustRun({BerthNbd(), "--help"}).output;
  int options = 0;
  for (size_t at = help.find("  -"); at != std::string::npos; at = help.find("\n  ", at + 1)) {
    const std::string line = help.substr(at, help.find('\n', at + 1) - at);
    const size_t begin = line.find("--");
    if (begin == std::string::npos || begin > 12) continue;
    const std::string name = line.substr(begin, line.find_first_of(" =,", begin) - begin);
    ++options;
    EXPECT_TRUE(absl::StrContains(manual, "Fl -" + name.substr(2))) << name;
    EXPECT_TRUE(absl::StrContains(table, name)) << name;
    EXPECT_TRUE(absl::StrContains(completion, name)) << name;
  }
  EXPECT_GE(options, 35) << help;
}

UniqueFd Connect(const std::string& path) {
  UniqueFd client(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  EXPECT_EQ(connect(client.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0) << path;
  return client;
}

// Bytes that came, or 0 for the end; -1 where there was nothing for so long.
ssize_t ReceiveWithin(const UniqueFd& client, int milliseconds) {
  pollfd event = {client.get(), POLLIN, 0};
  if (poll(&event, 1, milliseconds) != 1) return -1;
  char bytes[256];
  return recv(client.get(), bytes, sizeof(bytes), 0);
}

TEST(BerthNbdTest, LetsClientsThatAreTooManyWait) {
  const Images images;
  const Daemon daemon(images, BerthNbd(), {"-t", "-f", "raw", images.Path("raw")});
  ASSERT_EQ(daemon.started.exit_code, 0) << daemon.started.errors;
  UniqueFd first = Connect(images.Socket());
  EXPECT_GT(ReceiveWithin(first, kSeconds * 1000), 0);
  const UniqueFd second = Connect(images.Socket());
  EXPECT_EQ(ReceiveWithin(second, 100), -1);
  first.Reset();
  EXPECT_GT(ReceiveWithin(second, kSeconds * 1000), 0);
}

TEST(BerthNbdTest, GivesUpOnAClientThatSaysNothing) {
  const Images images;
  const Daemon daemon(images, BerthNbd(), {"-t", "--handshake-limit", "1", "-f", "raw", images.Path("raw")});
  ASSERT_EQ(daemon.started.exit_code, 0) << daemon.started.errors;
  const UniqueFd silent = Connect(images.Socket());
  EXPECT_GT(ReceiveWithin(silent, kSeconds * 1000), 0);
  EXPECT_EQ(ReceiveWithin(silent, kSeconds * 1000), 0);
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
      {{"--selinux-label", "label", raw}, {"--selinux-label", "-k"}},
      {{"--handshake-limit", "never", raw}, {"--handshake-limit", "'never'", "seconds"}},
      {{"--connections", "2", raw}, {"--connections", "-c"}},
      {Arguments{"--selinux-label", "no label"} + serve, {"--selinux-label", "'no label'"}},
      {{"--tls-authz", "id", raw}, {"--tls-authz", "--tls-creds"}},
      {{"-f", "vmdk", raw}, {"-f", "'vmdk'", "qcow2"}},
      {{"-k", socket, "-f", "raw", missing}, {missing, "No such file"}},
      {{"-k", socket, "-f", "qcow2", raw}, {raw, "qcow2"}},
      {Arguments{"-o", "99999999"} + serve, {"-o", "99999999", absl::StrCat(kDiskBytes)}},
      {Arguments{"-P", "1"} + serve, {"-P", "'1'", "partition table"}},
      {Arguments{"-B", "none"} + serve, {"-B", "'none'"}},
      {Arguments{"-l", "none", "-k", socket, "-f", "qcow2", qcow2}, {qcow2, "none"}},
      {{"--image-opts", "-f", "raw", "driver=raw"}, {"--image-opts", "-f"}},
      {{"-k", socket, "--image-opts", raw}, {"driver"}},
      {{"-k", socket, "--image-opts", "driver=vmdk,file.filename=" + raw}, {"driver", "'vmdk'", "qcow2"}},
      {{"-k", socket, "--image-opts", "driver=raw"}, {"file", "missing"}},
      {{"-k", socket, "--image-opts", "driver=raw,file.filename=" + raw + ",file.speed=9"}, {"file.speed"}},
      {{"-k", socket, "--image-opts", "driver=raw,offset=some,file.filename=" + raw},
       {"offset", "'some'", "bytes"}},
      {{"-k", socket, "json:{\"driver\": "}, {"JSON"}},
      {Arguments{"--object", "secret,id=s"} + serve, {"'s'", "data", "file"}},
      {Arguments{"--object", "cipher,id=s"} + serve, {"'s'", "'cipher'", "tls-creds-psk"}},
      {Arguments{"--object", "tls-creds-psk,id=s,endpoint=server"} + serve, {"'s'", "dir"}},
      {Arguments{"--object", "tls-creds-anon,id=s,endpoint=both"} + serve,
       {"'s'", "'both'", "server or client"}},
      {Arguments{"--tls-creds", "s"} + serve, {"--tls-creds", "'s'"}},
      {Arguments{"-T", "nbd_*,level=9"} + serve, {"--trace", "level"}},
      {Arguments{"--metrics", "nowhere"} + serve, {"--metrics", "'nowhere'"}},
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
