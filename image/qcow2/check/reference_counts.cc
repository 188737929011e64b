#include "image/qcow2/check/reference_counts.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace berth::qcow2 {

absl::StatusOr<ReferenceCounts> ReferenceCounts::Create(uint64_t clusters) {
  ReferenceCounts counts;
  if (absl::Status status = counts.Grow(clusters); !status.ok()) return status;
  return counts;
}

absl::Status ReferenceCounts::Grow(uint64_t clusters) {
  if (clusters > kMostCheckedClusters) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the image's file has ", clusters, " clusters, and at most ", kMostCheckedClusters,
                     " can be counted; convert it to one with larger clusters"));
  }
  // calloc takes memory for the pages that are written to alone.
  std::unique_ptr<uint16_t[], Free> grown(
      static_cast<uint16_t*>(std::calloc(std::max<uint64_t>(clusters, 1), sizeof(uint16_t))));
  if (grown == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for the reference counts of ", clusters, " clusters"));
  }
  for (uint64_t i = 0; i < std::min(clusters, clusters_); ++i) {
    if (counts_.get()[i] != 0) grown.get()[i] = counts_.get()[i];
  }
  counts_ = std::move(grown);
  clusters_ = clusters;
  return absl::OkStatus();
}

}  // namespace berth::qcow2
