#include "control/watcher_slots.h"

#include "absl/strings/str_cat.h"
#include "control/status_details.h"

namespace berth::control {

absl::StatusOr<WatcherSlots::Slot> WatcherSlots::Take() {
  if (taken_.fetch_add(1) < most_) return Slot(this);
  --taken_;
  return LimitReached(
      "max-watchers",
      absl::StrCat("there are ", most_,
                   " streams of events and waits for operations, as many as --max-watchers allows"));
}

}  // namespace berth::control
