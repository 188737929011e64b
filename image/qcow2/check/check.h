// Checking and repairing a qcow2 image that nobody has open for writing: are the reference counts those of
// the references that there are?
//
//  * A cluster with a count above its references is a leak: space is lost and nothing else.
//  * One with a count below them is a corruption: a writer would take it for free, and overwrite data. So is
//  a
//    "copied" flag that contradicts the references, and an entry of a table that says what none may say.
//
// The sections are "Host cluster management" and "Cluster mapping". The files below the image play no part,
// nor does the content of clusters.
#ifndef BERTH_IMAGE_QCOW2_CHECK_CHECK_H_
#define BERTH_IMAGE_QCOW2_CHECK_CHECK_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "image/block/block_device.h"
#include "image/io/progress.h"
#include "image/qcow2/format/header.h"

namespace berth::qcow2 {

enum class Repair : uint8_t { kNone, kLeaks, kAll };

inline constexpr size_t kMostFindings = 100;

struct CheckResult {
  // What was found, less what was repaired.
  uint64_t corruptions = 0;
  uint64_t leaks = 0;
  uint64_t corruptions_fixed = 0;
  uint64_t leaks_fixed = 0;
  // Of the disk, whose clusters can be allocated, compressed among these, and out of the order of the file.
  uint64_t total_clusters = 0;
  uint64_t allocated_clusters = 0;
  uint64_t compressed_clusters = 0;
  uint64_t fragmented_clusters = 0;
  // Behind the last cluster in use.
  uint64_t image_end_offset = 0;
  // The first kMostFindings, as sentences with offsets.
  std::vector<std::string> findings;
};

// `header` is what `image` begins with, which is open for writing where `repair` asks for something. Repairs
// are made in an order that a crash at any point survives: counts go up first and down last, and the dirty
// and the corrupt bit go when there is no corruption left.
//
// `progress` counts bytes of the disk and of its snapshots. CANCELLED leaves a repair half done, and the
// image as good as before or better. INVALID_ARGUMENT for tables that cannot be read at all (snapshots',
// bitmaps'), RESOURCE_EXHAUSTED past kMostCheckedClusters, or the error of the file. Blocks; not on a
// reactor's thread.
absl::StatusOr<CheckResult> CheckImage(BlockDevice& image, const Header& header, Repair repair,
                                       Progress& progress);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_CHECK_CHECK_H_
