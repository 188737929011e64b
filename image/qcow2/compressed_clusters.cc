#include "image/qcow2/compressed_clusters.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "image/io/blocking_pool.h"
#include "image/qcow2/decompression.h"

namespace berth::qcow2 {
namespace {

// Memory that one channel keeps of decompressed clusters; one cluster at least.
constexpr uint64_t kKeptBytes = uint64_t{512} << 10;
// Clusters below this are decompressed on the reactor's thread.
constexpr uint64_t kSmallestForPool = 4096;
constexpr unsigned kMostThreads = 8;

// For every qcow2 image. Made once and never destroyed: devices may live until the process ends.
BlockingPool& DecompressionPool() {
  static BlockingPool& pool =
      *new BlockingPool(static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, kMostThreads)));
  return pool;
}

}  // namespace

// Waits until `cluster` is ready.
struct CompressedClusters::Turn {
  Cluster* cluster;
  bool await_ready() const noexcept { return cluster->ready; }
  void await_suspend(std::coroutine_handle<> waiter) const { cluster->waiting.push_back(waiter); }
  void await_resume() const noexcept {}
};

CompressedClusters::CompressedClusters(const EntryLayout& layout, CompressionType type, BlockChannel& image,
                                       uint64_t image_size, Reactor& reactor)
    : layout_(layout),
      type_(type),
      image_(image),
      image_size_(image_size),
      reactor_(reactor),
      capacity_(static_cast<size_t>(std::max<uint64_t>(kKeptBytes >> layout.cluster_bits, 1))) {}

std::shared_ptr<CompressedClusters::Cluster> CompressedClusters::Find(uint64_t entry) {
  for (auto cluster = recent_.begin(); cluster != recent_.end(); ++cluster) {
    if ((*cluster)->entry != entry) continue;
    recent_.splice(recent_.begin(), recent_, cluster);
    return recent_.front();
  }
  return nullptr;
}

Task<IoResult> CompressedClusters::Read(uint64_t entry, uint64_t begin, absl::Span<uint8_t> out) {
  const std::shared_ptr<Cluster> known = Find(entry);
  if (known != nullptr && known->ready && known->result.ok()) {
    memcpy(out.data(), known->bytes.data() + begin, out.size());
    return Task<IoResult>(IoResult::Ok());
  }
  // A whole cluster goes to its place at once: nobody will ask for the rest of it.
  if (known == nullptr && out.size() == layout_.cluster_size()) return Fill(entry, out);
  return ReadPart(entry, begin, out);
}

Task<IoResult> CompressedClusters::ReadPart(uint64_t entry, uint64_t begin, absl::Span<uint8_t> out) {
  std::shared_ptr<Cluster> cluster = Find(entry);
  if (cluster != nullptr) {
    Turn turn{cluster.get()};
    co_await turn;
  } else {
    cluster = std::make_shared<Cluster>();
    cluster->entry = entry;
    cluster->bytes.resize(layout_.cluster_size());
    recent_.push_front(cluster);
    if (recent_.size() > capacity_) recent_.pop_back();
    cluster->result = co_await Fill(entry, absl::MakeSpan(cluster->bytes));
    cluster->ready = true;
    // What failed is not kept: the next request tries again.
    if (!cluster->result.ok()) recent_.remove(cluster);
    for (const std::coroutine_handle<> waiter : cluster->waiting) reactor_.Schedule(waiter);
    cluster->waiting.clear();
  }
  if (cluster->result.ok()) memcpy(out.data(), cluster->bytes.data() + begin, out.size());
  co_return cluster->result;
}

Task<IoResult> CompressedClusters::Fill(uint64_t entry, absl::Span<uint8_t> out) {
  const std::optional<CompressedExtent> extent = DecodeCompressed(layout_, entry);
  if (!extent.has_value() || extent->offset >= image_size_) co_return IoResult::Error(EIO);
  // The file may end inside the last sector.
  std::vector<uint8_t> data(std::min(extent->length, image_size_ - extent->offset));
  const IoResult result = co_await image_.Read(extent->offset, absl::MakeSpan(data));
  if (!result.ok()) co_return result;
  bool whole;
  if (out.size() < kSmallestForPool) {
    whole = Decompress(type_, data, out);
  } else {
    const auto work = [type = type_, in = absl::MakeConstSpan(data), out] {
      return Decompress(type, in, out);
    };
    whole = co_await DecompressionPool().Run(reactor_, work);
  }
  co_return whole ? IoResult::Ok() : IoResult::Error(EIO);
}

}  // namespace berth::qcow2
