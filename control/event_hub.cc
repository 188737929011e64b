#include "control/event_hub.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "control/protobuf_time.h"
#include "control/status_details.h"
#include "control/utf8.h"

namespace berth::control {
namespace {

// What is remembered is bounded by this times the capacity.
constexpr size_t kMaxMessageBytes = 1024;

}  // namespace

EventHub::EventHub(size_t capacity, std::string server_id)
    : capacity_(capacity), server_id_(std::move(server_id)) {}

void EventHub::Publish(v1::Event event) {
  *event.mutable_time() = ToTimestamp(absl::Now());
  event.set_server_id(server_id_);
  event.set_message(ValidUtf8(event.message(), kMaxMessageBytes));
  {
    MutexLock lock(&mutex_);
    event.set_sequence(++last_sequence_);
    events_.push_back(std::move(event));
    if (events_.size() > capacity_) events_.pop_front();
  }
  changed_.SignalAll();
}

absl::StatusOr<std::optional<v1::Event>> EventHub::WaitForNext(uint64_t sequence, absl::Time deadline) {
  MutexLock lock(&mutex_);
  if (sequence > last_sequence_) {
    return WithReason(
        absl::OutOfRangeError(absl::StrCat("after_sequence ", sequence,
                                           " was never given out; the newest event is ", last_sequence_)),
        "UNKNOWN_SEQUENCE");
  }
  while (!closed_ && sequence == last_sequence_) {
    if (!changed_.WaitUntil(&mutex_, deadline) && sequence == last_sequence_ && !closed_) {
      return std::optional<v1::Event>();
    }
  }
  if (sequence == last_sequence_) return absl::CancelledError("the server is stopping");
  const uint64_t oldest = last_sequence_ - events_.size() + 1;
  if (sequence + 1 < oldest) {
    return WithReason(absl::DataLossError(absl::StrCat("the events from ", sequence + 1, " to ", oldest - 1,
                                                       " are forgotten; list everything anew, then watch "
                                                       "again")),
                      "EVENTS_FORGOTTEN");
  }
  return std::optional<v1::Event>(events_[sequence + 1 - oldest]);
}

uint64_t EventHub::last_sequence() const {
  MutexLock lock(&mutex_);
  return last_sequence_;
}

void EventHub::Close() {
  {
    MutexLock lock(&mutex_);
    closed_ = true;
  }
  changed_.SignalAll();
}

}  // namespace berth::control
