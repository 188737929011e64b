// Compressing for tests: what a writer of the image would have stored.
#ifndef BERTH_IMAGE_QCOW2_DEFLATE_H_
#define BERTH_IMAGE_QCOW2_DEFLATE_H_

#include <zlib.h>

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "gtest/gtest.h"

namespace berth::qcow2 {

// Raw deflate, without zlib's header.
inline std::vector<uint8_t> Deflate(absl::Span<const uint8_t> data) {
  z_stream stream = {};
  EXPECT_EQ(deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY), Z_OK);
  std::vector<uint8_t> out(deflateBound(&stream, data.size()));
  stream.next_in = const_cast<Bytef*>(data.data());
  stream.avail_in = static_cast<uInt>(data.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_DEFLATE_H_
