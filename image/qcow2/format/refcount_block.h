// Entries of a refcount block (section "Host cluster management"): 1 << order bits each, order 0 to 6.
//
// Below a byte the first entry is in the least significant bits; from 16 bits on an entry is big endian.
#ifndef BERTH_IMAGE_QCOW2_FORMAT_REFCOUNT_BLOCK_H_
#define BERTH_IMAGE_QCOW2_FORMAT_REFCOUNT_BLOCK_H_

#include <cassert>
#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "image/io/big_endian.h"

namespace berth::qcow2 {

inline constexpr uint32_t kMaxRefcountOrder = 6;

constexpr uint64_t MaxRefcount(uint32_t order) {
  return order == kMaxRefcountOrder ? ~uint64_t{0} : (uint64_t{1} << (1u << order)) - 1;
}

// How many entries a block of `block_bytes` has.
constexpr uint64_t RefcountEntries(uint64_t block_bytes, uint32_t order) { return block_bytes * 8 >> order; }

// `index` is below RefcountEntries(block.size(), order).
inline uint64_t GetRefcount(absl::Span<const uint8_t> block, uint32_t order, size_t index) {
  assert(index < RefcountEntries(block.size(), order));
  switch (order) {
    case 3:
      return block[index];
    case 4:
      return Load16(&block[index * 2]);
    case 5:
      return Load32(&block[index * 4]);
    case 6:
      return Load64(&block[index * 8]);
    default: {
      const size_t bit = index << order;
      return (block[bit / 8] >> (bit % 8)) & MaxRefcount(order);
    }
  }
}

// The same, and `value` is at most MaxRefcount(order).
inline void SetRefcount(absl::Span<uint8_t> block, uint32_t order, size_t index, uint64_t value) {
  assert(index < RefcountEntries(block.size(), order) && value <= MaxRefcount(order));
  switch (order) {
    case 3:
      block[index] = static_cast<uint8_t>(value);
      return;
    case 4:
      Store16(&block[index * 2], static_cast<uint16_t>(value));
      return;
    case 5:
      Store32(&block[index * 4], static_cast<uint32_t>(value));
      return;
    case 6:
      Store64(&block[index * 8], value);
      return;
    default: {
      const size_t bit = index << order;
      const auto mask = static_cast<uint8_t>(MaxRefcount(order) << (bit % 8));
      block[bit / 8] = static_cast<uint8_t>((block[bit / 8] & ~mask) | (value << (bit % 8)));
      return;
    }
  }
}

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_FORMAT_REFCOUNT_BLOCK_H_
