// L2Cache: what is in memory of an image's L2 tables, for all of its channels.
//
// It holds slices, not whole tables: a table has the size of a cluster, up to 2 MiB, and a lookup needs 8 or
// 16 bytes of it. 4 KiB describe 32 MiB of the disk at the usual cluster size.
//
// Thread-safe. A slice never changes, and lives as long as somebody holds it. Memory: at most the bytes it
// was made for, and what channels hold beyond that.
#ifndef BERTH_IMAGE_QCOW2_L2_CACHE_H_
#define BERTH_IMAGE_QCOW2_L2_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "image/io/mutex.h"

namespace berth::qcow2 {

inline constexpr uint64_t kMaxSliceBytes = 4096;

struct L2Slice {
  uint64_t file_offset = 0;
  std::vector<uint64_t> words;  // In the machine's byte order.
};

class L2Cache {
 public:
  // Room for `bytes` of slices of `slice_bytes` each, at least for one.
  L2Cache(uint64_t bytes, uint64_t slice_bytes);
  L2Cache(const L2Cache&) = delete;
  L2Cache& operator=(const L2Cache&) = delete;

  // The slice at `file_offset`, or null.
  std::shared_ptr<const L2Slice> Find(uint64_t file_offset);

  // Puts `slice` in, in the place of the one that was not asked for the longest time. Where somebody else was
  // faster, theirs is returned.
  std::shared_ptr<const L2Slice> Insert(L2Slice slice);

  size_t size() const;

 private:
  using List = std::list<std::shared_ptr<const L2Slice>>;

  const size_t capacity_;
  mutable Mutex mutex_;
  List recent_ ABSL_GUARDED_BY(mutex_);  // The latest first.
  absl::flat_hash_map<uint64_t, List::iterator> slices_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_L2_CACHE_H_
