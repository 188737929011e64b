#include "nbd/tls/test_authority.h"

#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "nbd/tls/openssl_error.h"

namespace berth::nbd {
namespace {

void Check(bool ok, const char* what) {
  if (ok) return;
  fprintf(stderr, "test authority: %s: %s\n", what, TakeOpensslErrors().c_str());
  abort();
}

std::string TakePem(const OpensslBio& bio) {
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &text);
  return std::string(text, static_cast<size_t>(size));
}

std::string Pem(X509* certificate) {
  const OpensslBio bio(BIO_new(BIO_s_mem()));
  Check(PEM_write_bio_X509(bio.get(), certificate) == 1, "PEM");
  return TakePem(bio);
}

PrivateKey NewKey() {
  PrivateKey key(EVP_EC_gen("P-256"));
  Check(key != nullptr, "key");
  return key;
}

void AddName(X509_NAME* name, const char* field, const std::string& value) {
  if (value.empty()) return;
  const auto* bytes = reinterpret_cast<const unsigned char*>(value.data());
  Check(X509_NAME_add_entry_by_txt(name, field, MBSTRING_UTF8, bytes, static_cast<int>(value.size()), -1,
                                   0) == 1,
        field);
}

void AddExtension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str());
  Check(extension != nullptr && X509_add_ext(certificate, extension, -1) == 1, value.c_str());
  X509_EXTENSION_free(extension);
}

Certificate NewCertificate(EVP_PKEY* key, long serial, absl::Duration begins, absl::Duration ends) {
  Certificate certificate(X509_new());
  X509_set_version(certificate.get(), X509_VERSION_3);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), absl::ToInt64Seconds(begins));
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), absl::ToInt64Seconds(ends));
  X509_set_pubkey(certificate.get(), key);
  return certificate;
}

}  // namespace

TestAuthority::TestAuthority(const std::string& name)
    : key_(NewKey()), certificate_(NewCertificate(key_.get(), 1, -absl::Hours(48), absl::Hours(48))) {
  X509* own = certificate_.get();
  AddName(X509_get_subject_name(own), "CN", name);
  X509_set_issuer_name(own, X509_get_subject_name(own));
  AddExtension(own, own, NID_basic_constraints, "critical,CA:TRUE");
  AddExtension(own, own, NID_key_usage, "critical,keyCertSign,cRLSign");
  AddExtension(own, own, NID_subject_key_identifier, "hash");
  Check(X509_sign(own, key_.get(), EVP_sha256()) > 0, "sign");
  certificate_pem_ = Pem(own);
}

TestAuthority::Issued TestAuthority::Issue(const Wanted& wanted) {
  const PrivateKey key = NewKey();
  Issued issued;
  issued.serial = next_serial_++;
  const Certificate certificate = NewCertificate(key.get(), issued.serial, wanted.begins, wanted.ends);
  X509_NAME* name = X509_get_subject_name(certificate.get());
  AddName(name, "O", wanted.organization);
  AddName(name, "CN", wanted.common_name);
  X509_set_issuer_name(certificate.get(), X509_get_subject_name(certificate_.get()));
  AddExtension(certificate.get(), certificate_.get(), NID_basic_constraints, "critical,CA:FALSE");
  AddExtension(certificate.get(), certificate_.get(), NID_key_usage, "critical,digitalSignature");
  AddExtension(certificate.get(), certificate_.get(), NID_ext_key_usage, "serverAuth,clientAuth");
  if (!wanted.alternative_names.empty()) {
    AddExtension(certificate.get(), certificate_.get(), NID_subject_alt_name, wanted.alternative_names);
  }
  Check(X509_sign(certificate.get(), key_.get(), EVP_sha256()) > 0, "sign");
  issued.certificate = Pem(certificate.get());
  const OpensslBio bio(BIO_new(BIO_s_mem()));
  Check(PEM_write_bio_PrivateKey(bio.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr) == 1, "key");
  issued.key = TakePem(bio);
  return issued;
}

std::string TestAuthority::RevocationList(const std::vector<long>& serials, absl::Duration next) const {
  const berth::nbd::RevocationList list(X509_CRL_new());
  X509_CRL_set_version(list.get(), X509_CRL_VERSION_2);
  X509_CRL_set_issuer_name(list.get(), X509_get_subject_name(certificate_.get()));
  ASN1_TIME* time = ASN1_TIME_new();
  X509_gmtime_adj(time, -3600 * 24);
  X509_CRL_set1_lastUpdate(list.get(), time);
  for (const long serial : serials) {
    X509_REVOKED* revoked = X509_REVOKED_new();
    ASN1_INTEGER* number = ASN1_INTEGER_new();
    ASN1_INTEGER_set(number, serial);
    X509_REVOKED_set_serialNumber(revoked, number);
    X509_REVOKED_set_revocationDate(revoked, time);
    X509_CRL_add0_revoked(list.get(), revoked);
    ASN1_INTEGER_free(number);
  }
  X509_gmtime_adj(time, absl::ToInt64Seconds(next));
  X509_CRL_set1_nextUpdate(list.get(), time);
  ASN1_TIME_free(time);
  Check(X509_CRL_sign(list.get(), key_.get(), EVP_sha256()) > 0, "sign");
  const OpensslBio bio(BIO_new(BIO_s_mem()));
  Check(PEM_write_bio_X509_CRL(bio.get(), list.get()) == 1, "PEM");
  return TakePem(bio);
}

TestTlsFolder::TestTlsFolder() {
  const char* temporary = getenv("TEST_TMPDIR");
  path_ = absl::StrCat(temporary == nullptr ? "/tmp" : temporary, "/tls.XXXXXX");
  Check(mkdtemp(path_.data()) != nullptr, "mkdtemp");
}

TestTlsFolder::TestTlsFolder(TestAuthority& authority) : TestTlsFolder() {
  Write("ca-cert.pem", authority.certificate());
  WriteServer(authority.Issue());
  TestAuthority::Wanted client;
  client.common_name = "agent";
  WriteClient(authority.Issue(client));
}

TestTlsFolder::~TestTlsFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TestTlsFolder::File(absl::string_view name) const { return absl::StrCat(path_, "/", name); }

std::string TestTlsFolder::Write(absl::string_view name, absl::string_view content) const {
  const std::string path = File(name);
  const std::string temporary = absl::StrCat(path, ".new");
  std::ofstream(temporary).write(content.data(), static_cast<std::streamsize>(content.size()));
  chmod(temporary.c_str(), 0600);
  Check(rename(temporary.c_str(), path.c_str()) == 0, "rename");
  return path;
}

void TestTlsFolder::WriteServer(const TestAuthority::Issued& issued) const {
  Write("server-key.pem", issued.key);
  Write("server-cert.pem", issued.certificate);
}

void TestTlsFolder::WriteClient(const TestAuthority::Issued& issued) const {
  Write("client-key.pem", issued.key);
  Write("client-cert.pem", issued.certificate);
}

void TestTlsFolder::Remove(absl::string_view name) const { unlink(File(name).c_str()); }

}  // namespace berth::nbd
