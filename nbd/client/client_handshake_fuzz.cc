// A hostile server's bytes in the handshake, cut into pieces as the input says, and what must always hold.
//
// The first byte is the size of the pieces, less one. The second chooses: bit 0 a list and not an export, bit
// 1 TLS, bit 2 no extended headers, bit 3 no structured replies, bit 4 magic numbers and option numbers put
// where replies begin, so that random bytes get past them. The rest is what the server sends.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "nbd/client/client_handshake.h"

namespace berth::nbd {
namespace {

void Require(bool holds) {
  if (!holds) abort();
}

// The option that the client asked last, from what it sends.
void Send(ClientHandshake& handshake, uint32_t* option) {
  const absl::Span<const uint8_t> output = handshake.output();
  if (output.empty()) return;
  Require(handshake.wanted() == 0 && output.size() <= 64 << 10);
  for (size_t at = 0; at + kOptionHeaderSize <= output.size(); ++at) {
    if (Load64(&output[at]) == kOptionMagic) *option = Load32(&output[at + 8]);
  }
  handshake.Sent(output.size());
}

void CheckInfo(const ExportInfo& info) {
  Require(info.size <= INT64_MAX && info.name.size() <= kMaxStringSize);
  Require(info.description.size() <= kMaxStringSize && info.contexts.size() <= 1024);
  for (const MetaContext& context : info.contexts) Require(!context.name.empty());
}

}  // namespace
}  // namespace berth::nbd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace berth;       // NOLINT: the function has to be outside.
  using namespace berth::nbd;  // NOLINT
  if (size < 2) return 0;
  const size_t piece = size_t{data[0]} + 1;
  const uint8_t choice = data[1];
  ClientHandshakeOptions options;
  options.goal =
      (choice & 1) != 0 ? ClientHandshakeOptions::Goal::kList : ClientHandshakeOptions::Goal::kTransmission;
  options.export_name = "disk";
  options.tls = (choice & 2) != 0;
  options.extended_headers = (choice & 4) == 0;
  options.structured_replies = (choice & 8) == 0;
  options.max_exports = 100;
  options.max_bytes = 1 << 20;
  const bool mend = (choice & 16) != 0;
  std::vector<uint8_t> bytes(data + 2, data + size);

  ClientHandshake handshake(options);
  uint32_t option = 0;
  size_t at = 0;
  while (at < bytes.size() && handshake.state() != ClientHandshake::State::kDone) {
    Send(handshake, &option);
    if (handshake.state() == ClientHandshake::State::kTls) {
      handshake.TlsStarted();
      continue;
    }
    const size_t wanted = handshake.wanted();
    Require(wanted > 0 && wanted <= 64 << 10);
    if (mend && wanted == kOptionReplyHeaderSize && at + wanted <= bytes.size()) {
      Store64(&bytes[at], kOptionReplyMagic);
      Store32(&bytes[at + 8], option);
      // Of the types that exist, and short.
      const uint32_t type = Load32(&bytes[at + 12]);
      Store32(&bytes[at + 12], (type & kOptionErrorBit) | ((type & 0xff) % 12));
      Store32(&bytes[at + 16], Load32(&bytes[at + 16]) & 0xff);
    }
    const size_t count = std::min({wanted, piece, bytes.size() - at});
    handshake.Consume({bytes.data() + at, count});
    at += count;
    Require(!handshake.awaited().empty());
  }
  if (handshake.state() != ClientHandshake::State::kDone) return 0;
  Require(handshake.wanted() == 0);
  if (!handshake.status().ok()) {
    Require(!handshake.status().message().empty());
    return 0;
  }
  const Agreement agreement = handshake.TakeAgreement();
  CheckInfo(agreement.info);
  Require(agreement.info.contexts.empty() || agreement.style != ReplyStyle::kSimple);
  Require(options.extended_headers || agreement.style != ReplyStyle::kExtended);
  for (const ListedExport& listed : handshake.TakeList()) CheckInfo(listed.info);
  return 0;
}
