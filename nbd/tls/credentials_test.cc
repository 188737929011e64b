#include "nbd/tls/credentials.h"

#include <sys/stat.h>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "nbd/tls/test_authority.h"

namespace berth::nbd {
namespace {

class CredentialsTest : public testing::Test {
 protected:
  absl::Status Server(bool verify_client = true) {
    return TlsCredentials::ForServer(
               {.certificates = folder_.path(), .psk = "", .verify_client = verify_client})
        .status();
  }
  absl::Status Client() {
    ClientTlsFiles files;
    files.certificates = folder_.path();
    return TlsCredentials::ForClient(files).status();
  }
  void Expect(const absl::Status& status, absl::StatusCode code, absl::string_view file,
              absl::string_view reason) {
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_NE(status.message().find(absl::StrCat(folder_.path(), "/", file)), absl::string_view::npos)
        << status;
    EXPECT_NE(status.message().find(reason), absl::string_view::npos) << status;
  }

  TestAuthority authority_;
  TestTlsFolder folder_{authority_};
};

TEST_F(CredentialsTest, WhatQemuAndLibvirtWriteIsRead) {
  EXPECT_TRUE(Server().ok()) << Server();
  EXPECT_TRUE(Client().ok()) << Client();
  folder_.Write("ca-crl.pem", authority_.RevocationList({}));
  EXPECT_TRUE(Server().ok()) << Server();
}

TEST_F(CredentialsTest, WhatIsNotNeededMayBeMissing) {
  folder_.Remove("ca-cert.pem");
  EXPECT_TRUE(Server(false).ok()) << Server(false);
  Expect(Server(), absl::StatusCode::kNotFound, "ca-cert.pem", "No such file");
  folder_.Write("ca-cert.pem", authority_.certificate());
  folder_.Remove("client-cert.pem");
  folder_.Remove("client-key.pem");
  EXPECT_TRUE(Client().ok()) << Client();
}

TEST_F(CredentialsTest, AnonymousIsSaidAloneAndAloud) {
  ServerTlsFiles files;
  files.anonymous = true;
  EXPECT_TRUE(TlsCredentials::ForServer(files).ok());
  files.certificates = folder_.path();
  EXPECT_EQ(TlsCredentials::ForServer(files).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CredentialsTest, MissingFiles) {
  folder_.Remove("server-key.pem");
  Expect(Server(), absl::StatusCode::kNotFound, "server-key.pem", "No such file");
  folder_.Remove("server-cert.pem");
  Expect(Server(), absl::StatusCode::kNotFound, "server-cert.pem", "No such file");
  folder_.Remove("client-key.pem");
  Expect(Client(), absl::StatusCode::kNotFound, "client-key.pem", "No such file");
  EXPECT_EQ(TlsCredentials::ForServer({}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CredentialsTest, AKeyOfAnotherCertificate) {
  folder_.Write("server-key.pem", authority_.Issue().key);
  Expect(Server(), absl::StatusCode::kFailedPrecondition, "server-key.pem",
         "this is not the key of the certificate");
}

TEST_F(CredentialsTest, FilesThatHoldSomethingElse) {
  folder_.Write("server-cert.pem", "hello\n");
  Expect(Server(), absl::StatusCode::kInvalidArgument, "server-cert.pem",
         "there is no PEM certificate in it");
  folder_.Write("server-cert.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
  Expect(Server(), absl::StatusCode::kInvalidArgument, "server-cert.pem", "a broken certificate");
  folder_.WriteServer(authority_.Issue());
  folder_.Write("server-key.pem", "");
  Expect(Server(), absl::StatusCode::kInvalidArgument, "server-key.pem", "there is no PEM private key in it");
  folder_.WriteServer(authority_.Issue());
  folder_.Write("ca-crl.pem", authority_.certificate());
  Expect(Server(), absl::StatusCode::kInvalidArgument, "ca-crl.pem", "there is no PEM revocation list in it");
  folder_.Write("ca-crl.pem", std::string(2 << 20, 'x'));
  Expect(Server(), absl::StatusCode::kInvalidArgument, "ca-crl.pem", "more than 1 MiB");
  folder_.Remove("ca-crl.pem");
  ASSERT_EQ(mkfifo(folder_.File("ca-crl.pem").c_str(), 0600), 0);
  Expect(Server(), absl::StatusCode::kInvalidArgument, "ca-crl.pem", "not a regular file");
}

TEST_F(CredentialsTest, WhatIsOutOfDate) {
  TestAuthority::Wanted expired;
  expired.ends = -absl::Minutes(5);
  folder_.WriteServer(authority_.Issue(expired));
  Expect(Server(), absl::StatusCode::kFailedPrecondition, "server-cert.pem",
         "the certificate of CN=localhost,O=Example has expired on ");
  TestAuthority::Wanted early;
  early.begins = absl::Hours(1);
  folder_.WriteServer(authority_.Issue(early));
  Expect(Server(), absl::StatusCode::kFailedPrecondition, "server-cert.pem", "is not valid before ");
  folder_.WriteServer(authority_.Issue());
  folder_.Write("ca-crl.pem", authority_.RevocationList({}, -absl::Hours(1)));
  Expect(Server(), absl::StatusCode::kFailedPrecondition, "ca-crl.pem", "should have been replaced by ");
}

TEST_F(CredentialsTest, ASecretThatOthersCanReadIsAWarning) {
  chmod(folder_.File("server-key.pem").c_str(), 0644);
  const std::string psk = folder_.Write("keys.psk", "alice:00112233445566778899aabbccddeeff\n");
  chmod(psk.c_str(), 0640);
  const auto credentials =
      TlsCredentials::ForServer({.certificates = folder_.path(), .psk = psk, .verify_client = true});
  ASSERT_TRUE(credentials.ok()) << credentials.status();
  ASSERT_EQ((*credentials)->warnings().size(), 2u);
  EXPECT_NE((*credentials)->warnings()[0].find("server-key.pem: others"), std::string::npos);
  EXPECT_NE((*credentials)->warnings()[1].find("keys.psk: others"), std::string::npos);
}

TEST_F(CredentialsTest, PreSharedKeys) {
  const std::string psk = folder_.Write("keys.psk", "alice:00112233445566778899aabbccddeeff\n");
  EXPECT_TRUE(TlsCredentials::ForServer({.certificates = "", .psk = psk}).ok());
  ClientTlsFiles files;
  files.psk = psk;
  files.psk_user = "alice";
  EXPECT_TRUE(TlsCredentials::ForClient(files).ok());
  files.psk_user = "bob";
  Expect(TlsCredentials::ForClient(files).status(), absl::StatusCode::kNotFound, "keys.psk",
         "no key of user \"bob\"");
  folder_.Write("keys.psk", "alice:zz\n");
  Expect(TlsCredentials::ForServer({.certificates = "", .psk = psk}).status(),
         absl::StatusCode::kInvalidArgument, "keys.psk", "line 1: the key is not");
}

}  // namespace
}  // namespace berth::nbd
