// Arbitrary bytes as an NBD URI: what is accepted keeps its promises, and reads the same when it is printed.
#include <cstdint>
#include <cstdlib>

#include "nbd/client/uri.h"

namespace {

void Require(bool holds) {
  if (!holds) abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using berth::nbd::Uri;
  const absl::StatusOr<Uri> uri = Uri::Parse(absl::string_view(reinterpret_cast<const char*>(data), size));
  if (!uri.ok()) {
    Require(!uri.status().message().empty());
    return 0;
  }
  Require(uri->export_name.size() <= 4096 && uri->export_name.find('\0') == std::string::npos);
  Require((uri->family == Uri::Family::kUnix) == !uri->socket.empty());
  Require(uri->socket.size() <= 108);
  Require(uri->tls || (uri->tls_username.empty() && uri->tls_certificates.empty()));
  const absl::StatusOr<Uri> again = Uri::Parse(uri->ToString());
  Require(again.ok() && *again == *uri);
  return 0;
}
