// Every command and flag, with simple and with structured replies.
#include "nbd/session.h"

#include "nbd/session_fixture.h"

namespace berth::nbd {
namespace {

TEST_F(SessionTest, ReadsWhatWasWritten) {
  Start();
  const std::vector<uint8_t> data = Pattern(4096, 1);
  EXPECT_EQ(Write(8192, data), Error::kNone);
  EXPECT_EQ(Read(8192, 4096), data);
  EXPECT_EQ(Read(0, 100), std::vector<uint8_t>(100));
}

TEST_F(SessionTest, ServesEveryAlignmentAndSize) {
  Start();
  uint8_t seed = 0;
  for (const size_t size :
       {1u, 511u, 4097u, 32767u, 32768u, 65537u, 300000u, 1u << 20, 8u << 20, 32u << 20}) {
    const std::vector<uint8_t> data = Pattern(size, ++seed);
    EXPECT_EQ(Write(777, data), Error::kNone) << size;
    EXPECT_EQ(Read(777, size), data) << size;
  }
}

}  // namespace
}  // namespace berth::nbd
