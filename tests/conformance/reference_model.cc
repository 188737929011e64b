#include "tests/conformance/reference_model.h"

#include <algorithm>
#include <cstring>

namespace berth {
namespace {

constexpr size_t kCompareAtOnce = 4096;

}  // namespace

std::vector<uint8_t> PatternBytes(uint64_t offset, size_t length, uint64_t seed) {
  std::vector<uint8_t> bytes(length);
  uint8_t* const out = bytes.data();
  for (size_t i = 0; i < length; ++i) {
    uint64_t mixed = (offset + i + 1) * 0x9e3779b97f4a7c15u ^ (seed + 1) * 0xc2b2ae3d27d4eb4fu;
    mixed ^= mixed >> 29;
    out[i] = static_cast<uint8_t>(1 + mixed % 255);
  }
  return bytes;
}

ReferenceModel::ReferenceModel(uint64_t size, bool keeps_data)
    : keeps_data_(keeps_data), bytes_(size), known_(size, 1) {}

void ReferenceModel::Write(uint64_t offset, absl::Span<const uint8_t> data) {
  if (!keeps_data_) return;
  memcpy(bytes_.data() + offset, data.data(), data.size());
  memset(known_.data() + offset, 1, data.size());
}

void ReferenceModel::Zero(uint64_t offset, uint64_t length) {
  memset(bytes_.data() + offset, 0, length);
  memset(known_.data() + offset, 1, length);
}

void ReferenceModel::Discard(uint64_t offset, uint64_t length) {
  if (!keeps_data_) return;
  memset(known_.data() + offset, 0, length);
}

void ReferenceModel::Resize(uint64_t size) {
  bytes_.resize(size, 0);
  known_.resize(size, 1);
}

testing::AssertionResult ReferenceModel::Agrees(uint64_t offset, absl::Span<const uint8_t> data) const {
  if (offset + data.size() > bytes_.size()) {
    return testing::AssertionFailure()
           << "read past the end: " << offset << "+" << data.size() << " of " << bytes_.size();
  }
  for (size_t begin = 0; begin < data.size(); begin += kCompareAtOnce) {
    const size_t end = std::min(data.size(), begin + kCompareAtOnce);
    if (memcmp(data.data() + begin, bytes_.data() + offset + begin, end - begin) == 0) continue;
    for (size_t i = begin; i < end; ++i) {
      if (!known_[offset + i] || data[i] == bytes_[offset + i]) continue;
      return testing::AssertionFailure()
             << "byte " << offset + i << " (" << i << " of a read of " << offset << "+" << data.size()
             << ") is " << int{data[i]} << ", not " << int{bytes_[offset + i]};
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace berth
