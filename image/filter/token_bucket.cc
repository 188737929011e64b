#include "image/filter/token_bucket.h"

#include <algorithm>

namespace berth {
namespace {

constexpr double kNsASecond = 1e9;
constexpr double kDefaultBurstNs = kNsASecond / 10;
// An hour's worth at once is as good as any.
constexpr double kLongestBurstNs = 3600 * kNsASecond;

}  // namespace

void TokenBucket::Configure(int64_t now_ns, uint64_t rate, uint64_t burst) {
  // The three are stored one by one: a request that comes in between is counted by a mixture of old and new,
  // once.
  const double each = rate == 0 ? 0 : kNsASecond / static_cast<double>(rate);
  const double burst_ns =
      burst == 0 ? kDefaultBurstNs : std::min(kLongestBurstNs, static_cast<double>(burst) * each);
  burst_ns_.store(static_cast<int64_t>(burst_ns), std::memory_order_relaxed);
  empty_at_ns_.store(now_ns, std::memory_order_relaxed);
  ns_each_.store(each, std::memory_order_relaxed);
}

int64_t TokenBucket::TakeLimited(int64_t now_ns, double cost_ns) {
  const int64_t cost = static_cast<int64_t>(std::min<double>(cost_ns, kLongestDebtNs));
  const int64_t full = now_ns - burst_ns_.load(std::memory_order_relaxed);
  int64_t empty_at = empty_at_ns_.load(std::memory_order_relaxed);
  int64_t from, next;
  do {
    from = std::max(empty_at, full);
    next = std::min(from + cost, now_ns + kLongestDebtNs);
  } while (!empty_at_ns_.compare_exchange_weak(empty_at, next, std::memory_order_relaxed));
  return from;
}

}  // namespace berth
