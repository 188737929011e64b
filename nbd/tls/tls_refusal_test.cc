// TLS handshakes that must fail, and what both ends say of it.
#include <openssl/pem.h>
#include <openssl/ssl.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "image/io/gate.h"
#include "nbd/tls/transport_fixture.h"

namespace berth::nbd {
namespace {

// Handshakes that must fail: what both ends say.
class RefusalTest : public TransportTest {
 protected:
  struct Outcome {
    absl::Status server;
    absl::Status client;  // Of the handshake, or else of the first byte after it.
  };
  Outcome Try(std::shared_ptr<const TlsCredentials> server, std::shared_ptr<const TlsCredentials> client,
              const std::string& name = "localhost") {
    MakeSockets();
    Outcome outcome;
    RunOn(reactor(), [&]() -> Task<void> {
      auto server_end = MakeTlsTransport(reactor(), std::move(server_socket_), std::move(server));
      auto client_end = MakeTlsTransport(reactor(), std::move(client_socket_), std::move(client), name);
      Gate gate(reactor());
      Spawn([](std::unique_ptr<TlsTransport> end, absl::Status* status, Gate::Holder) -> Task<void> {
        *status = co_await end->Handshake(kTimeout);
      }(std::move(server_end), &outcome.server, gate.Enter()));
      outcome.client = co_await client_end->Handshake(kTimeout);
      if (outcome.client.ok()) {
        int result;
        co_await ReceiveAll(*client_end, 1, &result);
        if (result == -EPROTO) outcome.client = absl::UnauthenticatedError(client_end->failure());
      }
      client_end.reset();
      co_await gate.Close();
    });
    return outcome;
  }
  std::shared_ptr<const TlsCredentials> ClientFrom(const TestTlsFolder& folder) {
    ClientTlsFiles files;
    files.certificates = folder.path();
    return Checked(TlsCredentials::ForClient(files));
  }
  static void ExpectReason(const absl::Status& status, absl::string_view reason) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << status;
    EXPECT_NE(status.message().find(reason), absl::string_view::npos) << status;
  }
};

INSTANTIATE_TEST_SUITE_P(Kinds, RefusalTest, testing::Values(Kind::kTls13, Kind::kTls12), NameOf);

TEST_P(RefusalTest, AClientOfAnotherAuthority) {
  TestAuthority other("Others");
  TestTlsFolder folder(other);
  folder.Write("ca-cert.pem", authority_.certificate());
  const Outcome outcome = Try(ServerCredentials(GetParam()), ClientFrom(folder));
  ExpectReason(outcome.server, "the client's certificate: unable to get local issuer certificate");
  ExpectReason(outcome.client, "unknown ca");
}

TEST_P(RefusalTest, AClientWithoutACertificate) {
  TestTlsFolder folder(authority_);
  folder.Remove("client-cert.pem");
  folder.Remove("client-key.pem");
  const Outcome outcome = Try(ServerCredentials(GetParam()), ClientFrom(folder));
  ExpectReason(outcome.server, "peer did not return a certificate");
  EXPECT_FALSE(outcome.client.ok());
}

TEST_P(RefusalTest, AServerOfAnotherAuthority) {
  TestAuthority other("Others");
  TestTlsFolder folder(authority_);
  folder.Write("ca-cert.pem", other.certificate());
  const Outcome outcome = Try(ServerCredentials(GetParam()), ClientFrom(folder));
  ExpectReason(outcome.client, "the server's certificate: unable to get local issuer certificate");
  ExpectReason(outcome.server, "unknown ca");
}

TEST_P(RefusalTest, AServerOfAnotherName) {
  ExpectReason(Try(ServerCredentials(GetParam()), ClientCredentials(GetParam()), "elsewhere.example").client,
               "the server's certificate: hostname mismatch");
  ExpectReason(Try(ServerCredentials(GetParam()), ClientCredentials(GetParam()), "192.0.2.1").client,
               "the server's certificate: IP address mismatch");
  EXPECT_TRUE(Try(ServerCredentials(GetParam()), ClientCredentials(GetParam()), "127.0.0.1").client.ok());
}

TEST_P(RefusalTest, AClientThatKnowsNoNameDoesNotConnect) {
  EXPECT_EQ(Try(ServerCredentials(GetParam()), ClientCredentials(GetParam()), "").client.code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_P(RefusalTest, ARevokedClient) {
  TestTlsFolder folder(authority_);
  const TestAuthority::Issued issued = authority_.Issue();
  folder.WriteClient(issued);
  folder_.Write("ca-crl.pem", authority_.RevocationList({issued.serial + 1}));
  EXPECT_TRUE(Try(ServerCredentials(GetParam()), ClientFrom(folder)).server.ok());
  folder_.Write("ca-crl.pem", authority_.RevocationList({issued.serial}));
  const Outcome outcome = Try(ServerCredentials(GetParam()), ClientFrom(folder));
  ExpectReason(outcome.server, "the client's certificate: certificate revoked");
  ExpectReason(outcome.client, "revoked");
}

// Its own library would not load it.
TEST_P(RefusalTest, AnExpiredClient) {
  TestTlsFolder folder(authority_);
  const auto client = ClientFrom(folder);
  TestAuthority::Wanted expired;
  expired.ends = -absl::Hours(1);
  const TestAuthority::Issued issued = authority_.Issue(expired);
  const OpensslBio certificate(BIO_new_mem_buf(issued.certificate.data(), -1));
  const OpensslBio key(BIO_new_mem_buf(issued.key.data(), -1));
  const Certificate own(PEM_read_bio_X509(certificate.get(), nullptr, nullptr, nullptr));
  const PrivateKey own_key(PEM_read_bio_PrivateKey(key.get(), nullptr, nullptr, nullptr));
  ASSERT_EQ(SSL_CTX_use_cert_and_key(client->context(), own.get(), own_key.get(), nullptr, 1), 1);
  const Outcome outcome = Try(ServerCredentials(GetParam()), client);
  ExpectReason(outcome.server, "the client's certificate: certificate has expired");
  ExpectReason(outcome.client, "expired");
}

TEST_P(RefusalTest, OldVersionsOfTls) {
  const auto client = ClientCredentials(GetParam());
  SSL_CTX_set_min_proto_version(client->context(), TLS1_VERSION);
  SSL_CTX_set_max_proto_version(client->context(), TLS1_1_VERSION);
  SSL_CTX_set_cipher_list(client->context(), "ALL:@SECLEVEL=0");
  // Not only for want of a cipher.
  ExpectReason(Try(ServerCredentials(GetParam()), client).server, "unsupported protocol");
}

// Whoever has something to prove, or wants proof, has no anonymous cipher.
TEST_P(RefusalTest, AnonymousOnesWithoutBothEndsSettingIt) {
  ServerTlsFiles server;
  server.anonymous = true;
  ClientTlsFiles client;
  client.anonymous = true;
  const auto anonymous_server = Checked(TlsCredentials::ForServer(server));
  const auto anonymous_client = Checked(TlsCredentials::ForClient(client));
  for (const Outcome& outcome : {Try(ServerCredentials(GetParam()), anonymous_client),
                                 Try(anonymous_server, ClientCredentials(GetParam()))}) {
    EXPECT_EQ(outcome.server.code(), absl::StatusCode::kUnauthenticated) << outcome.server;
    EXPECT_EQ(outcome.client.code(), absl::StatusCode::kUnauthenticated) << outcome.client;
  }
}

class PskRefusalTest : public RefusalTest {
 protected:
  std::shared_ptr<const TlsCredentials> ClientWith(const std::string& line) {
    ClientTlsFiles files;
    files.psk = folder_.Write("client.psk", line);
    files.psk_user = line.substr(0, line.find(':'));
    return Checked(TlsCredentials::ForClient(files));
  }
};

INSTANTIATE_TEST_SUITE_P(Kinds, PskRefusalTest, testing::Values(Kind::kPsk13, Kind::kPsk12), NameOf);

TEST_P(PskRefusalTest, AnUnknownUser) {
  const Outcome outcome =
      Try(ServerCredentials(GetParam()), ClientWith("mallory:00112233445566778899aabbccddeeff\n"));
  EXPECT_EQ(outcome.server.code(), absl::StatusCode::kUnauthenticated) << outcome.server;
  EXPECT_EQ(outcome.client.code(), absl::StatusCode::kUnauthenticated) << outcome.client;
}

TEST_P(PskRefusalTest, AnotherKey) {
  const Outcome outcome =
      Try(ServerCredentials(GetParam()), ClientWith("alice:ff112233445566778899aabbccddeeff\n"));
  EXPECT_EQ(outcome.server.code(), absl::StatusCode::kUnauthenticated) << outcome.server;
  EXPECT_EQ(outcome.client.code(), absl::StatusCode::kUnauthenticated) << outcome.client;
}

// A client with a key believes no certificate in its place.
TEST_P(PskRefusalTest, AServerWithCertificatesAlone) {
  const Outcome outcome =
      Try(ServerCredentials(Kind::kTls13), ClientWith("alice:00112233445566778899aabbccddeeff\n"));
  EXPECT_EQ(outcome.client.code(), absl::StatusCode::kUnauthenticated) << outcome.client;
  EXPECT_EQ(outcome.server.code(), absl::StatusCode::kUnauthenticated) << outcome.server;
}

}  // namespace
}  // namespace berth::nbd
