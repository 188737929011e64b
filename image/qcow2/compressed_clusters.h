// CompressedClusters: one channel's way to compressed clusters.
//
// A cluster is decompressed as a whole, and clients read it in small pieces, one after the other: the last
// ones are therefore kept, and of several requests for one cluster only the first decompresses.
//
// Decompressing runs on threads of its own where it takes longer than handing it over: 64 KiB of deflate take
// some 400 us, in which the reactor would serve hundreds of other requests.
//
// Thread: the channel's reactor. Lifetime: no read is under way when it is destroyed; channel outlives it.
#ifndef BERTH_IMAGE_QCOW2_COMPRESSED_CLUSTERS_H_
#define BERTH_IMAGE_QCOW2_COMPRESSED_CLUSTERS_H_

#include <coroutine>
#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "image/block/block_device.h"
#include "image/io/io_result.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "image/qcow2/format/cluster_entry.h"
#include "image/qcow2/format/header.h"

namespace berth::qcow2 {

class CompressedClusters {
 public:
  // `image` is the channel of a file of `image_size` bytes.
  CompressedClusters(const EntryLayout& layout, CompressionType type, BlockChannel& image,
                     uint64_t image_size, Reactor& reactor);

  // Reads the bytes from `begin` on of the cluster that `entry`, a valid L2 entry, describes. EIO where its
  // data is broken.
  Task<IoResult> Read(uint64_t entry, uint64_t begin, absl::Span<uint8_t> out);

 private:
  struct Cluster {
    uint64_t entry = 0;
    bool ready = false;
    IoResult result;
    std::vector<uint8_t> bytes;
    std::vector<std::coroutine_handle<>> waiting;
  };
  struct Turn;

  std::shared_ptr<Cluster> Find(uint64_t entry);
  Task<IoResult> ReadPart(uint64_t entry, uint64_t begin, absl::Span<uint8_t> out);
  Task<IoResult> Fill(uint64_t entry, absl::Span<uint8_t> out);

  const EntryLayout layout_;
  const CompressionType type_;
  BlockChannel& image_;
  const uint64_t image_size_;
  Reactor& reactor_;
  const size_t capacity_;
  std::list<std::shared_ptr<Cluster>> recent_;  // The latest first.
};

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_COMPRESSED_CLUSTERS_H_
