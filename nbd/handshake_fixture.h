// HandshakeTest: a negotiation without a socket. The bytes are written out by hand, from proto.md's sections,
// so that nothing is checked against itself.
#ifndef BERTH_NBD_HANDSHAKE_FIXTURE_H_
#define BERTH_NBD_HANDSHAKE_FIXTURE_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "image/null/null_device.h"
#include "nbd/export_map.h"
#include "nbd/handshake.h"

namespace berth::nbd {

inline std::string U16(uint16_t v) { return {static_cast<char>(v >> 8), static_cast<char>(v)}; }
inline std::string U32(uint32_t v) {
  return U16(static_cast<uint16_t>(v >> 16)) + U16(static_cast<uint16_t>(v));
}
inline std::string U64(uint64_t v) {
  return U32(static_cast<uint32_t>(v >> 32)) + U32(static_cast<uint32_t>(v));
}
inline std::string Counted(absl::string_view text) {
  return U32(static_cast<uint32_t>(text.size())) + std::string(text);
}

// "Option types".
inline constexpr uint32_t kExportNameOption = 1, kAbortOption = 2, kListOption = 3, kPeekOption = 4,
                          kStartTlsOption = 5, kInfoOption = 6, kGoOption = 7, kStructuredOption = 8,
                          kListMetaOption = 9, kSetMetaOption = 10, kExtendedOption = 11;
// "Option reply types".
inline constexpr uint32_t kAck = 1, kServer = 2, kInfo = 3, kMeta = 4, kUnsup = 0x80000001,
                          kPolicy = 0x80000002, kInvalid = 0x80000003, kUnknown = 0x80000006,
                          kShutdown = 0x80000007, kBlockSizeReqd = 0x80000008, kTooBig = 0x80000009,
                          kExtHeaderReqd = 0x8000000a;
inline constexpr uint64_t kSize = 1 << 20;
// Has flags, flush, FUA, write zeroes, cache; and what NullDevice adds: trim, fast zero.
inline constexpr uint16_t kFlags = 0x0001 | 0x0004 | 0x0008 | 0x0040 | 0x0400;
inline constexpr uint16_t kDfFlag = 0x0080, kStatusPayloadFlag = 0x1000;

inline std::string Opt(uint32_t option, absl::string_view data = "") {
  return "IHAVEOPT" + U32(option) + Counted(data);
}
inline std::string Reply(uint32_t option, uint32_t type, absl::string_view data = "") {
  return U64(0x3e889045565a9) + U32(option) + U32(type) + Counted(data);
}
// Of NBD_OPT_INFO and NBD_OPT_GO.
inline std::string Wish(absl::string_view name, std::vector<uint16_t> infos = {}) {
  std::string data = Counted(name) + U16(static_cast<uint16_t>(infos.size()));
  for (uint16_t info : infos) data += U16(info);
  return data;
}
// Of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
inline std::string Queries(absl::string_view name, std::vector<std::string> queries) {
  std::string data = Counted(name) + U32(static_cast<uint32_t>(queries.size()));
  for (const std::string& query : queries) data += Counted(query);
  return data;
}

class HandshakeTest : public testing::Test {
 protected:
  HandshakeTest() { Add("disk"); }

  void Add(const std::string& name, const std::string& description = "", bool read_only = false) {
    auto added = std::make_shared<Export>();
    added->name = name;
    added->description = description;
    added->device = std::make_shared<NullDevice>(kSize);
    added->read_only = read_only;
    ASSERT_TRUE(exports_.Add(std::move(added)));
  }

  // A connection after the greeting, and the client's flags: fixed newstyle and no zeroes.
  void Connect(uint32_t client_flags = 3) {
    handshake_ = std::make_unique<Handshake>(exports_, options_, [this](const Export& served) {
      admitted_.push_back(served.name);
      return admission_;
    });
    ASSERT_EQ(Output(), "NBDMAGICIHAVEOPT" + U16(3));
    Send(U32(client_flags));
  }

  std::string Output() {
    std::string all;
    while (!handshake_->output().empty()) {
      const absl::Span<const uint8_t> output = handshake_->output().subspan(0, 1000);
      all.append(output.begin(), output.end());
      largest_output_ = std::max(largest_output_, handshake_->output().size());
      handshake_->Sent(output.size());
    }
    return all;
  }

  // Everything that comes back, whatever pieces the bytes arrive in.
  std::string Send(const std::string& bytes) {
    std::string received;
    const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
    for (size_t at = 0; at < bytes.size() && !handshake_->finished();) {
      const size_t count = std::min(piece_, bytes.size() - at);
      const size_t consumed = handshake_->Consume({data + at, count});
      at += consumed;
      received += Output();
    }
    return received;
  }

  // The type of the last reply, and its text.
  std::pair<uint32_t, std::string> Error(uint32_t option, const std::string& data) {
    const std::string reply = Send(Opt(option, data));
    EXPECT_GE(reply.size(), 20u) << handshake_->close_reason();
    if (reply.size() < 20) return {};
    EXPECT_EQ(reply.substr(0, 12), U64(0x3e889045565a9) + U32(option));
    uint32_t type = 0;
    for (int i = 12; i < 16; ++i) type = type << 8 | static_cast<uint8_t>(reply[i]);
    EXPECT_EQ(reply.substr(16, 4), U32(static_cast<uint32_t>(reply.size() - 20)));
    return {type, reply.substr(20)};
  }
  uint32_t ErrorType(uint32_t option, const std::string& data) { return Error(option, data).first; }

  void ExpectClosed(absl::StatusCode code) {
    EXPECT_TRUE(handshake_->finished());
    EXPECT_FALSE(handshake_->negotiated());
    EXPECT_EQ(handshake_->close_reason().code(), code) << handshake_->close_reason();
    EXPECT_EQ(handshake_->wanted(), 0u);
  }

  // The client is still being listened to.
  void ExpectGoesOn() { EXPECT_EQ(Send(Opt(kStructuredOption)), Reply(kStructuredOption, kAck)); }

  // What NBD_INFO_EXPORT says of an export here, without its type.
  static std::string SizeAndFlags(uint16_t more = 0, uint64_t size = kSize) {
    const BlockTraits traits = NullDevice(1).traits();
    uint16_t flags = kFlags | more;
    if (traits.can_discard) flags |= 0x0020;
    if (traits.fast_zero) flags |= 0x0800;
    return U64(size) + U16(flags);
  }

  ExportMap exports_;
  HandshakeOptions options_;
  absl::Status admission_;
  std::vector<std::string> admitted_;
  std::unique_ptr<Handshake> handshake_;
  size_t piece_ = 1 << 20;
  size_t largest_output_ = 0;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_HANDSHAKE_FIXTURE_H_
