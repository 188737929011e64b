// Debian's clients against Berth and against qemu-nbd and nbdkit with the same image: what differs is listed
// here, with its reason, and nothing else differs.
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <regex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "gtest/gtest.h"
#include "nbd/tls/credentials.h"
#include "nbd/tls/test_authority.h"
#include "tests/interop/client_commands.h"
#include "tests/interop/interop_fixture.h"
#include "tests/interop/peer.h"

namespace berth::testing {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr char kDescription[] = "Füße";

constexpr char kPsk[] = "alice:9e32cf7786321a828ef7668f09fb35dbf6b9e32cf7786321a828ef7668f09fb3\n";

enum class Kind { kQemuNbd, kNbdkit };
enum class Tls { kNone, kCertificates, kPsk };

struct Meeting {
  Kind kind;
  bool tcp;
  Tls tls = Tls::kNone;
};

std::string MeetingName(const ::testing::TestParamInfo<Meeting>& info) {
  const std::string tls = info.param.tls == Tls::kNone  ? ""
                          : info.param.tls == Tls::kPsk ? "Psk"
                                                        : "Certificates";
  return absl::StrCat(info.param.kind == Kind::kQemuNbd ? "QemuNbd" : "Nbdkit",
                      info.param.tcp ? "OverTcp" : "OverUnix", tls);
}

// What one server prints, or answers, and the other does not.
struct Difference {
  Kind peer;
  const char* line;  // A regular expression for the lines of both.
  const char* why;
  bool always = true;     // Or only on some machines, of read-only exports, or under TLS.
  bool only_tls = false;  // And never in the clear.
};

constexpr Difference kDifferences[] = {
    // What the clients print of an export.
    {Kind::kQemuNbd, ".*(is_|is )rotational.*", "Berth asks the disk below, which may be of either kind",
     false},
    {Kind::kNbdkit, ".*(is_|is )rotational.*", "Berth asks the disk below, which may be of either kind",
     false},
    {Kind::kNbdkit, ".*block_size_(minimum|preferred|maximum).*",
     "nbdkit's file plugin has no NBD_INFO_BLOCK_SIZE"},
    {Kind::kNbdkit, ".*can.fast.zero.*", "nbdkit's file plugin does not offer it"},
    {Kind::kNbdkit, ".*(can_|can )fua.*",
     "nbdkit does not offer FUA for what cannot be written; Berth ignores it there", false},
    // What they answer to requests.
    {Kind::kQemuNbd,
     ".*, (write|zero) of (across the end|at the end|far away|the last offsets|no length beyond "
     "the end|4 GiB): .*",
     "ENOSPC is what the specification wants; qemu says EINVAL"},
    {Kind::kQemuNbd, "structured, read of (33|64) MiB: .*",
     "EOVERFLOW tells the client to ask for less; qemu says EINVAL"},
    {Kind::kQemuNbd, ".*, write of (33|64) MiB: .*",
     "qemu hangs up; Berth reads past what it has to refuse, up to 64 MiB"},
    {Kind::kQemuNbd, ".*, cache of everything: .*",
     "qemu reads what it caches, at most 32 MiB; Berth hints to the kernel"},
    {Kind::kQemuNbd, "option, contexts of no colon: .*",
     "Berth calls a query without a namespace invalid, as it may; qemu ignores it"},
    {Kind::kNbdkit, "option, contexts of no colon: .*",
     "Berth calls a query without a namespace invalid, as it may; nbdkit ignores it"},
    {Kind::kNbdkit, "option, contexts of three: .*", "nbdkit lists a context once for each query"},
    {Kind::kNbdkit, ".*, (read|write|trim|cache|zero) of no length( at the end)?: .*",
     "unspecified: nbdkit refuses it, Berth and qemu have nothing to do"},
    {Kind::kNbdkit, "structured, status from an odd offset: .*",
     "nbdkit tells more than was asked, as it may"},
    {Kind::kNbdkit, ".*, (read|write) of (33|64) MiB: .*",
     "nbdkit's largest payload is 64 MiB; Berth has the 32 MiB that it advertises"},
    {Kind::kNbdkit, ".*, write (of|with) .*", "under TLS nbdkit hangs up after a write that it refuses",
     false, true},
};

class PeersTest : public ::testing::TestWithParam<Meeting> {
 protected:
  Kind kind() const { return GetParam().kind; }
  bool tcp() const { return GetParam().tcp; }
  Tls tls() const { return GetParam().tls; }

