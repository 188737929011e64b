#include "control/metrics/export_metrics.h"

#include <bit>
#include <cerrno>

namespace berth::control {
namespace {

using Counter = std::atomic<uint64_t>;

// A number of the calling thread, from 0 in the order of their first requests. Numbers are not used again:
// reactors live as long as the server.
size_t ThreadNumber() {
  static std::atomic<size_t> next{0};
  thread_local const size_t number = next.fetch_add(1, std::memory_order_relaxed);
  return number;
}

// For each bit width of a latency, the first bucket that it may belong to: at most one bound lies between two
// powers of two, so that at most one comparison follows.
constexpr std::array<uint8_t, 65> FirstBuckets() {
  std::array<uint8_t, 65> first{};
  for (size_t width = 0; width <= 64; ++width) {
    const uint64_t smallest = width == 0 ? 0 : uint64_t{1} << (width - 1);
    while (first[width] < kLatencyBounds.size() && smallest > kLatencyBounds[first[width]]) ++first[width];
  }
  return first;
}

size_t BucketOf(uint64_t nanoseconds) {
  static constexpr std::array<uint8_t, 65> kFirst = FirstBuckets();
  size_t bucket = kFirst[std::bit_width(nanoseconds)];
  while (bucket < kLatencyBounds.size() && nanoseconds > kLatencyBounds[bucket]) ++bucket;
  return bucket;
}

// A counter with one writer needs no locked instruction, which costs more than all the rest here.
void Add(Counter& counter, uint64_t amount, bool shared) {
  if (shared) {
    counter.fetch_add(amount, std::memory_order_relaxed);
  } else {
    counter.store(counter.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
  }
}

}  // namespace

struct alignas(64) ExportMetrics::Shard {
  struct Operation {
    Counter errors{0};
    Counter timeouts{0};
    Counter bytes{0};
    Counter latency_nanoseconds{0};
    std::array<Counter, kLatencyBuckets> latency_buckets{};
  };

  std::array<Operation, nbd::kOperationCount> operations;
};

ExportMetrics::ExportMetrics() = default;

ExportMetrics::~ExportMetrics() {
  for (std::atomic<Shard*>& shard : shards_) delete shard.load(std::memory_order_acquire);
}

ExportMetrics::Shard& ExportMetrics::ShardAt(size_t index) {
  Shard* shard = shards_[index].load(std::memory_order_acquire);
  if (shard != nullptr) return *shard;
  auto fresh = std::make_unique<Shard>();
  // Only the shared shard can be made by two threads at once.
  if (shards_[index].compare_exchange_strong(shard, fresh.get(), std::memory_order_acq_rel)) {
    return *fresh.release();
  }
  return *shard;
}

void ExportMetrics::Completed(nbd::Operation operation, uint64_t bytes, absl::Duration latency,
                              IoResult result) {
  const size_t thread = ThreadNumber();
  const bool shared = thread >= kShards - 1;
  Shard::Operation& counters =
      ShardAt(shared ? kShards - 1 : thread).operations[static_cast<size_t>(operation)];
  const int64_t signed_nanoseconds = absl::ToInt64Nanoseconds(latency);
  const uint64_t nanoseconds = signed_nanoseconds > 0 ? static_cast<uint64_t>(signed_nanoseconds) : 0;
  Add(counters.latency_buckets[BucketOf(nanoseconds)], 1, shared);
  Add(counters.latency_nanoseconds, nanoseconds, shared);
  if (!result.ok()) {
    Add(counters.errors, 1, shared);
    if (result.error == ETIMEDOUT) Add(counters.timeouts, 1, shared);
  } else if (operation != nbd::Operation::kExtents) {
    Add(counters.bytes, bytes, shared);
  }
}

OperationMetricsTable ExportMetrics::Read() const {
  OperationMetricsTable table;
  for (const std::atomic<Shard*>& slot : shards_) {
    const Shard* shard = slot.load(std::memory_order_acquire);
    if (shard == nullptr) continue;
    for (size_t i = 0; i < table.size(); ++i) {
      const Shard::Operation& from = shard->operations[i];
      OperationMetrics& to = table[i];
      to.errors += from.errors.load(std::memory_order_relaxed);
      to.timeouts += from.timeouts.load(std::memory_order_relaxed);
      to.bytes += from.bytes.load(std::memory_order_relaxed);
      to.latency_nanoseconds += from.latency_nanoseconds.load(std::memory_order_relaxed);
      for (size_t bucket = 0; bucket < kLatencyBuckets; ++bucket) {
        const uint64_t count = from.latency_buckets[bucket].load(std::memory_order_relaxed);
        to.latency_buckets[bucket] += count;
        to.completed += count;
      }
    }
  }
  return table;
}

}  // namespace berth::control
