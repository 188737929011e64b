// Qcow2Channel: the way to a qcow2 image's data from one reactor.
//
// A request that lies in one run of the map and whose L2 slice is known costs no coroutine frame of its own:
// it becomes a request to the file, or to the backing image, that is returned as it is.
#ifndef BERTH_IMAGE_QCOW2_QCOW2_CHANNEL_H_
#define BERTH_IMAGE_QCOW2_QCOW2_CHANNEL_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "image/block/block_device.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "image/luks/sector_cipher.h"
#include "image/qcow2/changes_under_way.h"
#include "image/qcow2/cluster_map.h"
#include "image/qcow2/compressed_clusters.h"
#include "image/qcow2/l2_cache.h"
#include "image/qcow2/qcow2_device.h"
#include "image/qcow2/write_map.h"

namespace berth {

class Qcow2Channel final : public BlockChannel {
 public:
  static absl::StatusOr<std::unique_ptr<Qcow2Channel>> Open(Qcow2Device& device, Reactor& reactor);

  Task<IoResult> Read(uint64_t offset, absl::Span<uint8_t> out) override;
  Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) override;
  Task<IoResult> Flush() override;
  Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) override;
  Task<IoResult> Discard(uint64_t offset, uint64_t length) override;
  Task<IoResult> Prefetch(uint64_t offset, uint64_t length) override;
  Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) override;

  // As StatusChannel::Extents, for AllocationDepth. `below` is that of the backing image, or null where that
  // is no chain.
  Task<IoResult> Depths(uint64_t offset, uint64_t length, StatusChannel* below,
                        std::vector<StatusExtent>* out);
  // For Qcow2Device::Resize(). A larger disk: makes [old_size, new_size) read as zeroes, and writes the new
  // size.
  Task<IoResult> Grow(uint64_t old_size, uint64_t new_size);
  // A smaller one: frees what lies behind `size`, and writes it. What of that comes after the size is written
  // is best effort; `*written` says whether it was.
  Task<IoResult> Shrink(uint64_t size, bool* written);

 private:
  using Run = qcow2::Run;
  struct Piece;

  Qcow2Channel(Qcow2Device& device, Reactor& reactor, std::unique_ptr<BlockChannel> image,
               std::unique_ptr<BlockChannel> data, std::unique_ptr<BlockChannel> backing);

  bool Inside(uint64_t offset, uint64_t length) const {
    const uint64_t size = device_.size();
    return offset <= size && length <= size - offset;
  }
  uint64_t data_size() const;
  // What holds the clusters' data: decrypted, where it is encrypted.
  BlockChannel& data_file() {
    return decrypted_ != nullptr ? *decrypted_ : data_ != nullptr ? *data_ : *image_;
  }

  // The run from `offset` on; nothing where its slice has to be loaded first. What it names stays what it is
  // while `hold`, where there is one, holds.
  std::optional<Run> Lookup(uint64_t offset, uint64_t length, qcow2::MappingHold* hold = nullptr);
  // Makes the next Lookup() of `offset` succeed.
  Task<IoResult> LoadSlice(uint64_t offset);
  void Remember(uint64_t offset, std::shared_ptr<const qcow2::L2Slice> slice);

  Task<IoResult> ReadRun(const Run& run, uint64_t offset, absl::Span<uint8_t> out);
  Task<IoResult> ReadRuns(uint64_t offset, absl::Span<uint8_t> out);
  Task<IoResult> ReadPieces(absl::Span<const Piece> pieces);
  Task<IoResult> ReadData(uint64_t host, absl::Span<uint8_t> out);
  // Of an image with the old AES, whose sectors have the numbers that the disk gives them.
  Task<IoResult> ReadOldAes(uint64_t host, uint64_t offset, absl::Span<uint8_t> out);
  Task<IoResult> ReadBacking(uint64_t offset, absl::Span<uint8_t> out);
  static Task<IoResult> Held(Task<IoResult> reading, qcow2::MappingHold hold);

  // Where the image is open for writing.
  Task<IoResult> LoadForWriting(uint64_t file_offset);
  Task<IoResult> WriteAll(uint64_t offset, absl::Span<const uint8_t> data, bool durable);
  Task<IoResult> WriteRange(uint64_t offset, absl::Span<const uint8_t> data);
  Task<IoResult> Fill(const qcow2::WriteMap::Allocation& allocation, uint64_t offset,
                      absl::Span<const uint8_t> data);
  Task<IoResult> WriteZeroes(uint64_t offset, uint64_t length);
  Task<IoResult> ZeroAll(uint64_t offset, uint64_t length, bool keep_space, bool durable);
  Task<IoResult> Clear(uint64_t offset, uint64_t length, bool discard);
  Task<IoResult> DiscardUnits(uint64_t offset, uint64_t length);
  Task<IoResult> AfterChange(bool durable);
  Task<IoResult> Commit();
  // Does what `step` needs before the map can be asked again.
  Task<IoResult> Prepare(const qcow2::WriteMap::Step& step, bool* committed);

  Task<IoResult> ZeroSpace(uint64_t offset, uint64_t length);

  Task<IoResult> PrefetchRuns(uint64_t offset, uint64_t length);
  Task<IoResult> FindExtents(uint64_t offset, uint64_t length, std::vector<Extent>* out);
  Task<IoResult> BackingExtents(const Run& run, uint64_t offset, std::vector<Extent>* found,
                                uint64_t* covered);

  Qcow2Device& device_;
  Reactor& reactor_;
  const std::unique_ptr<BlockChannel> image_;
  const std::unique_ptr<BlockChannel> data_;                // Null where the image holds the data.
  const std::unique_ptr<BlockChannel> backing_;             // Null where there is none.
  std::unique_ptr<BlockChannel> decrypted_;                 // Null where nothing is encrypted with LUKS.
  std::unique_ptr<luks::SectorCipher::Worker> old_cipher_;  // Null where nothing is with the old AES.
  qcow2::CompressedClusters compressed_;
  const qcow2::ChangesUnderWay::Part changes_;

  // The slices this channel used last, found without the cache's lock.
  struct Known {
    uint64_t index = ~uint64_t{0};  // Of the slice on the disk.
    std::shared_ptr<const qcow2::L2Slice> slice;
  };
  static constexpr size_t kKnown = 32;
  std::array<Known, kKnown> known_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_QCOW2_QCOW2_CHANNEL_H_
