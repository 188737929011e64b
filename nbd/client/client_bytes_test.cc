// What a RemoteConnection sends and what it takes, against bytes written out by hand from the specification:
// compact requests with simple and structured replies, and extended headers (the specification's branch
// extension-ext-header), which no client in Debian speaks.
#include <cerrno>
#include <string>
#include <vector>

#include "nbd/client/client_fixture.h"

namespace berth::nbd {
namespace {

class ClientBytesTest : public ClientTest {};

std::string Text(const std::vector<uint8_t>& bytes) { return std::string(bytes.begin(), bytes.end()); }

// "Request message", "Simple reply message".
TEST_F(ClientBytesTest, CompactRequestsAndSimpleReplies) {
  info_.contexts = {};
  Start(ReplyStyle::kSimple);
  std::vector<uint8_t> data(4);
  std::future<IoResult> read = BeginRead(0x1000, &data);
  EXPECT_EQ(Received(28), Hex("25609513 0000 0000 0000000000000001 0000000000001000 00000004"));
  Send(Hex("67446698 00000000 0000000000000001") + "abcd");
  EXPECT_EQ(ErrorOf(read), 0);
  EXPECT_EQ(Text(data), "abcd");

  const std::vector<uint8_t> out = {'x', 'y', 'z'};
  std::future<IoResult> write =
      Begin([&out](RemoteConnection& client) { return client.Write(0x102030405, out, WriteFlags::kFua); });
  EXPECT_EQ(Received(31), Hex("25609513 0001 0001 0000000000000002 0000000102030405 00000003") + "xyz");
  Send(Hex("67446698 0000001c 0000000000000002"));
  EXPECT_EQ(ErrorOf(write), ENOSPC);

  std::future<IoResult> flush = Begin([](RemoteConnection& client) { return client.Flush(); });
  EXPECT_EQ(Received(28), Hex("25609513 0000 0003 0000000000000003 0000000000000000 00000000"));
  Send(Hex("67446698 00000000 0000000000000003"));
  EXPECT_EQ(ErrorOf(flush), 0);

  std::future<IoResult> trim = Begin([](RemoteConnection& client) { return client.Discard(512, 1024); });
  EXPECT_EQ(Received(28), Hex("25609513 0000 0004 0000000000000004 0000000000000200 00000400"));
  Send(Hex("67446698 00000000 0000000000000004"));
  EXPECT_EQ(ErrorOf(trim), 0);

  std::future<IoResult> zero = Begin([](RemoteConnection& client) {
    return client.Zero(0, 512, ZeroFlags::kFua | ZeroFlags::kNoUnmap | ZeroFlags::kFastOnly);
  });
  EXPECT_EQ(Received(28), Hex("25609513 0013 0006 0000000000000005 0000000000000000 00000200"));
  Send(Hex("67446698 0000005f 0000000000000005"));
  EXPECT_EQ(ErrorOf(zero), ENOTSUP);

  std::future<IoResult> cache = Begin([](RemoteConnection& client) { return client.Prefetch(0, 4096); });
  EXPECT_EQ(Received(28), Hex("25609513 0000 0005 0000000000000006 0000000000000000 00001000"));
  Send(Hex("67446698 00000000 0000000000000006"));
  EXPECT_EQ(ErrorOf(cache), 0);

  BeginDisconnect();
  EXPECT_EQ(Received(28), Hex("25609513 0000 0002 0000000000000000 0000000000000000 00000000"));
  peer_->Close();
  Disconnect();
  EXPECT_TRUE(Status().ok()) << Status();
}

// "Structured reply chunk message", "Structured reply types".
TEST_F(ClientBytesTest, StructuredReplies) {
  Start(ReplyStyle::kStructured);
  std::vector<uint8_t> data(16, 0xff);
  std::future<IoResult> read = BeginRead(0x1000, &data);
  EXPECT_EQ(Received(28), Hex("25609513 0000 0000 0000000000000001 0000000000001000 00000010"));
  // Data of the end, a hole in the middle, data of the beginning, and nothing.
  Send(Hex("668e33ef 0000 0001 0000000000000001 0000000c 000000000000100c") + "wxyz" +
       Hex("668e33ef 0000 0002 0000000000000001 0000000c 0000000000001004 00000008") +
       Hex("668e33ef 0000 0001 0000000000000001 0000000c 0000000000001000") + "abcd" +
       Hex("668e33ef 0001 0000 0000000000000001 00000000"));
  EXPECT_EQ(ErrorOf(read), 0);
  EXPECT_EQ(Text(data), "abcd" + std::string(8, '\0') + "wxyz");

  // An error with a message and an offset; data may have come before.
  read = BeginRead(0x2000, &data);
  Received(28);
  Send(Hex("668e33ef 0000 0001 0000000000000002 0000000c 0000000000002000") + "abcd" +
       Hex("668e33ef 0001 8002 0000000000000002 00000011 00000005 0003") + "bad" + Hex("0000000000002008"));
  EXPECT_EQ(ErrorOf(read), EIO);
  const RequestFailure failure = LastFailure();
  EXPECT_EQ(failure.command, Command::kRead);
  EXPECT_EQ(failure.offset, 0x2000u);
  EXPECT_EQ(failure.length, 16u);
  EXPECT_EQ(failure.message, "bad");
  EXPECT_EQ(failure.error_offset, 0x2008u);

  // NBD_REPLY_TYPE_ERROR without words, and one of a type that nobody knows, with more behind its message.
  read = BeginRead(0, &data);
  Received(28);
  Send(Hex("668e33ef 0001 8001 0000000000000003 00000006 0000000c 0000"));
  EXPECT_EQ(ErrorOf(read), ENOMEM);
  read = BeginRead(0, &data);
  Received(28);
  Send(Hex("668e33ef 0001 8765 0000000000000004 0000000a 000003e7 0002") + "no" + Hex("ffff"));
  EXPECT_EQ(ErrorOf(read), EINVAL);  // As an error value that nobody knows.

  // A simple reply to what has no payload.
  std::future<IoResult> flush = Begin([](RemoteConnection& client) { return client.Flush(); });
  Received(28);
  Send(Hex("67446698 00000000 0000000000000005"));
  EXPECT_EQ(ErrorOf(flush), 0);
  EXPECT_TRUE(Status().ok()) << Status();
}

// NBD_REPLY_TYPE_BLOCK_STATUS.
TEST_F(ClientBytesTest, StructuredBlockStatus) {
  info_.contexts = {{7, "base:allocation"}, {8, "x-test:other"}};
  Start(ReplyStyle::kStructured);
  std::vector<ContextStatus> status;
  std::future<IoResult> asked = BeginStatus(0x10000, 0x2000, &status);
  EXPECT_EQ(Received(28), Hex("25609513 0000 0007 0000000000000001 0000000000010000 00002000"));
  Send(Hex("668e33ef 0000 0005 0000000000000001 0000000c 00000008 00000200 00000005") +
       Hex("668e33ef 0001 0005 0000000000000001 00000014 00000007 00001000 00000003 00009000 00000000"));
  EXPECT_EQ(ErrorOf(asked), 0);
  ASSERT_EQ(status.size(), 2u);
  EXPECT_EQ(status[0].context_id, 8u);
  ASSERT_EQ(status[1].extents.size(), 2u);
  EXPECT_EQ(status[1].extents[0].length, 0x1000u);
  EXPECT_EQ(status[1].extents[0].status, 3u);
  EXPECT_EQ(status[1].extents[1].length, 0x9000u);  // Past the end, which is allowed to the last.

  // As BlockChannel wants them: base:allocation alone, no longer than asked for.
  std::vector<Extent> extents;
  asked = Begin([&extents](RemoteConnection& client) { return client.Extents(0x10000, 0x2000, &extents); });
  Received(28);
  Send(Hex("668e33ef 0000 0005 0000000000000002 0000000c 00000008 00000200 00000005") +
       Hex("668e33ef 0001 0005 0000000000000002 0000001c 00000007 "
           "00000800 00000003 00000800 00000003 00009000 00000000"));
  EXPECT_EQ(ErrorOf(asked), 0);
  EXPECT_EQ(extents, std::vector<Extent>({{0x1000, false, true}, {0x1000, true, false}}));

  // NBD_CMD_FLAG_REQ_ONE.
  status.clear();
  asked = BeginStatus(0, 0x200000000, &status, true);
  EXPECT_EQ(Received(28), Hex("25609513 0008 0007 0000000000000003 0000000000000000 80000000"));
  Send(Hex("668e33ef 0000 0005 0000000000000003 0000000c 00000008 80000000 00000005") +
       Hex("668e33ef 0001 0005 0000000000000003 0000000c 00000007 00000001 00000000"));
  EXPECT_EQ(ErrorOf(asked), 0);
}

// "SHOULD NOT alter the contents of the export when returning an NBD_ENOTSUP failure": what takes several
// requests is not begun, and nothing is sent.
TEST_F(ClientBytesTest, AFastZeroIsOneRequestOrNone) {
  Start(ReplyStyle::kSimple);
  std::future<IoResult> zero =
      Begin([](RemoteConnection& client) { return client.Zero(0, 0x200000000, ZeroFlags::kFastOnly); });
  EXPECT_EQ(ErrorOf(zero), ENOTSUP);
  BeginDisconnect();
  EXPECT_EQ(Received(28), Hex("25609513 0000 0002 0000000000000000 0000000000000000 00000000"));
}

// "Extended request", "Extended reply chunk message": every command, byte by byte.
TEST_F(ClientBytesTest, ExtendedHeaders) {
  Start(ReplyStyle::kExtended);
  std::vector<uint8_t> data(8, 0xff);
  std::future<IoResult> read = BeginRead(0x1000, &data);
  EXPECT_EQ(Received(32), Hex("21e41c71 0000 0000 0000000000000001 0000000000001000 0000000000000008"));
  // The header repeats the request's offset, whatever the chunk is about.
  Send(
      Hex("6e8a278c 0000 0001 0000000000000001 0000000000001000 000000000000000c 0000000000001004") + "wxyz" +
      Hex("6e8a278c 0001 0002 0000000000000001 0000000000001000 000000000000000c 0000000000001000 00000004"));
  EXPECT_EQ(ErrorOf(read), 0);
  EXPECT_EQ(Text(data), std::string(4, '\0') + "wxyz");

  // "the flag MUST be set for NBD_CMD_WRITE": bit 5.
  const std::vector<uint8_t> out = {'x', 'y', 'z'};
  std::future<IoResult> write =
      Begin([&out](RemoteConnection& client) { return client.Write(0x10, out, WriteFlags::kFua); });
  EXPECT_EQ(Received(35),
            Hex("21e41c71 0021 0001 0000000000000002 0000000000000010 0000000000000003") + "xyz");
  Send(Hex("6e8a278c 0001 0000 0000000000000002 0000000000000010 0000000000000000"));
  EXPECT_EQ(ErrorOf(write), 0);

  // Lengths of 64 bits, where there is no payload.
  std::future<IoResult> trim =
      Begin([](RemoteConnection& client) { return client.Discard(0, 0x123456789a); });
  EXPECT_EQ(Received(32), Hex("21e41c71 0000 0004 0000000000000003 0000000000000000 000000123456789a"));
  Send(Hex("6e8a278c 0001 0000 0000000000000003 0000000000000000 0000000000000000"));
  EXPECT_EQ(ErrorOf(trim), 0);
  std::future<IoResult> zero =
      Begin([](RemoteConnection& client) { return client.Zero(0x200, 0x100000000, ZeroFlags::kNoUnmap); });
  EXPECT_EQ(Received(32), Hex("21e41c71 0002 0006 0000000000000004 0000000000000200 0000000100000000"));
  Send(Hex("6e8a278c 0001 8001 0000000000000004 0000000000000200 0000000000000008 0000001c 0002") + "no");
  EXPECT_EQ(ErrorOf(zero), ENOSPC);
  EXPECT_EQ(LastFailure().message, "no");

  std::future<IoResult> flush = Begin([](RemoteConnection& client) { return client.Flush(); });
  EXPECT_EQ(Received(32), Hex("21e41c71 0000 0003 0000000000000005 0000000000000000 0000000000000000"));
  Send(Hex("6e8a278c 0001 0000 0000000000000005 0000000000000000 0000000000000000"));
  EXPECT_EQ(ErrorOf(flush), 0);

  BeginDisconnect();
  EXPECT_EQ(Received(32), Hex("21e41c71 0000 0002 0000000000000000 0000000000000000 0000000000000000"));
}

// NBD_REPLY_TYPE_BLOCK_STATUS_EXT, and NBD_CMD_BLOCK_STATUS with a payload.
TEST_F(ClientBytesTest, ExtendedBlockStatus) {
  info_.contexts = {{7, "base:allocation"}, {8, "x-test:other"}};
  info_.flags = kAllFlags | kFlagBlockStatusPayload;
  Start(ReplyStyle::kExtended);
  std::vector<ContextStatus> status;
  std::future<IoResult> asked = BeginStatus(0x200, 0x100000000, &status);
  EXPECT_EQ(Received(32), Hex("21e41c71 0000 0007 0000000000000001 0000000000000200 0000000100000000"));
  Send(Hex("6e8a278c 0000 0006 0000000000000001 0000000000000200 0000000000000018 00000008 00000001 "
           "0000000200000000 8000000000000001") +
       Hex("6e8a278c 0001 0006 0000000000000001 0000000000000200 0000000000000028 00000007 00000002 "
           "00000000ffffffff 0000000000000000 0000000000000001 0000000000000003"));
  EXPECT_EQ(ErrorOf(asked), 0);
  ASSERT_EQ(status.size(), 2u);
  EXPECT_EQ(status[0].extents[0].length, 0x200000000u);
  EXPECT_EQ(status[0].extents[0].status, 0x8000000000000001u);
  EXPECT_EQ(status[1].extents.size(), 2u);

  // Bit 5 says that a payload follows: the length that it is about, and the IDs.
  std::vector<Extent> extents;
  asked =
      Begin([&extents](RemoteConnection& client) { return client.Extents(0x200, 0x100000000, &extents); });
  EXPECT_EQ(Received(44), Hex("21e41c71 0020 0007 0000000000000002 0000000000000200 000000000000000c "
                              "0000000100000000 00000007"));
  Send(
      Hex("6e8a278c 0001 0006 0000000000000002 0000000000000200 0000000000000018 00000007 00000001 "
          "0000000200000000 0000000000000003"));
  EXPECT_EQ(ErrorOf(asked), 0);
  EXPECT_EQ(extents, std::vector<Extent>({{0x100000000, false, true}}));
}

}  // namespace
}  // namespace berth::nbd
