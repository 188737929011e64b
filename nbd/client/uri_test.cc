#include "nbd/client/uri.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace berth::nbd {
namespace {

using testing::HasSubstr;

Uri Parsed(absl::string_view text) {
  absl::StatusOr<Uri> uri = Uri::Parse(text);
  EXPECT_TRUE(uri.ok()) << uri.status();
  if (!uri.ok()) return {};
  EXPECT_EQ(Uri::Parse(uri->ToString()).value(), *uri) << uri->ToString();
  return *std::move(uri);
}

std::string ErrorOf(absl::string_view text) {
  const absl::StatusOr<Uri> uri = Uri::Parse(text);
  EXPECT_EQ(uri.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(uri.status().message());
}

// "NBD URI export name": the table.
TEST(UriTest, ExportNames) {
  EXPECT_EQ(Parsed("nbd://example.com/disk").export_name, "disk");
  EXPECT_EQ(Parsed("nbd+unix:///disk?socket=sock").export_name, "disk");
  EXPECT_EQ(Parsed("nbd://example.com/").export_name, "");
  EXPECT_EQ(Parsed("nbd://example.com").export_name, "");
  EXPECT_EQ(Parsed("nbd://example.com//disk").export_name, "/disk");
  EXPECT_EQ(Parsed("nbd://example.com/hello%20world").export_name, "hello world");
  EXPECT_EQ(Parsed("nbd://h/F%C3%BC%c3%9fe%3F%23%25").export_name, "Füße?#%");
  const std::string longest(4096, ' ');
  std::string escaped;
  for (size_t i = 0; i < longest.size(); ++i) escaped += "%20";
  EXPECT_EQ(Parsed("nbd://h/" + escaped).export_name, longest);
}

TEST(UriTest, Tcp) {
  const Uri uri = Parsed("nbd://example.com:10810/disk");
  EXPECT_EQ(uri.family, Uri::Family::kTcp);
  EXPECT_FALSE(uri.tls);
  EXPECT_EQ(uri.host, "example.com");
  EXPECT_EQ(uri.port, 10810u);
  EXPECT_EQ(Parsed("nbd://example.com:/disk").port, 10809u);  // RFC 3986, 3.2.3.
  EXPECT_EQ(Parsed("nbd://[::1]:7/").host, "::1");
  EXPECT_EQ(Parsed("nbd://[::1]:7/").port, 7u);
  EXPECT_EQ(Parsed("nbd://[2001:db8::1]").ToString(), "nbd://[2001:db8::1]/");
  EXPECT_EQ(Parsed("nbd://ex%61mple").host, "example");
  EXPECT_TRUE(Parsed("NBDS://h").tls);
}

TEST(UriTest, BareDefaults) {
  for (const char* text : {"nbd:", "nbd:/", "nbd://", "nbd:///", "nbd:?"}) {
    EXPECT_EQ(Parsed(text), Uri()) << text;
    EXPECT_EQ(Parsed(text).ToString(), "nbd://localhost/");
  }
  EXPECT_EQ(Parsed("nbd:/name").export_name, "name");
  const Uri vsock = Parsed("nbd+vsock:///");
  EXPECT_EQ(vsock.family, Uri::Family::kVsock);
  EXPECT_EQ(vsock.cid, 2u);
  EXPECT_EQ(vsock.port, 10809u);
}

TEST(UriTest, Unix) {
  const Uri uri = Parsed("nbd+unix:///?socket=/run/a%26b%20c.sock");
  EXPECT_EQ(uri.family, Uri::Family::kUnix);
  EXPECT_EQ(uri.socket, "/run/a&b c.sock");
  EXPECT_EQ(uri.ToString(), "nbd+unix:///?socket=/run/a%26b%20c.sock");
  // "NBD URI socket parameter"
  EXPECT_EQ(Parsed("nbd+unix:///?socket=%00/abstract").socket, std::string("\0/abstract", 10));
  EXPECT_EQ(Parsed("nbd+unix:/name?socket=s").export_name, "name");
  EXPECT_EQ(Parsed("nbd+unix:///?socket=" + std::string(107, 's')).socket.size(), 107u);
}

TEST(UriTest, Vsock) {
  const Uri uri = Parsed("nbds+vsock://4294967294:4294967294/disk");
  EXPECT_EQ(uri.family, Uri::Family::kVsock);
  EXPECT_TRUE(uri.tls);
  EXPECT_EQ(uri.cid, 4294967294u);
  EXPECT_EQ(uri.port, 4294967294u);
}

TEST(UriTest, Tls) {
  const Uri uri = Parsed(
      "nbds+unix://alice@/?socket=s&tls-type=x509&tls-certificates=/"
      "a%20b&tls-hostname=x.y&tls-verify-peer=0");
  EXPECT_EQ(uri.tls_username, "alice");
  EXPECT_EQ(uri.tls_type, Uri::TlsType::kX509);
  EXPECT_EQ(uri.tls_certificates, "/a b");
  EXPECT_EQ(uri.tls_hostname, "x.y");
  EXPECT_EQ(uri.tls_verify_peer, false);
  const Uri psk = Parsed("nbds://h/?tls-psk-file=keys.psk&tls-username=b%40c&tls-verify-peer=1");
  EXPECT_EQ(psk.tls_psk_file, "keys.psk");
  EXPECT_EQ(psk.tls_username, "b@c");
  EXPECT_EQ(psk.tls_verify_peer, true);
  EXPECT_FALSE(psk.tls_type.has_value());
  EXPECT_EQ(Parsed("nbds://u@h/?tls-username=u").tls_username, "u");
  EXPECT_EQ(Parsed("nbds://h/?tls-type=anon").tls_type, Uri::TlsType::kAnonymous);
}

TEST(UriTest, EveryMistakeIsNamedWithItsWayOut) {
  const std::pair<std::string, const char*> cases[] = {
      {"", "there is no scheme; it begins with nbd, nbds"},
      {"/dev/nbd0", "there is no scheme"},
      {"http://h/", "the scheme 'http' is none of NBD's, which are nbd, nbds, nbd+unix"},
      {"nbd+tcp://h/", "the scheme 'nbd+tcp'"},
      {"nbdx://h/", "the scheme 'nbdx'"},
      {"://u@h/", "the scheme '' is none of NBD's"},
      {"+unix:///?socket=s", "the scheme '+unix' is none of NBD's"},
      {"nbd:localhost:10809", "'//' belongs after nbd:, as in nbd://HOST:PORT/NAME"},
      {"nbd://h/a b", "the byte ' ' is written %20 in a URI"},
      {"nbd://h/ü", "the byte '\\xc3' is written %c3 in a URI"},
      {"nbd://h/a#b", "a # in a name is written %23"},
      {"nbd://h/%zz", "the export name: two hexadecimal digits belong after a %, not 'zz'"},
      {"nbd://h/%4", "not '4'"},
      {"nbd://h/%00", "the export name '\\x00' is no text in UTF-8 without NUL"},
      {"nbd://h/%ff", "is no text in UTF-8"},
      {"nbd://h/" + std::string(4097, 'n'), "the export name has 4097 bytes, and at most 4096 are allowed"},
      {"nbd://h/" + std::string(40000, 'n'), "it has 40008 bytes, and at most 32768 are read"},
      {"nbd://h:0/", "the port: '0' is no number from 1 to 65535"},
      {"nbd://h:65536/", "the port: '65536'"},
      {"nbd://h:+1/", "the port: '+1'"},
      {"nbd://h:99999999999999999999/", "the port: '99999999999999999999'"},
      {"nbd://::1/", "an IPv6 address is written [::1]"},
      {"nbd://[::1/", "its bracket is not closed"},
      {"nbd://[::g]/", "'::g' in brackets is no IPv6 address"},
      {"nbd://[::1]7/", "':PORT' or nothing belongs after the bracket, not '7'"},
      {"nbd://a%2fb/", "the host: 'a/b' is no host name"},
      {"nbd+vsock://host/", "the host: 'host' is no context identifier; with vsock it is a number"},
      {"nbd+vsock://4294967295/", "the host: '4294967295'"},
      {"nbd+unix:///disk", "the parameter socket= is missing"},
      {"nbd+unix://h/?socket=s",
       "'h' is a host, and a Unix socket has none; write nbd+unix:///NAME?socket=PATH"},
      {"nbd+unix:///?socket", "the parameter socket= has no value"},
      {"nbd+unix:///?socket=", "the parameter socket= has no value"},
      {"nbd+unix:///?socket=a%00b", "holds a NUL, which can only be the first byte"},
      {"nbd+unix:///?socket=%00", "no abstract name follows %00"},
      {"nbd+unix:///?socket=" + std::string(108, 's'), "has 108 bytes and a Unix socket's path at most 107"},
      {"nbd+unix:///?socket=a&socket=a", "the parameter 'socket' is there twice"},
      {"nbd://h/?socket=s", "the parameter socket= is for Unix sockets; write nbd+unix:///NAME?socket=PATH"},
      {"nbd://h/?sokcet=s", "the parameter 'sokcet' is not known; there are socket, tls-type"},
      {"nbd://h/?tls-type=x509", "the parameter tls-type= needs TLS, and nbd: has none; write nbds:"},
      {"nbd+unix:///?socket=s&tls-hostname=h", "and nbd+unix: has none; write nbds+unix:"},
      {"nbd://u@h/", "the user name 'u' is TLS's, and nbd: has none; write nbds:"},
      {"nbds://u:p@h/", "NBD has no passwords"},
      {"nbds://@h/", "the user name before @ is empty"},
      {"nbds://%ff@h/", "the user name is no text"},
      {"nbds://a@h/?tls-username=b", "two user names, 'a' and 'b'"},
      {"nbds://h/?tls-type=tls", "'tls' is none of anon, x509 and psk"},
      {"nbds://h/?tls-verify-peer=yes", "'yes' is neither 0 nor 1"},
      {"nbds://h/?tls-hostname=%00", "the parameter tls-hostname= holds a NUL"},
      {"nbds://h/?tls-type=psk", "tls-type=psk needs tls-psk-file="},
      {"nbds://h/?tls-type=x509&tls-psk-file=f", "tls-psk-file= is for tls-type=psk alone"},
      {"nbds://h/?tls-type=anon&tls-certificates=d", "tls-certificates= is for tls-type=x509 alone"},
      {"nbds://h/?tls-psk-file=f&tls-certificates=d", "exclude each other"},
  };
  for (const auto& [text, error] : cases) EXPECT_THAT(ErrorOf(text), HasSubstr(error));
}

}  // namespace
}  // namespace berth::nbd
