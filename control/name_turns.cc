#include "control/name_turns.h"

#include "absl/strings/str_cat.h"
#include "control/status_details.h"

namespace berth::control {

absl::StatusOr<NameTurns::Turn> NameTurns::Take(absl::string_view name, absl::Time deadline) {
  MutexLock lock(&mutex_);
  while (taken_.contains(name)) {
    if (!changed_.WaitUntil(&mutex_, deadline) && taken_.contains(name)) {
      return WithReason(absl::DeadlineExceededError(absl::StrCat("another call on ", kind_, " ", Quoted(name),
                                                                 " is still under way; send this one again "
                                                                 "later")),
                        "CALL_IN_PROGRESS");
    }
  }
  std::string owned(name.data(), name.size());
  taken_.insert(owned);
  return Turn(this, std::move(owned));
}

void NameTurns::Leave(const std::string& name) {
  {
    MutexLock lock(&mutex_);
    taken_.erase(name);
  }
  changed_.SignalAll();
}

}  // namespace berth::control
