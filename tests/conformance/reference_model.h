// ReferenceModel: what a device has to contain, as plain bytes.
//
// Not thread-safe. What was discarded is unknown until it is written again.
#ifndef BERTH_TESTS_CONFORMANCE_REFERENCE_MODEL_H_
#define BERTH_TESTS_CONFORMANCE_REFERENCE_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "gtest/gtest.h"

namespace berth {

// Bytes that differ from their neighbours near and far, so that a shifted or stale block shows; never zero,
// so that a lost one does too. The same for the same `seed`.
std::vector<uint8_t> PatternBytes(uint64_t offset, size_t length, uint64_t seed);

class ReferenceModel {
 public:
  // All zeroes. One that does not keep data forgets writes.
  explicit ReferenceModel(uint64_t size, bool keeps_data = true);

  uint64_t size() const { return bytes_.size(); }

  void Write(uint64_t offset, absl::Span<const uint8_t> data);
  void Zero(uint64_t offset, uint64_t length);
  void Discard(uint64_t offset, uint64_t length);
  void Resize(uint64_t size);

  // Whether `data` may be what a read at `offset` returned; the failure names the first byte that may not.
  testing::AssertionResult Agrees(uint64_t offset, absl::Span<const uint8_t> data) const;

 private:
  const bool keeps_data_;
  std::vector<uint8_t> bytes_;
  std::vector<uint8_t> known_;  // A byte's 1: bytes_ holds what the device has to contain there.
};

}  // namespace berth

#endif  // BERTH_TESTS_CONFORMANCE_REFERENCE_MODEL_H_
