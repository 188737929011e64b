// Qcow2Device: a qcow2 image. docs/qcow2.md says how it works, and in which order its changes reach the disk.
//
// It holds the devices of its files (image/opener opens them): the image itself, the external data file where
// there is one, and the backing image, whose own chain is behind it. What it needs of them is BlockDevice
// alone, so cache modes, O_DIRECT and locks are theirs.
//
// Broken metadata that is found while reading (an entry with reserved bits, a table inside another, a cluster
// behind the end of the file, compressed data that is none) is EIO for the requests that meet it; what can be
// checked at open is refused there, by name.
//
// A flush is a commit. After one that failed, changes and flushes fail with EIO until the image is opened
// again.
//
// Thread: as BlockDevice. Lifetime: as BlockDevice.
#ifndef BERTH_IMAGE_QCOW2_QCOW2_DEVICE_H_
#define BERTH_IMAGE_QCOW2_QCOW2_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/block/block_device.h"
#include "image/io/mutex.h"
#include "image/luks/sector_cipher.h"
#include "image/qcow2/changes_under_way.h"
#include "image/qcow2/cluster_map.h"
#include "image/qcow2/format/header.h"
#include "image/qcow2/l2_cache.h"

namespace berth {

struct Qcow2Files {
  std::shared_ptr<BlockDevice> image;
  std::shared_ptr<BlockDevice> data;     // Null where the header names none.
  std::shared_ptr<BlockDevice> backing;  // Null where the header names none.
  // Of an image encrypted with LUKS: the file that holds the data, decrypted, as long as it is. Null for
  // others.
  std::shared_ptr<BlockDevice> decrypted = {};
};

struct Qcow2Options {
  // The internal snapshot to show instead of the disk, by its id or else its name. Empty: the disk.
  std::string snapshot = {};
  // Memory for L2 tables: the default serves 256 GiB of a disk with the usual cluster size.
  uint64_t l2_cache_bytes = uint64_t{32} << 20;
  bool writable = false;
  // The image's dirty bitmaps are shown; of a writable one they always are.
  bool bitmaps = false;
  // Of a writable image: every change is on stable storage when it completes.
  bool durable_writes = false;
  // Of a writable image: discards and zeroes free clusters.
  bool unmap = true;
  // Of an image encrypted with the old AES, which is only read.
  std::shared_ptr<const luks::SectorCipher> old_cipher = {};
};

// Reads the header of the image in `image`, whatever its size. Errors as qcow2::DecodeHeader(). Blocks; not
// on a reactor's thread.
absl::StatusOr<qcow2::Header> ReadQcow2Header(BlockDevice& image);

namespace qcow2 {
class BitmapSet;
struct Writer;
}  // namespace qcow2

class Qcow2Device final : public BlockDevice {
 public:
  // `header` is what ReadQcow2Header() said. INVALID_ARGUMENT names the field that is broken, NOT_FOUND the
  // snapshot that is not there, UNIMPLEMENTED what this version cannot do (writing with the old AES),
  // FAILED_PRECONDITION an image that has to be repaired before it is written. Blocks; not on a
  // reactor's thread.
  static absl::StatusOr<std::shared_ptr<Qcow2Device>> Open(Qcow2Files files, const qcow2::Header& header,
                                                           const Qcow2Options& options);

  // Commits what is left of a writable image. Not on a reactor's thread.
  ~Qcow2Device() override;

  const BlockTraits& traits() const override { return traits_; }
  uint64_t size() const override { return size_.load(std::memory_order_acquire); }
  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override;
  std::vector<std::shared_ptr<StatusContext>> contexts() const override;
  // Of an image that is open for writing. INVALID_ARGUMENT for a size that the format or the clusters do not
  // allow, FAILED_PRECONDITION for version 2 with internal snapshots and for dirty bitmaps. Both the mapping
  // and the size are on stable storage when it returns success; a request behind the new end has then failed
  // or is in vain.
  absl::Status Resize(uint64_t new_size) override;

  // Of the dirty bitmaps that the image keeps, by name: forgets all changes, or begins or ends to follow
  // them. NOT_FOUND, and FAILED_PRECONDITION where the image is not open for writing. May block.
  absl::Status ClearBitmap(const std::string& name);
  absl::Status EnableBitmap(const std::string& name, bool enabled);
  // One in which nothing is dirty, and which follows changes from now on. As BitmapSet::Create().
  absl::Status CreateBitmap(const std::string& name, uint32_t granularity_bits);
  absl::Status DeleteBitmap(const std::string& name);

  // Null where there is none.
  BlockDevice* backing() const { return files_.backing.get(); }

 private:
  friend class Qcow2Channel;

  Qcow2Device(Qcow2Files files, const qcow2::Header& header, uint64_t size, uint64_t l1_table_offset,
              std::vector<uint64_t> l1, const Qcow2Options& options);
  absl::Status PrepareWriting(const qcow2::Header& header, std::vector<uint64_t> l1,
                              const Qcow2Options& options);
  absl::Status PrepareDataFile();
  absl::Status CheckNewSize(uint64_t new_size) const;
  absl::Status GrowTo(uint64_t new_size);
  absl::Status ShrinkTo(uint64_t new_size);

  const Qcow2Files files_;
  const qcow2::CompressionType compression_type_;
  const uint32_t version_;
  const uint32_t snapshot_count_;
  std::atomic<uint64_t> size_;
  // The disk's end, while no resize moves it: a zero or a discard up to there may take the whole last
  // cluster. Else 0.
  std::atomic<uint64_t> fixed_end_;
  // Bytes of the files when they were opened. While the image is open for writing, its file grows.
  const uint64_t image_size_;
  const uint64_t data_size_;
  const uint64_t backing_size_;  // 0 where there is none.
  // The external data file is the disk as a raw image, and stays so.
  const bool data_is_raw_;
  const std::shared_ptr<const luks::SectorCipher> old_cipher_;
  BlockTraits traits_;
  const qcow2::ClusterMap map_;
  qcow2::L2Cache l2_cache_;
  const std::shared_ptr<StatusContext> depth_;
  qcow2::ChangesUnderWay changes_;
  // One resize at a time; held over all of it, and by nobody else.
  Mutex resizing_;
  uint64_t kept_size_;                         // The file is not cut below this when it is closed.
  std::unique_ptr<qcow2::BitmapSet> bitmaps_;  // Null where nobody asked for them.
  std::unique_ptr<qcow2::Writer> writer_;      // Null where the image is open for reading.
};

}  // namespace berth

#endif  // BERTH_IMAGE_QCOW2_QCOW2_DEVICE_H_