  // Both servers, each with its own image of the same content.
  void Start(uint64_t size, bool with_data = true, bool read_only = false) {
    TestServerOptions options;
    options.read_only = read_only;
    options.size = size;
    options.description = kDescription;
    if (tls() != Tls::kNone) {
      ASSERT_NO_FATAL_FAILURE(RequireTls(&options));
    }
    auto server = TestServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    std::string content;
    if (with_data) {
      // Data and holes in turn, from one block to a megabyte, and zeroes that are written.
      for (size_t run = 4096; content.size() + 2 * run <= size; run = run == kMiB ? 4096 : 2 * run) {
        content += RandomBytes(run, static_cast<unsigned>(content.size())) + std::string(run, '\0');
      }
    }
    content.resize(size);
    const std::string theirs = server_->folder() + "/theirs.raw";
    for (const std::string& path : {server_->image_path(), theirs}) WriteSparsely(path, content);
    std::vector<std::string> command =
        kind() == Kind::kQemuNbd ? QemuNbdCommand(theirs, kDescription) : NbdkitCommand(theirs, kDescription);
    if (read_only) command.insert(command.begin() + 1, "-r");
    const std::vector<std::string> credentials = PeersCredentials();
    command.insert(command.begin() + 1, credentials.begin(), credentials.end());
    auto peer = Peer::Start(command, server_->folder(), tcp());
    ASSERT_TRUE(peer.ok()) << peer.status();
    peer_ = *std::move(peer);
  }
  static void WriteSparsely(const std::string& path, const std::string& content);

  void RequireTls(TestServerOptions* options) {
    nbd::ServerTlsFiles files;
    files.verify_client = tls() == Tls::kCertificates;
    if (tls() == Tls::kCertificates) {
      files.certificates = certificates_.path();
    } else {
      files.psk = keys_.Write("keys.psk", kPsk);
    }
    auto credentials = nbd::TlsCredentials::ForServer(files);
    ASSERT_TRUE(credentials.ok()) << credentials.status();
    options->server.handshake.tls = nbd::TlsMode::kRequire;
    options->server.tls_credentials = [made = *credentials] { return made; };
  }
  // The same for the peer, on its command line.
  std::vector<std::string> PeersCredentials() const {
    if (tls() == Tls::kNone) return {};
    const bool psk = tls() == Tls::kPsk;
    if (kind() == Kind::kNbdkit) {
      if (psk) return {"--tls=require", "--tls-psk=" + keys_.File("keys.psk")};
      return {"--tls=require", "--tls-certificates=" + certificates_.path(), "--tls-verify-peer"};
    }
    return {"--object",
            psk ? "tls-creds-psk,id=tls,endpoint=server,dir=" + keys_.path()
                : "tls-creds-x509,id=tls,endpoint=server,verify-peer=yes,dir=" + certificates_.path(),
            "--tls-creds", "tls"};
  }
  // A URI for libnbd that has what the client proves itself with, from one in the clear.
  std::string WithTls(std::string uri) const {
    if (tls() == Tls::kNone) return uri;
    const std::string user = tls() == Tls::kPsk ? "alice@" : "";
    uri = absl::StrReplaceAll(
        uri, {{"nbd+unix://", "nbds+unix://" + user}, {"nbd://127.0.0.1", "nbds://" + user + "localhost"}});
    return absl::StrCat(uri, absl::StrContains(uri, '?') ? "&" : "?",
                        tls() == Tls::kPsk ? "tls-psk-file=" + keys_.File("keys.psk")
                                           : "tls-certificates=" + certificates_.path());
  }

  // What a server answers to requests and options of every kind.
  std::multiset<std::string> Answers(const std::string& uri) const;
  void ExpectSameImages() {
    EXPECT_TRUE(ReadFile(server_->image_path()) == ReadFile(server_->folder() + "/theirs.raw"));
  }

  std::string OurUri() const { return WithTls(tcp() ? server_->ipv4_uri() : server_->uri()); }
  std::string TheirUri() const { return WithTls(peer_->Uri("disk")); }

