// WatcherSlots: how many calls may keep a thread for as long as their clients like.
//
// Thread-safe.
#ifndef BERTH_CONTROL_WATCHER_SLOTS_H_
#define BERTH_CONTROL_WATCHER_SLOTS_H_

#include <atomic>
#include <cstddef>
#include <utility>

#include "absl/status/statusor.h"

namespace berth::control {

class WatcherSlots {
 public:
  explicit WatcherSlots(size_t most) : most_(most) {}
  WatcherSlots(const WatcherSlots&) = delete;
  WatcherSlots& operator=(const WatcherSlots&) = delete;

  // One watcher, for as long as it lives. Lifetime: ends before the WatcherSlots.
  class Slot {
   public:
    Slot(Slot&& other) noexcept : slots_(std::exchange(other.slots_, nullptr)) {}
    Slot& operator=(Slot&&) = delete;
    ~Slot() {
      if (slots_ != nullptr) --slots_->taken_;
    }

   private:
    friend class WatcherSlots;
    explicit Slot(WatcherSlots* slots) : slots_(slots) {}
    WatcherSlots* slots_;
  };

  // RESOURCE_EXHAUSTED, reason LIMIT_REACHED, where there are as many as --max-watchers allows.
  absl::StatusOr<Slot> Take();

 private:
  const size_t most_;
  std::atomic<size_t> taken_ = 0;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_WATCHER_SLOTS_H_
