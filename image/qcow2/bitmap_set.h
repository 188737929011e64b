// BitmapSet: the dirty bitmaps that an image keeps in its file (section "Bitmaps").
//
// While the image is open for writing, the bitmaps that follow its changes say in the file that they are in
// use: after a cut nobody takes them for what they are not. They are written when the image is closed, and
// say so no more then. docs/qcow2.md has the steps.
//
// Thread-safe but for Load(), MarkInUse() and Store(), which nothing else runs beside. Lifetime: the
// device's.
#ifndef BERTH_IMAGE_QCOW2_BITMAP_SET_H_
#define BERTH_IMAGE_QCOW2_BITMAP_SET_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/block/block_device.h"
#include "image/io/mutex.h"
#include "image/io/task.h"
#include "image/qcow2/committer.h"
#include "image/qcow2/dirty_bitmap.h"
#include "image/qcow2/format/bitmap_directory.h"
#include "image/qcow2/format/header.h"
#include "image/qcow2/write_map.h"

namespace berth::qcow2 {

// Of all bitmaps of an image, in memory.
inline constexpr uint64_t kMaxBitmapBytes = uint64_t{256} << 20;

class BitmapSet {
 public:
  // Reads the bitmaps of the image in `image`; none where nobody kept them up. INVALID_ARGUMENT names what is
  // broken, RESOURCE_EXHAUSTED says that they take more memory than kMaxBitmapBytes. Blocks; not on a
  // reactor's thread.
  static absl::StatusOr<std::unique_ptr<BitmapSet>> Load(BlockDevice& image, const Header& header);

  // Offsets in the file of all that they take: directory, tables and data.
  const std::vector<uint64_t>& clusters() const { return clusters_; }

  // Before the first change of the image: what follows it says that it is in use, on stable storage. Blocks.
  absl::Status MarkInUse(BlockDevice& image);

  // Before these bytes of the disk change.
  void NoteChange(uint64_t offset, uint64_t length) {
    if (follows_.load(std::memory_order_relaxed)) MarkDirty(offset, length);
  }

  // When the image is closed, after its last commit. `channel` and `data` are as Committer::Commit() takes
  // them.
  Task<IoResult> Store(Reactor& reactor, BlockChannel& channel, BlockChannel* data, WriteMap& map,
                       Committer& committer);

  // Those that can be trusted.
  std::vector<std::shared_ptr<StatusContext>> contexts() const;

  // NOT_FOUND where there is none of this name that can be trusted. Enabling blocks: the bitmap says that it
  // is in use before it follows anything.
  absl::Status Clear(const std::string& name);
  absl::Status Enable(const std::string& name, bool enabled, BlockDevice& image);
  // Makes one in which nothing is dirty and which follows changes from now on; it is in the file when the
  // image was closed. INVALID_ARGUMENT names what cannot be, ALREADY_EXISTS; RESOURCE_EXHAUSTED where memory,
  // or the image's header, has no room for it. Blocks.
  absl::Status Create(const std::string& name, uint32_t granularity_bits, uint64_t disk_size,
                      BlockDevice& image);
  // Also one that cannot be trusted. It is gone from the file when the image was closed.
  absl::Status Delete(const std::string& name);

  // There is none in the file, and none that is to be there.
  bool empty() const;

 private:
  struct Stored {
    BitmapEntry entry;
    uint64_t flags_offset = 0;    // In the file; 0 where it is not there yet.
    std::vector<uint64_t> table;  // Offsets of clusters; 0 or 1 where there is none.
    // Null where it cannot be trusted, or has a meaning that we do not know.
    std::shared_ptr<DirtyBitmap> bitmap;
    std::shared_ptr<StatusContext> context;
    bool marked = false;   // It says that it is in use, by us.
    bool changed = false;  // Its content has to be written.
  };

  explicit BitmapSet(const Header& header)
      : version_(header.version), cluster_bits_(header.cluster_bits), disk_size_(header.size) {}
  absl::Status LoadTable(BlockDevice& image, const Header& header, Stored* stored);
  absl::Status LoadContent(BlockDevice& image, Stored* stored);
  absl::Status Mark(BlockDevice& image, Stored* stored) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void MarkDirty(uint64_t offset, uint64_t length);
  Stored* FindTrusted(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Clusters for the table and the directory: a row of them.
  static bool TakeRow(WriteMap& map, uint64_t clusters, uint32_t cluster_bits, uint64_t* offset);
  // The directory that is to be, and that what is not in it any more is given up.
  bool PlanDirectory(WriteMap& map, std::vector<uint64_t>* unused);
  Task<IoResult> WriteDirectory(BlockChannel& channel);
  Task<IoResult> WriteFlags(BlockChannel& channel, std::vector<Stored*> bitmaps, bool in_use);
  Task<IoResult> WriteContent(BlockChannel& channel, Stored* stored);
  // False where there is no space.
  bool PlanTable(Stored* stored, WriteMap& map, std::vector<uint64_t>* unused);

  uint64_t ClustersOf(uint64_t bytes) const {
    return (bytes + (uint64_t{1} << cluster_bits_) - 1) >> cluster_bits_;
  }

  const uint32_t version_;
  const uint32_t cluster_bits_;
  const uint64_t disk_size_;
  uint64_t directory_offset_ = 0;
  std::vector<uint8_t> directory_;  // As it is in the file, or is about to be.
  std::vector<uint64_t> clusters_;
  std::atomic<bool> follows_{false};
  mutable Mutex mutex_;
  std::vector<std::unique_ptr<Stored>> bitmaps_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<Stored>> deleted_ ABSL_GUARDED_BY(mutex_);
  bool made_or_deleted_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_BITMAP_SET_H_
