#include "nbd/request_check.h"

#include <cerrno>
#include <cstdint>
#include <limits>

#include "gtest/gtest.h"

namespace berth::nbd {
namespace {

constexpr uint64_t kMaxOffset = std::numeric_limits<uint64_t>::max();
constexpr uint16_t kEverything = kFlagHasFlags | kFlagSendFlush | kFlagSendFua | kFlagSendTrim |
                                 kFlagSendWriteZeroes | kFlagSendDf | kFlagSendCache | kFlagSendFastZero;

RequestBounds Bounds(uint16_t transmission_flags = kEverything) {
  RequestBounds bounds;
  bounds.size = uint64_t{1} << 40;
  bounds.transmission_flags = transmission_flags;
  bounds.reply_style = ReplyStyle::kStructured;
  bounds.has_contexts = true;
  return bounds;
}

int Check(Command command, uint64_t offset, uint64_t length, uint16_t flags = 0,
          const RequestBounds& bounds = Bounds()) {
  return CheckRequest({flags, command, 1, offset, length}, bounds).error;
}

constexpr Command kRanges[] = {Command::kRead,  Command::kWrite,       Command::kTrim,
                               Command::kCache, Command::kWriteZeroes, Command::kBlockStatus};

int PastTheEnd(Command command) {
  return command == Command::kWrite || command == Command::kWriteZeroes ? ENOSPC : EINVAL;
}

TEST(RequestCheckTest, RangesEndWhereTheExportEnds) {
  const uint64_t size = Bounds().size;
  for (const Command command : kRanges) {
    SCOPED_TRACE(static_cast<int>(command));
    EXPECT_EQ(Check(command, 0, 1), 0);
    EXPECT_EQ(Check(command, size - 4096, 4096), 0);
    EXPECT_EQ(Check(command, size - 4096, 4097), PastTheEnd(command));
    EXPECT_EQ(Check(command, size, 1), PastTheEnd(command));
    EXPECT_EQ(Check(command, size + 1, 1), PastTheEnd(command));
    EXPECT_EQ(Check(command, kMaxOffset, 1), PastTheEnd(command));
    EXPECT_EQ(Check(command, kMaxOffset - 4095, 8192), PastTheEnd(command)) << "offset + length overflows";
  }
}

TEST(RequestCheckTest, TheOffsetOfAnErrorLiesInTheRequest) {
  const uint64_t size = Bounds().size;
  EXPECT_EQ(CheckRequest({0, Command::kRead, 1, size - 1, 2}, Bounds()).offset, size);
  EXPECT_FALSE(CheckRequest({0, Command::kRead, 1, size, 2}, Bounds()).offset.has_value());
}

TEST(RequestCheckTest, NoBytesAreSuccessWhereAReplyCanSaySo) {
  for (const Command command : kRanges) {
    EXPECT_EQ(Check(command, 0, 0), command == Command::kBlockStatus ? EINVAL : 0);
  }
  EXPECT_EQ(Check(Command::kRead, Bounds().size, 0), 0);
  EXPECT_EQ(Check(Command::kRead, Bounds().size + 1, 0), EINVAL);
}

TEST(RequestCheckTest, PayloadsAreLimitedAndEffectsAreNot) {
  EXPECT_EQ(Check(Command::kRead, 0, kMaxPayload), 0);
  EXPECT_EQ(Check(Command::kWrite, 0, kMaxPayload), 0);
  EXPECT_EQ(Check(Command::kRead, 0, kMaxPayload + 1), EOVERFLOW);
  EXPECT_EQ(Check(Command::kWrite, 0, kMaxPayload + 1), EINVAL);
  RequestBounds simple = Bounds();
  simple.reply_style = ReplyStyle::kSimple;
  EXPECT_EQ(Check(Command::kRead, 0, kMaxPayload + 1, 0, simple), EINVAL);
  EXPECT_EQ(Check(Command::kTrim, 0, 0xffffffff), 0);
  EXPECT_EQ(Check(Command::kWriteZeroes, 0, 0xffffffff), 0);
  EXPECT_EQ(Check(Command::kBlockStatus, 0, 0xffffffff), 0);
  EXPECT_EQ(Check(Command::kCache, 0, 0xffffffff), 0);
}

// "Size constraints": a zero that is no faster than writing is limited to what a compact request can say.
TEST(RequestCheckTest, LongZeroesHaveToBeFast) {
  constexpr uint64_t kFourGibibytes = uint64_t{1} << 32;
  EXPECT_EQ(Check(Command::kWriteZeroes, 0, kFourGibibytes + 1), 0);
  const RequestBounds slow = Bounds(kEverything & ~kFlagSendFastZero);
  EXPECT_EQ(Check(Command::kWriteZeroes, 0, kFourGibibytes, 0, slow), 0);
  EXPECT_EQ(Check(Command::kWriteZeroes, 0, kFourGibibytes + 1, 0, slow), EOVERFLOW);
  EXPECT_EQ(Check(Command::kTrim, 0, kFourGibibytes + 1, 0, slow), 0);
}

// "Request message": what follows a header.
TEST(RequestCheckTest, Payloads) {
  const Request write = {0, Command::kWrite, 1, 0, 512};
  const Request flagged = {kCommandFlagPayloadLen, Command::kRead, 1, 0, 512};
  EXPECT_EQ(PayloadLength(write, ReplyStyle::kSimple), 512u);
  EXPECT_EQ(PayloadLength(write, ReplyStyle::kStructured), 512u);
  EXPECT_EQ(PayloadLength(write, ReplyStyle::kExtended), 0u);
  EXPECT_EQ(PayloadLength(flagged, ReplyStyle::kStructured), 0u);
  EXPECT_EQ(PayloadLength(flagged, ReplyStyle::kExtended), 512u);
}

TEST(RequestCheckTest, EachCommandHasItsFlags) {
  const struct {
    Command command;
    uint16_t allowed;
  } rules[] = {
      {Command::kRead, kCommandFlagFua | kCommandFlagDf},
      {Command::kWrite, kCommandFlagFua},
      {Command::kTrim, kCommandFlagFua},
      {Command::kCache, kCommandFlagFua},
      {Command::kWriteZeroes, kCommandFlagFua | kCommandFlagNoHole | kCommandFlagFastZero},
      {Command::kBlockStatus, kCommandFlagFua | kCommandFlagReqOne},
  };
  for (const auto& rule : rules) {
    for (int bit = 0; bit < 16; ++bit) {
      const uint16_t flag = static_cast<uint16_t>(1 << bit);
      EXPECT_EQ(Check(rule.command, 0, 512, flag), (rule.allowed & flag) != 0 ? 0 : EINVAL)
          << "command " << static_cast<int>(rule.command) << " flag " << bit;
    }
  }
  EXPECT_EQ(Check(Command::kFlush, 0, 0, kCommandFlagFua), 0);
  EXPECT_EQ(Check(Command::kFlush, 0, 0, kCommandFlagDf), EINVAL);
}

TEST(RequestCheckTest, FlagsNeedTheirTransmissionFlag) {
  EXPECT_EQ(Check(Command::kWrite, 0, 1, kCommandFlagFua, Bounds(kEverything & ~kFlagSendFua)), EINVAL);
  EXPECT_EQ(Check(Command::kRead, 0, 1, kCommandFlagDf, Bounds(kEverything & ~kFlagSendDf)), EINVAL);
  EXPECT_EQ(
      Check(Command::kWriteZeroes, 0, 1, kCommandFlagFastZero, Bounds(kEverything & ~kFlagSendFastZero)),
      EINVAL);
}

TEST(RequestCheckTest, CommandsNeedTheirTransmissionFlag) {
  EXPECT_EQ(Check(Command::kFlush, 0, 0, 0, Bounds(kEverything & ~kFlagSendFlush)), EINVAL);
  EXPECT_EQ(Check(Command::kTrim, 0, 1, 0, Bounds(kEverything & ~kFlagSendTrim)), EINVAL);
  EXPECT_EQ(Check(Command::kCache, 0, 1, 0, Bounds(kEverything & ~kFlagSendCache)), EINVAL);
  EXPECT_EQ(Check(Command::kWriteZeroes, 0, 1, 0, Bounds(kEverything & ~kFlagSendWriteZeroes)), EINVAL);
  RequestBounds no_contexts = Bounds();
  no_contexts.has_contexts = false;
  EXPECT_EQ(Check(Command::kBlockStatus, 0, 1, 0, no_contexts), EINVAL);
}

TEST(RequestCheckTest, ReadOnlyRefusesWhatWrites) {
  const RequestBounds bounds = Bounds(kFlagHasFlags | kFlagReadOnly | kFlagSendFlush | kFlagSendCache);
  EXPECT_EQ(Check(Command::kWrite, 0, 512, 0, bounds), EPERM);
  EXPECT_EQ(Check(Command::kTrim, 0, 512, 0, bounds), EPERM);
  EXPECT_EQ(Check(Command::kWriteZeroes, 0, 512, 0, bounds), EPERM);
  EXPECT_EQ(Check(Command::kRead, 0, 512, 0, bounds), 0);
  EXPECT_EQ(Check(Command::kFlush, 0, 0, 0, bounds), 0);
  EXPECT_EQ(Check(Command::kCache, 0, 512, 0, bounds), 0);
}

TEST(RequestCheckTest, UnknownCommandsAreRefused) {
  EXPECT_EQ(Check(static_cast<Command>(9), 0, 0), EINVAL);
  EXPECT_EQ(Check(static_cast<Command>(0xffff), 0, 0), EINVAL);
}

// "Size constraints": EINVAL where a request "is not aligned to advertised minimum block size boundaries".
TEST(RequestCheckTest, RequestsKeepToBlocks) {
  RequestBounds bounds = Bounds(kEverything | kFlagSendResize | kFlagBlockStatusPayload);
  bounds.minimum_block = 4096;
  for (const Command command : kRanges) {
    SCOPED_TRACE(static_cast<int>(command));
    EXPECT_EQ(Check(command, 4096, 8192, 0, bounds), 0);
    EXPECT_EQ(Check(command, 4096 + 512, 8192, 0, bounds), EINVAL);
    EXPECT_EQ(Check(command, 4096, 8192 + 512, 0, bounds), EINVAL);
    EXPECT_EQ(Check(command, 1, 1, 0, bounds), EINVAL);
  }
  EXPECT_EQ(Check(Command::kFlush, 0, 0, 0, bounds), 0);
  EXPECT_EQ(Check(Command::kResize, 8192, 1, 0, bounds), 0);
  EXPECT_EQ(Check(Command::kResize, 8193, 0, 0, bounds), EINVAL);
  // The length of a payload is no range.
  EXPECT_EQ(Check(Command::kBlockStatus, 4096, 12, kCommandFlagPayloadLen, bounds), 0);
}

TEST(RequestCheckTest, PayloadsKeepToTheirMaximum) {
  RequestBounds bounds = Bounds();
  bounds.maximum_payload = 1 << 20;
  EXPECT_EQ(Check(Command::kRead, 0, 1 << 20, 0, bounds), 0);
  EXPECT_EQ(Check(Command::kRead, 0, (1 << 20) + 512, 0, bounds), EOVERFLOW);
  EXPECT_EQ(Check(Command::kWrite, 0, (1 << 20) + 512, 0, bounds), EINVAL);
  EXPECT_EQ(Check(Command::kTrim, 0, (1 << 20) + 512, 0, bounds), 0);
}

// NBD_CMD_RESIZE of the branch extension-resize: EPERM where "server configuration does not allow this".
TEST(RequestCheckTest, AResizeHasToBeAllowed) {
  EXPECT_EQ(Check(Command::kResize, 4096, 0), EPERM);
  const RequestBounds allowed = Bounds(kEverything | kFlagSendResize);
  EXPECT_EQ(Check(Command::kResize, 4096, 0, 0, allowed), 0);
  EXPECT_EQ(Check(Command::kResize, kMaxOffset, 0, 0, allowed), 0) << "sizes are the device's to judge";
  EXPECT_EQ(Check(Command::kResize, 4096, 0, kCommandFlagNoHole, allowed), EINVAL);
  RequestBounds read_only = allowed;
  read_only.transmission_flags |= kFlagReadOnly;
  EXPECT_EQ(Check(Command::kResize, 4096, 0, 0, read_only), EPERM);
}

// "requests beyond the new size but not beyond the old one MUST fail with ENOSPC".
TEST(RequestCheckTest, WhatTheClientCutOffHasNoSpace) {
  RequestBounds bounds = Bounds();
  bounds.former_size = bounds.size + 8192;
  for (const Command command : kRanges) {
    EXPECT_EQ(Check(command, bounds.size, 8192, 0, bounds), ENOSPC);
    EXPECT_EQ(Check(command, bounds.size - 512, 1024, 0, bounds), ENOSPC);
    EXPECT_EQ(Check(command, bounds.size, 8193, 0, bounds), PastTheEnd(command));
  }
}

TEST(RequestCheckTest, AFlushHasNoRange) {
  EXPECT_EQ(Check(Command::kFlush, 0, 0), 0);
  EXPECT_EQ(Check(Command::kFlush, 1, 0), EINVAL);
  EXPECT_EQ(Check(Command::kFlush, 0, 1), EINVAL);
}

TEST(RequestCheckTest, NothingIsServedWhileStopping) {
  RequestBounds bounds = Bounds();
  bounds.stopping = true;
  EXPECT_EQ(Check(Command::kRead, 0, 512, 0, bounds), ESHUTDOWN);
  EXPECT_EQ(Check(Command::kFlush, 0, 0, 0, bounds), ESHUTDOWN);
}

TEST(RequestCheckTest, EveryRefusalHasAMessage) {
  EXPECT_FALSE(CheckRequest({0, Command::kResize, 1, 0, 0}, Bounds()).message.empty());
  EXPECT_FALSE(CheckRequest({0, Command::kRead, 1, kMaxOffset, 1}, Bounds()).message.empty());
}

}  // namespace
}  // namespace berth::nbd
