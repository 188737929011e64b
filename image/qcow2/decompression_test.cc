#include "image/qcow2/decompression.h"

#include <zstd.h>

#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "image/qcow2/deflate.h"

namespace berth::qcow2 {
namespace {

std::vector<uint8_t> Sample(size_t size) {
  std::mt19937 random(1);
  std::vector<uint8_t> data(size);
  for (uint8_t& byte : data) byte = static_cast<uint8_t>(random() % 5);
  return data;
}

std::vector<uint8_t> Zstd(absl::Span<const uint8_t> data, int window_log = 0) {
  ZSTD_CCtx* const context = ZSTD_createCCtx();
  if (window_log != 0) ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, window_log);
  std::vector<uint8_t> out(ZSTD_compressBound(data.size()));
  // As a stream of unknown size, as qemu does it.
  ZSTD_inBuffer input = {data.data(), data.size(), 0};
  ZSTD_outBuffer output = {out.data(), out.size(), 0};
  EXPECT_EQ(ZSTD_compressStream2(context, &output, &input, ZSTD_e_continue), 0u);
  EXPECT_EQ(ZSTD_compressStream2(context, &output, &input, ZSTD_e_end), 0u);
  ZSTD_freeCCtx(context);
  out.resize(output.pos);
  return out;
}

TEST(DecompressionTest, GivesBackWhatWasCompressed) {
  for (const size_t size : {size_t{512}, size_t{65'536}, size_t{2} << 20}) {
    const std::vector<uint8_t> data = Sample(size);
    std::vector<uint8_t> out(size);
    for (const CompressionType type : {CompressionType::kDeflate, CompressionType::kZstd}) {
      std::vector<uint8_t> compressed = type == CompressionType::kDeflate ? Deflate(data) : Zstd(data);
      const size_t length = compressed.size();
      // Other clusters' bytes follow in the last sector.
      compressed.insert(compressed.end(), 300, 0xff);
      EXPECT_TRUE(Decompress(type, compressed, absl::MakeSpan(out)));
      EXPECT_TRUE(out == data);
      EXPECT_FALSE(
          Decompress(type, absl::MakeConstSpan(compressed).subspan(0, length / 2), absl::MakeSpan(out)));
      // A cluster that is not filled is an error, and so is what is no compressed data.
      std::vector<uint8_t> larger(size + 1);
      EXPECT_FALSE(
          Decompress(type, absl::MakeConstSpan(compressed).subspan(0, length), absl::MakeSpan(larger)));
      EXPECT_FALSE(Decompress(type, std::vector<uint8_t>(1000, 0xff), absl::MakeSpan(out)));
      EXPECT_FALSE(Decompress(type, {}, absl::MakeSpan(out)));
    }
  }
}

TEST(DecompressionTest, AFrameCannotAskForMuchMemory) {
  const std::vector<uint8_t> data = Sample(65'536);
  std::vector<uint8_t> out(data.size());
  EXPECT_TRUE(Decompress(CompressionType::kZstd, Zstd(data, 23), absl::MakeSpan(out)));
  EXPECT_FALSE(Decompress(CompressionType::kZstd, Zstd(data, 27), absl::MakeSpan(out)));
}

}  // namespace
}  // namespace berth::qcow2
