// The choices a caller has about how an image file is used. The names are qemu's; exports.proto mirrors them.
#ifndef BERTH_IMAGE_BLOCK_IMAGE_MODES_H_
#define BERTH_IMAGE_BLOCK_IMAGE_MODES_H_

#include <cstdint>

namespace berth {

// What the host's page cache does, and what a completed write means.
enum class CacheMode : uint8_t {
  kWriteback,     // Cached; durable after a flush.
  kWritethrough,  // Cached; every write, zero and discard is durable when it completes.
  kNone,          // O_DIRECT; durable after a flush.
  kDirectsync,    // O_DIRECT; every write, zero and discard is durable when it completes.
  kUnsafe,        // Cached; flushes and FUA are ignored.
};

constexpr bool UsesDirectIo(CacheMode mode) {
  return mode == CacheMode::kNone || mode == CacheMode::kDirectsync;
}
constexpr bool WritesAreDurable(CacheMode mode) {
  return mode == CacheMode::kWritethrough || mode == CacheMode::kDirectsync;
}

// What a discard does to the image, and whether zeroes may be a hole.
enum class DiscardMode : uint8_t {
  kUnmap,   // A discard, and a zero that may unmap, give their space back.
  kIgnore,  // A discard succeeds and does nothing; zeroes keep their space.
};

// How an image is locked against other programs, in qemu's way.
enum class LockMode : uint8_t {
  kExclusive,     // A writer excludes other writers, a reader excludes writers; readers share.
  kSharedWriter,  // Others may write too, as long as they allow it as well: they coordinate elsewhere.
  kNone,          // No lock is taken, and none of others is looked at.
};

}  // namespace berth

#endif  // BERTH_IMAGE_BLOCK_IMAGE_MODES_H_
