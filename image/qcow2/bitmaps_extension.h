// The header's "Bitmaps extension", put into a header that is in use: in steps, each of which leaves a header
// that can be read.
#ifndef BERTH_IMAGE_QCOW2_BITMAPS_EXTENSION_H_
#define BERTH_IMAGE_QCOW2_BITMAPS_EXTENSION_H_

#include <cstdint>
#include <optional>

#include "absl/types/span.h"
#include "image/block/block_device.h"
#include "image/io/io_result.h"
#include "image/io/task.h"
#include "image/qcow2/format/header.h"

namespace berth::qcow2 {

// Where in the first cluster the extension is, or goes: behind the last one.
struct ExtensionPlace {
  uint64_t offset = 0;
  bool exists = false;
  // The backing file's name has to move out of the way first.
  uint64_t name_from = 0;
  uint64_t name_to = 0;
  uint64_t name_bytes = 0;
};

// `first_cluster` is that of an image of version 3 whose header was decoded. Nothing where it has no room.
std::optional<ExtensionPlace> PlaceOfBitmapsExtension(absl::Span<const uint8_t> first_cluster);

// Writes it, with the autoclear bit away meanwhile and set at the end where `extension` is one; without one
// the bit stays away, and nobody looks at what is there.
Task<IoResult> WriteBitmapsExtension(BlockChannel& channel, uint64_t cluster_size,
                                     std::optional<BitmapsExtension> extension);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_BITMAPS_EXTENSION_H_
