// Feeds the handshake a client's bytes, cut into pieces as the input says, and checks what must always hold.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "image/null/null_device.h"
#include "nbd/export_map.h"
#include "nbd/handshake.h"
#include "tests/fakes/status_device.h"

namespace berth::nbd {
namespace {

void Require(bool holds) {
  if (!holds) abort();
}

const ExportMap& Exports() {
  static const ExportMap* exports = [] {
    auto* made = new ExportMap;
    for (const char* name : {"", "disk", "a/b", "Füße"}) {
      auto added = std::make_shared<Export>();
      added->name = name;
      added->description = "a description";
      added->device = std::make_shared<NullDevice>(1 << 20);
      made->Add(std::move(added));
    }
    auto device = std::make_shared<StatusDevice>(std::make_shared<NullDevice>(1 << 20));
    device->Offer("x-test:one", false, 1);
    device->Offer("x-test:wide", true, 1);
    auto offering = std::make_shared<Export>();
    offering->name = "bitmaps";
    offering->device = std::move(device);
    made->Add(std::move(offering));
    auto strict = std::make_shared<Export>();
    strict->name = "strict";
    strict->device = std::make_shared<NullDevice>((1 << 20) + 1);
    strict->block_sizes = {.minimum = 4096, .must_be_asked_for = true};
    made->Add(std::move(strict));
    return made;
  }();
  return *exports;
}

void SendAll(Handshake& handshake, size_t piece) {
  while (!handshake.output().empty()) {
    Require(handshake.wanted() == 0);
    Require(handshake.output().size() <= 64 << 10);
    handshake.Sent(std::min(piece, handshake.output().size()));
  }
}

}  // namespace
}  // namespace berth::nbd

// The first byte is the size of the pieces; the rest is what the client sends.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using berth::nbd::Handshake;
  using berth::nbd::Require;
  if (size == 0) return 0;
  const size_t piece = size_t{data[0]} + 1;
  absl::Span<const uint8_t> rest(data + 1, size - 1);
  Handshake handshake(berth::nbd::Exports(), {}, [](const berth::nbd::Export& served) {
    return served.name == "a/b" ? absl::PermissionDeniedError("no") : absl::OkStatus();
  });
  berth::nbd::SendAll(handshake, piece);
  while (!rest.empty() && !handshake.finished()) {
    const size_t wanted = handshake.wanted();
    Require(wanted > 0);
    const absl::Span<const uint8_t> bytes = rest.subspan(0, piece);
    const size_t consumed = handshake.Consume(bytes);
    Require(consumed >= std::min(wanted, bytes.size()) && consumed <= bytes.size());
    rest.remove_prefix(consumed);
    berth::nbd::SendAll(handshake, piece);
  }
  Require(!handshake.finished() || handshake.wanted() == 0);
  if (handshake.negotiated()) {
    const berth::nbd::Negotiated negotiated = handshake.TakeNegotiated();
    Require(negotiated.served != nullptr && negotiated.served->name != "a/b");
    Require(negotiated.contexts.empty() || negotiated.reply_style != berth::nbd::ReplyStyle::kSimple);
    for (const berth::nbd::MetaContext& context : negotiated.contexts) {
      Require(context.source == nullptr || !context.source->wide() ||
              negotiated.reply_style == berth::nbd::ReplyStyle::kExtended);
    }
  } else if (handshake.finished()) {
    Require(!handshake.close_reason().ok());
  }
  return 0;
}
