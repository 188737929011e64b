#include "image/qcow2/decompression.h"

#include <zlib.h>
#include <zstd.h>

#include <memory>

namespace berth::qcow2 {
namespace {

// Raw deflate, without zlib's own header, and the largest window there is.
constexpr int kRawDeflate = -MAX_WBITS;
// log2 of the memory that a frame may ask for: four clusters of the largest size.
constexpr int kMaxZstdWindowLog = 23;

// zlib's state, made once a thread: making it costs as much as a small cluster.
class Inflater {
 public:
  Inflater() { usable_ = inflateInit2(&stream_, kRawDeflate) == Z_OK; }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  ~Inflater() {
    if (usable_) inflateEnd(&stream_);
  }

  bool Run(absl::Span<const uint8_t> data, absl::Span<uint8_t> out) {
    if (!usable_ || inflateReset(&stream_) != Z_OK) return false;
    stream_.next_in = const_cast<Bytef*>(data.data());
    stream_.avail_in = static_cast<uInt>(data.size());
    stream_.next_out = out.data();
    stream_.avail_out = static_cast<uInt>(out.size());
    const int result = inflate(&stream_, Z_FINISH);
    // A full buffer is the end, whether or not the stream's own end was seen.
    return (result == Z_STREAM_END || result == Z_BUF_ERROR || result == Z_OK) && stream_.avail_out == 0;
  }

 private:
  z_stream stream_ = {};
  bool usable_ = false;
};

bool DecompressZstd(absl::Span<const uint8_t> data, absl::Span<uint8_t> out) {
  static thread_local const std::unique_ptr<ZSTD_DCtx, size_t (*)(ZSTD_DCtx*)> context = [] {
    std::unique_ptr<ZSTD_DCtx, size_t (*)(ZSTD_DCtx*)> made(ZSTD_createDCtx(), &ZSTD_freeDCtx);
    if (made != nullptr) ZSTD_DCtx_setParameter(made.get(), ZSTD_d_windowLogMax, kMaxZstdWindowLog);
    return made;
  }();
  if (context == nullptr) return false;
  ZSTD_DCtx_reset(context.get(), ZSTD_reset_session_only);
  ZSTD_inBuffer input = {data.data(), data.size(), 0};
  ZSTD_outBuffer output = {out.data(), out.size(), 0};
  while (output.pos < output.size) {
    const size_t before = output.pos + input.pos;
    if (ZSTD_isError(ZSTD_decompressStream(context.get(), &output, &input)) != 0) return false;
    if (output.pos + input.pos == before) return false;  // The data is over, and the cluster is not full.
  }
  return true;
}

}  // namespace

bool Decompress(CompressionType type, absl::Span<const uint8_t> data, absl::Span<uint8_t> out) {
  if (type == CompressionType::kZstd) return DecompressZstd(data, out);
  static thread_local Inflater inflater;
  return inflater.Run(data, out);
}

}  // namespace berth::qcow2
