// Decompressing one cluster. Thread-safe; pure.
#ifndef BERTH_IMAGE_QCOW2_DECOMPRESSION_H_
#define BERTH_IMAGE_QCOW2_DECOMPRESSION_H_

#include <cstdint>

#include "absl/types/span.h"
#include "image/qcow2/format/header.h"

namespace berth::qcow2 {

// Fills `out`, a cluster, from the beginning of `data`, which may go on behind the compressed bytes. False
// where the data is broken or ends too early; `out` then holds anything. Memory: under 9 MiB a thread,
// whatever the data says.
bool Decompress(CompressionType type, absl::Span<const uint8_t> data, absl::Span<uint8_t> out);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_DECOMPRESSION_H_