  nbd::TestAuthority authority_;
  nbd::TestTlsFolder certificates_{authority_};
  nbd::TestTlsFolder keys_;
  std::unique_ptr<TestServer> server_;
  std::unique_ptr<Peer> peer_;
};

void PeersTest::WriteSparsely(const std::string& path, const std::string& content) {
  FILE* file = fopen(path.c_str(), "r+");
  if (file == nullptr) file = fopen(path.c_str(), "w");
  ASSERT_NE(file, nullptr);
  for (size_t at = 0; at < content.size(); at += 4096) {
    const std::string block = content.substr(at, 4096);
    if (block.find_first_not_of('\0') == std::string::npos) continue;
    ASSERT_EQ(fseek(file, static_cast<long>(at), SEEK_SET), 0);
    ASSERT_EQ(fwrite(block.data(), 1, block.size(), file), block.size());
  }
  ASSERT_EQ(fflush(file), 0);
  ASSERT_EQ(ftruncate(fileno(file), static_cast<off_t>(content.size())), 0);
  fclose(file);
}

// Of what a program printed, without what stands for the server's address, and its exit code.
std::multiset<std::string> Lines(const ClientCommand& command, const std::string& uri) {
  const ProgramResult result = RunProgram(command.arguments);
  std::multiset<std::string> lines = {absl::StrCat(command.name, " exits with ", result.exit_code)};
  const std::string text = absl::StrReplaceAll(result.output, {{uri, "URI"}});
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    lines.insert(std::string(absl::StripSuffix(absl::StripTrailingAsciiWhitespace(line), ",")));
  }
  return lines;
}

// Expects that what differs is in the list for this peer; notes in `seen` what was used of it.
void ExpectListed(const Meeting& meeting, const std::multiset<std::string>& ours,
                  const std::multiset<std::string>& theirs, const std::string& what,
                  std::set<const Difference*>* seen) {
  std::vector<std::string> different;
  std::set_symmetric_difference(ours.begin(), ours.end(), theirs.begin(), theirs.end(),
                                std::back_inserter(different));
  for (const std::string& line : different) {
    bool listed = false;
    for (const Difference& difference : kDifferences) {
      if (difference.peer != meeting.kind || (difference.only_tls && meeting.tls == Tls::kNone)) continue;
      if (!std::regex_match(line, std::regex(difference.line))) continue;
      listed = true;
      seen->insert(&difference);
    }
    EXPECT_TRUE(listed) << what
                        << (ours.count(line) > theirs.count(line) ? ": Berth alone: " : ": the peer alone: ")
                        << line;
  }
}

std::multiset<std::string> PeersTest::Answers(const std::string& uri) const {
  // Debian's Python, which has libnbd.
  std::vector<std::string> ask = {"/usr/bin/python3", "tests/interop/answers.py", uri};
  // nbdkit 1.32 aborts when it is asked for a fast zero that it did not offer.
  if (kind() == Kind::kNbdkit) ask.push_back("fast-zero");
  return Lines({"answers", ask}, uri);
}

TEST_P(PeersTest, ClientsSeeTheSameExport) {
  Start(9 * kMiB);
  std::set<const Difference*> seen;
  const std::vector<ClientCommand> ours = LookingCommands(OurUri(), OurUri());
  const std::vector<ClientCommand> theirs = LookingCommands(TheirUri(), TheirUri());
  for (size_t i = 0; i < ours.size(); ++i) {
    ExpectListed(GetParam(), Lines(ours[i], OurUri()), Lines(theirs[i], TheirUri()), ours[i].name, &seen);
  }
  std::vector<std::string> our_list = {"/usr/sbin/nbd-client", "-l"}, their_list = our_list;
  const std::vector<std::string> our_address =
      tcp() ? std::vector<std::string>{"127.0.0.1", absl::StrCat(server_->ipv4_port())}
            : std::vector<std::string>{"-unix", server_->socket_path()};
  const std::vector<std::string> their_address = peer_->NbdClientArguments();
  our_list.insert(our_list.end(), our_address.begin(), our_address.end());
  their_list.insert(their_list.end(), their_address.begin(), their_address.end());
  ExpectListed(GetParam(), Lines({"nbd-client -l", our_list}, ""), Lines({"nbd-client -l", their_list}, ""),
               "nbd-client -l", &seen);
  // A difference that is gone has no place in the list.
  for (const Difference& difference : kDifferences) {
    const bool printed =
        absl::StrContains(difference.line, "_") || absl::StrContains(difference.line, "can.");
    if (difference.peer == kind() && difference.always && printed) {
      EXPECT_TRUE(seen.count(&difference)) << "no longer true: " << difference.line;
    }
  }
}

