#include "tests/conformance/reference_model.h"

#include <algorithm>

namespace berth {

std::vector<uint8_t> PatternBytes(uint64_t offset, size_t length, uint64_t seed) {
  std::vector<uint8_t> bytes(length);
  for (size_t i = 0; i < length; ++i) {
    uint64_t mixed = (offset + i + 1) * 0x9e3779b97f4a7c15u ^ (seed + 1) * 0xc2b2ae3d27d4eb4fu;
    mixed ^= mixed >> 29;
    bytes[i] = static_cast<uint8_t>(1 + mixed % 255);
  }
  return bytes;
}

ReferenceModel::ReferenceModel(uint64_t size, bool keeps_data)
    : keeps_data_(keeps_data), bytes_(size), known_(size, true) {}

void ReferenceModel::Write(uint64_t offset, absl::Span<const uint8_t> data) {
  if (!keeps_data_) return;
  std::copy(data.begin(), data.end(), bytes_.begin() + static_cast<ptrdiff_t>(offset));
  std::fill_n(known_.begin() + static_cast<ptrdiff_t>(offset), data.size(), true);
}

void ReferenceModel::Zero(uint64_t offset, uint64_t length) {
  std::fill_n(bytes_.begin() + static_cast<ptrdiff_t>(offset), length, 0);
  std::fill_n(known_.begin() + static_cast<ptrdiff_t>(offset), length, true);
}

void ReferenceModel::Discard(uint64_t offset, uint64_t length) {
  if (!keeps_data_) return;
  std::fill_n(known_.begin() + static_cast<ptrdiff_t>(offset), length, false);
}

void ReferenceModel::Resize(uint64_t size) {
  bytes_.resize(size, 0);
  known_.resize(size, true);
}

testing::AssertionResult ReferenceModel::Agrees(uint64_t offset, absl::Span<const uint8_t> data) const {
  if (offset + data.size() > bytes_.size()) {
    return testing::AssertionFailure()
           << "read past the end: " << offset << "+" << data.size() << " of " << bytes_.size();
  }
  for (size_t i = 0; i < data.size(); ++i) {
    if (!known_[offset + i] || data[i] == bytes_[offset + i]) continue;
    return testing::AssertionFailure()
           << "byte " << offset + i << " (" << i << " of a read of " << offset << "+" << data.size()
           << ") is " << int{data[i]} << ", not " << int{bytes_[offset + i]};
  }
  return testing::AssertionSuccess();
}

}  // namespace berth
