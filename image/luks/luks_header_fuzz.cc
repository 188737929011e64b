// Arbitrary bytes as a LUKS header: what is accepted keeps to the bounds, and is the same after encoding it.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "image/luks/luks_header.h"

namespace {

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace berth::luks;
  constexpr uint64_t kRoom = uint64_t{64} << 20;
  const absl::StatusOr<Header> header = DecodeHeader(absl::MakeConstSpan(data, size), kRoom);
  if (!header.ok()) return 0;
  Require(header->payload_offset() <= kRoom, "payload");
  Require(header->key_bytes >= 1 && header->key_bytes <= kMaxKeyBytes, "key-bytes");
  for (const KeySlot& slot : header->slots) {
    if (!slot.active) continue;
    Require(slot.iterations <= kMaxIterations && slot.stripes == kStripes, "slot");
    Require(uint64_t{slot.material_sector} * kSectorBytes + MaterialBytes(header->key_bytes, slot.stripes) <=
                header->payload_offset(),
            "key material");
  }
  const absl::StatusOr<Header> again = DecodeHeader(EncodeHeader(*header), kRoom);
  Require(again.ok() && *again == *header, "encoding");
  return 0;
}
