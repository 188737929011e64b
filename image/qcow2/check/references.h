// The references that an image's metadata makes to the clusters of its file.
#ifndef BERTH_IMAGE_QCOW2_CHECK_REFERENCES_H_
#define BERTH_IMAGE_QCOW2_CHECK_REFERENCES_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "image/block/block_device.h"
#include "image/io/progress.h"
#include "image/qcow2/check/check.h"
#include "image/qcow2/check/reference_counts.h"
#include "image/qcow2/format/header.h"

namespace berth::qcow2 {

// Notes a sentence, while there is room for it.
template <typename... Parts>
void Note(CheckResult* result, const Parts&... parts) {
  if (result->findings.size() < kMostFindings) result->findings.push_back(absl::StrCat(parts...));
}

// Fills `out`; what the file is too short for is zeroes.
absl::Status ReadPadded(BlockDevice& image, uint64_t offset, absl::Span<uint8_t> out);

// A table of 64-bit entries, in the machine's byte order.
absl::StatusOr<std::vector<uint64_t>> ReadTable(BlockDevice& image, uint64_t offset, uint64_t entries);

// Adds every reference but those that the refcount table makes, which are not followed where it is going to
// be replaced. Broken entries are corruptions of `result`, and refer to nothing. Blocks.
absl::Status CountReferences(BlockDevice& image, const Header& header, Progress& progress,
                             ReferenceCounts* counts, CheckResult* result);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_CHECK_REFERENCES_H_
