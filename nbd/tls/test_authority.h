// TestAuthority: a certificate authority for tests, made when the test runs, so that nothing in the tree
// expires.
#ifndef BERTH_NBD_TLS_TEST_AUTHORITY_H_
#define BERTH_NBD_TLS_TEST_AUTHORITY_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "nbd/tls/openssl_handles.h"

namespace berth::nbd {

// What fails is a fault of the test: it aborts.
class TestAuthority {
 public:
  explicit TestAuthority(const std::string& name = "Berth tests");

  struct Wanted {
    std::string common_name = "localhost";
    std::string organization = "Example";
    // As OpenSSL writes them: "DNS:localhost", "IP:127.0.0.1".
    std::string alternative_names = "DNS:localhost,IP:127.0.0.1";
    absl::Duration begins = -absl::Hours(1);  // From now.
    absl::Duration ends = absl::Hours(24);    // From now.
  };
  struct Issued {
    std::string certificate;  // PEM, as the next.
    std::string key;
    long serial = 0;
  };
  Issued Issue(const Wanted& wanted);
  Issued Issue() { return Issue(Wanted()); }

  const std::string& certificate() const { return certificate_pem_; }
  std::string RevocationList(const std::vector<long>& serials, absl::Duration next = absl::Hours(24)) const;

 private:
  const PrivateKey key_;
  Certificate certificate_;
  std::string certificate_pem_;
  long next_serial_ = 100;
};

// A folder of its own for credentials, removed at the end.
class TestTlsFolder {
 public:
  TestTlsFolder();
  // With everything that a server and a client of `authority` need.
  explicit TestTlsFolder(TestAuthority& authority);
  TestTlsFolder(const TestTlsFolder&) = delete;
  TestTlsFolder& operator=(const TestTlsFolder&) = delete;
  ~TestTlsFolder();

  const std::string& path() const { return path_; }
  std::string File(absl::string_view name) const;
  // Replaced as an agent would: at once. Returns the path.
  std::string Write(absl::string_view name, absl::string_view content) const;
  void WriteServer(const TestAuthority::Issued& issued) const;
  void WriteClient(const TestAuthority::Issued& issued) const;
  void Remove(absl::string_view name) const;

 private:
  std::string path_;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_TLS_TEST_AUTHORITY_H_
