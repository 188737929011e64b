// HandshakeScript: a ClientHandshake and the server's bytes for it, written out by hand.
#ifndef BERTH_NBD_CLIENT_HANDSHAKE_SCRIPT_H_
#define BERTH_NBD_CLIENT_HANDSHAKE_SCRIPT_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "nbd/client/client_handshake.h"
#include "nbd/client/hex_bytes.h"

namespace berth::nbd {

// "Newstyle negotiation": both magic numbers, and the handshake flags.
inline std::string ServerGreeting(uint16_t flags = 3) {
  return Hex("4e42444d41474943 49484156454F5054") + U16(flags);
}
// "Fixed newstyle negotiation": what the server answers to an option.
inline std::string ServerReply(uint32_t option, uint32_t type, absl::string_view data = "") {
  return absl::StrCat(Hex("0003e889045565a9"), U32(option), U32(type), WithLength(data));
}
inline constexpr uint32_t kAckReply = 1, kServerReply = 2, kInfoReply = 3, kContextReply = 4;
inline constexpr uint32_t kErrorReply = 0x80000000;  // And a number.

// "Newstyle negotiation": an option of the client.
inline std::string ClientOption(uint32_t option, absl::string_view data = "") {
  return absl::StrCat(Hex("49484156454F5054"), U32(option), WithLength(data));
}
// NBD_OPT_INFO's and NBD_OPT_GO's: name, and NBD_INFO_NAME, _DESCRIPTION and _BLOCK_SIZE.
inline std::string InfoData(absl::string_view name) {
  return absl::StrCat(WithLength(name), Hex("0003 0001 0002 0003"));
}

class HandshakeScript : public testing::Test {
 protected:
  void Start(ClientHandshakeOptions options = {}) {
    handshake_ = std::make_unique<ClientHandshake>(std::move(options));
  }

  // What the client sends now.
  std::string Said() {
    const absl::Span<const uint8_t> output = handshake_->output();
    std::string said(output.begin(), output.end());
    handshake_->Sent(output.size());
    return said;
  }
  // Gives it the server's bytes, piece by piece, of which it must take all.
  void Give(absl::string_view bytes, size_t piece = 7) {
    while (!bytes.empty()) {
      const size_t count = std::min({bytes.size(), piece, handshake_->wanted()});
      ASSERT_GT(count, 0u) << bytes.size() << " bytes are not wanted; " << handshake_->status();
      handshake_->Consume({reinterpret_cast<const uint8_t*>(bytes.data()), count});
      bytes.remove_prefix(count);
    }
  }
  // The same, of which it need not take all, as it may end before.
  void Throw(absl::string_view bytes) {
    Said();
    while (!bytes.empty() && handshake_->wanted() > 0) {
      const size_t count = std::min(bytes.size(), handshake_->wanted());
      handshake_->Consume({reinterpret_cast<const uint8_t*>(bytes.data()), count});
      bytes.remove_prefix(count);
      Said();
    }
  }
  // Exchanges greetings, without contexts and in the simplest style.
  void StartSimple(ClientHandshakeOptions options = {}) {
    options.extended_headers = options.structured_replies = false;
    Start(std::move(options));
    Give(ServerGreeting());
    EXPECT_EQ(Said().substr(0, 4), U32(3));
  }

  bool done() const { return handshake_->state() == ClientHandshake::State::kDone; }
  void ExpectError(absl::StatusCode code, absl::string_view text) {
    ASSERT_TRUE(done()) << text;
    EXPECT_EQ(handshake_->status().code(), code) << handshake_->status();
    EXPECT_NE(handshake_->status().message().find(text), absl::string_view::npos) << handshake_->status();
    EXPECT_EQ(handshake_->wanted(), 0u);
  }

  std::unique_ptr<ClientHandshake> handshake_;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_HANDSHAKE_SCRIPT_H_
