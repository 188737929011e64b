#include "nbd/address.h"

#include <sys/un.h>
#include <unistd.h>

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "image/io/unique_fd.h"

namespace berth::nbd {
namespace {

std::string ErrorOf(absl::string_view text) {
  absl::StatusOr<Address> address = Address::Parse(text);
  if (address.ok()) return absl::StrCat("parsed as ", address->ToString());
  EXPECT_EQ(address.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(address.status().message(), text)) << address.status();
  return std::string(address.status().message());
}

TEST(AddressTest, ReadsWhatPeopleWrite) {
  struct Case {
    const char* text;
    Address::Kind kind;
    const char* path;
    const char* host;
    uint16_t port;
    const char* canonical;
  };
  using Kind = Address::Kind;
  const Case cases[] = {
      {"unix:/run/berth/nbd.sock", Kind::kUnix, "/run/berth/nbd.sock", "", 10809, "unix:/run/berth/nbd.sock"},
      {"unix:relative:odd", Kind::kUnix, "relative:odd", "", 10809, "unix:relative:odd"},
      {"localhost", Kind::kTcp, "", "localhost", 10809, "localhost:10809"},
      {"localhost:0", Kind::kTcp, "", "localhost", 0, "localhost:0"},
      {"192.0.2.1:65535", Kind::kTcp, "", "192.0.2.1", 65535, "192.0.2.1:65535"},
      {"[::1]", Kind::kTcp, "", "::1", 10809, "[::1]:10809"},
      {"[2001:db8::7]:1234", Kind::kTcp, "", "2001:db8::7", 1234, "[2001:db8::7]:1234"},
      {":4711", Kind::kTcp, "", "", 4711, ":4711"},
  };
  for (const Case& c : cases) {
    absl::StatusOr<Address> address = Address::Parse(c.text);
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(address->kind, c.kind) << c.text;
    EXPECT_EQ(address->path, c.path);
    EXPECT_EQ(address->host, c.host);
    EXPECT_EQ(address->port, c.port) << c.text;
    EXPECT_EQ(address->ToString(), c.canonical);
    EXPECT_EQ(Address::Parse(address->ToString()).value(), *address);
  }
}

TEST(AddressTest, LongestPathOfAUnixSocket) {
  EXPECT_TRUE(Address::Parse("unix:" + std::string(107, 'p')).ok());
  EXPECT_TRUE(absl::StrContains(ErrorOf("unix:" + std::string(108, 'p')), "108 bytes"));
  EXPECT_TRUE(absl::StrContains(ErrorOf("unix:" + std::string(108, 'p')), "at most 107"));
}

TEST(AddressTest, ErrorsSayWhatIsWrong) {
  EXPECT_TRUE(absl::StrContains(ErrorOf(""), "empty"));
  EXPECT_TRUE(absl::StrContains(ErrorOf("unix:"), "no path"));
  EXPECT_TRUE(absl::StrContains(ErrorOf(absl::string_view("unix:a\0b", 8)), "NUL"));
  EXPECT_TRUE(absl::StrContains(ErrorOf("/run/nbd.sock"), "unix:"));
  EXPECT_TRUE(absl::StrContains(ErrorOf("nbd://host"), "URI"));
  EXPECT_TRUE(absl::StrContains(ErrorOf("::1"), "[IPV6]:PORT"));
  EXPECT_TRUE(absl::StrContains(ErrorOf("::1:10809"), "[IPV6]:PORT"));
  EXPECT_TRUE(absl::StrContains(ErrorOf("[::1"), "not closed"));
  EXPECT_TRUE(absl::StrContains(ErrorOf("[::1]x"), "not 'x'"));
  EXPECT_TRUE(absl::StrContains(ErrorOf("[127.0.0.1]:1"), "no IPv6"));
  EXPECT_TRUE(absl::StrContains(ErrorOf("ho st:1"), "no host name"));
  for (absl::string_view port : {"", "65536", "99999", "123456", "4294967296", "-1", "+1", "0x10", "80 "}) {
    EXPECT_TRUE(absl::StrContains(ErrorOf(absl::StrCat("host:", port)), "is no port")) << port;
  }
}

TEST(AddressTest, NamesThePeer) {
  int sockets[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
  UniqueFd near(sockets[0]), far(sockets[1]);
  EXPECT_EQ(PeerName(near.get()), absl::StrCat("unix:pid=", getpid(), ",uid=", getuid()));
  EXPECT_EQ(PeerName(-1), "unknown");
}

}  // namespace
}  // namespace berth::nbd