TEST_P(PeersTest, ReadOnlyExportsLookTheSame) {
  Start(9 * kMiB, /*with_data=*/true, /*read_only=*/true);
  std::set<const Difference*> seen;
  const std::vector<ClientCommand> ours = LookingCommands(OurUri(), OurUri());
  const std::vector<ClientCommand> theirs = LookingCommands(TheirUri(), TheirUri());
  for (size_t i = 0; i < ours.size(); ++i) {
    if (!absl::StartsWith(ours[i].name, "nbdinfo")) continue;
    ExpectListed(GetParam(), Lines(ours[i], OurUri()), Lines(theirs[i], TheirUri()), ours[i].name, &seen);
  }
}

TEST_P(PeersTest, RequestsAndOptionsHaveTheSameAnswers) {
  Start(96 * kMiB, /*with_data=*/false);
  const std::multiset<std::string> ours = Answers(OurUri());
  EXPECT_GT(ours.size(), 200u);
  std::set<const Difference*> seen;
  ExpectListed(GetParam(), ours, Answers(TheirUri()), "answers", &seen);
  for (const Difference& difference : kDifferences) {
    if (difference.peer == kind() && difference.always && absl::StrContains(difference.line, ", ")) {
      EXPECT_TRUE(seen.count(&difference)) << "no longer true: " << difference.line;
    }
  }
}

// Each copy with each client, and from one server to the other.
TEST_P(PeersTest, CopiesAreTheSame) {
  Start(24 * kMiB);
  const std::string content = ReadFile(server_->image_path());
  for (const std::string& uri : {OurUri(), TheirUri()}) {
    for (const ClientCommand& command : CopyingCommands(uri, server_->folder())) {
      RunToSuccess(command.arguments);
      EXPECT_TRUE(ReadFile(command.arguments.back()) == content) << command.name << " from " << uri;
    }
  }
  for (const auto& [from, to] :
       {std::make_pair(OurUri(), TheirUri()), std::make_pair(TheirUri(), OurUri())}) {
    RunToSuccess({"nbdcopy", "--connections=4", "--flush", from, to});
    RunToSuccess({"qemu-img", "compare", "-f", "raw", "-F", "raw", from, to});
    RunToSuccess({"qemu-io", "-f", "raw", "-c", from == OurUri() ? "write -P 7 3M 1M" : "write -P 8 4M 1M",
                  "-c", "flush", from});
    EXPECT_EQ(RunProgram({"qemu-img", "compare", "-f", "raw", "-F", "raw", from, to}).exit_code, 1);
    RunToSuccess({"qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", from, to});
    RunToSuccess({"qemu-img", "compare", "-s", "-f", "raw", "-F", "raw", from, to});
  }
}

TEST_P(PeersTest, ImagesAreFilledAlike) {
  Start(24 * kMiB);
  const std::string file = server_->folder() + "/in";
  for (size_t i = 0; i < FillingCommands(file, "").size(); ++i) {
    const unsigned seed = 100 + 2 * static_cast<unsigned>(i);
    const std::string content =
        RandomBytes(3 * kMiB + 1234, seed) + std::string(9 * kMiB, '\0') + RandomBytes(kMiB, seed + 1);
    WriteFile(file, content);
    ASSERT_EQ(truncate(file.c_str(), 24 * kMiB), 0);
    for (const std::string& uri : {OurUri(), TheirUri()})
      RunToSuccess(FillingCommands(file, uri)[i].arguments);
    ExpectSameImages();
    EXPECT_TRUE(absl::StartsWith(ReadFile(server_->image_path()), content));
  }
}

// fio verifies what it wrote; a program of all kinds of writes ends in the same image everywhere.
TEST_P(PeersTest, WorkEndsInTheSameImage) {
  Start(32 * kMiB);
  for (const std::string& uri : {OurUri(), TheirUri()}) {
    RunToSuccess({"fio", "--name=verify", "--ioengine=nbd", "--uri=" + uri, "--rw=randrw", "--rwmixread=30",
                  "--bsrange=512-64k", "--iodepth=32", "--size=32M", "--io_size=16M", "--verify=crc32c",
                  "--do_verify=1", "--verify_fatal=1", "--randseed=7", "--time_based=0", "--fsync=64",
                  "--output=" + server_->folder() + "/report"},
                 120);
    std::vector<std::string> work = {"qemu-io", "-f", "raw", "-d", "unmap"};
    for (const char* command :
         {"write -z 0 32M", "write -P 0xab 0 4M", "write -f -P 0xcd 777 4000", "write -z 1M 1M",
          "write -z -u 2M 1M", "write -z 3000001 70001", "discard 3M 64k", "write -P 9 3M 64k",
          "aio_write -P 1 8M 1M", "aio_write -P 2 9M 1M", "aio_write -z 10M 1M", "aio_flush", "flush",
          "read -P 2 9M 1M", "read -P 0 10M 1M"}) {
      work.insert(work.end(), {"-c", command});
    }
    work.push_back(uri);
    EXPECT_FALSE(absl::StrContains(RunToSuccess(work), "failed"));
  }
  ExpectSameImages();
}

// One peer over each way: what they differ in has nothing to do with it.
INSTANTIATE_TEST_SUITE_P(Ways, PeersTest,
                         ::testing::Values(Meeting{Kind::kQemuNbd, false}, Meeting{Kind::kNbdkit, true}),
                         MeetingName);

// What is the same in the clear is the same under TLS.
class TlsPeersTest : public PeersTest {};

TEST_P(TlsPeersTest, ClientsSeeTheSameExport) {
  Start(9 * kMiB);
  std::set<const Difference*> seen;
  const std::vector<ClientCommand> ours = LookingCommands(OurUri(), OurUri());
  const std::vector<ClientCommand> theirs = LookingCommands(TheirUri(), TheirUri());
  for (size_t i = 0; i < ours.size(); ++i) {
    // qemu's programs take no credentials from a URI; what nbdinfo says of one thing, it says with the others
    // too.
    if (absl::StartsWith(ours[i].name, "qemu") || absl::StrContains(ours[i].name, " --can ") ||
        absl::StrContains(ours[i].name, " --is ")) {
      continue;
    }
    ExpectListed(GetParam(), Lines(ours[i], OurUri()), Lines(theirs[i], TheirUri()), ours[i].name, &seen);
  }
}

TEST_P(TlsPeersTest, RequestsAndOptionsHaveTheSameAnswers) {
  Start(96 * kMiB, /*with_data=*/false);
  const std::multiset<std::string> ours = Answers(OurUri());
  EXPECT_GT(ours.size(), 200u);
  std::set<const Difference*> seen;
  ExpectListed(GetParam(), ours, Answers(TheirUri()), "answers", &seen);
}

TEST_P(TlsPeersTest, CopiesAreTheSame) {
  Start(24 * kMiB);
  RunToSuccess({"qemu-io", "-f", "raw", "-c", "write -P 7 3M 1M", server_->folder() + "/theirs.raw"});
  RunToSuccess({"nbdcopy", "--connections=4", "--flush", TheirUri(), OurUri()});
  ExpectSameImages();
}

INSTANTIATE_TEST_SUITE_P(Ways, TlsPeersTest,
                         ::testing::Values(Meeting{Kind::kQemuNbd, false, Tls::kCertificates},
                                           Meeting{Kind::kQemuNbd, true, Tls::kPsk},
                                           Meeting{Kind::kNbdkit, true, Tls::kCertificates},
                                           Meeting{Kind::kNbdkit, false, Tls::kPsk}),
                         MeetingName);

// nbdkit's nbd plugin between a client and Berth: one more client, which hands every command and flag on.
class ProxyTest : public InteropTest {};

TEST_P(ProxyTest, HandsEverythingOn) {
  Start({.size = 64 * kMiB, .description = kDescription});
  auto proxy = Peer::Start(NbdkitProxyCommand(Uri()), server_->folder(), GetParam() != Way::kUnix);
  ASSERT_TRUE(proxy.ok()) << proxy.status();
  RunToSuccess({"/usr/bin/python3", "tests/interop/commands.py", (*proxy)->Uri("")}, 120);
  const std::string content = RandomBytes(64 * kMiB, 5);
  WriteFile(Path("in"), content);
  RunToSuccess({"nbdcopy", "--connections=4", "--flush", Path("in"), (*proxy)->Uri("")});
  EXPECT_TRUE(ReadFile(server_->image_path()) == content);
  RunToSuccess({"qemu-img", "compare", "-f", "raw", "-F", "raw", (*proxy)->Uri(""), Uri()});
}

INSTANTIATE_TEST_SUITE_P(Ways, ProxyTest, ::testing::Values(Way::kUnix, Way::kIpv4, Way::kIpv6), WayName);

}  // namespace
}  // namespace berth::testing
