// NameTurns: calls on one name take turns, calls on different names do not wait for each other.
//
// Thread-safe.
#ifndef BERTH_CONTROL_NAME_TURNS_H_
#define BERTH_CONTROL_NAME_TURNS_H_

#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "image/io/mutex.h"

namespace berth::control {

class NameTurns {
 public:
  // `kind` is what the names are of, for messages: "export".
  explicit NameTurns(std::string kind) : kind_(std::move(kind)) {}

  // The name belongs to whoever holds this. Lifetime: ends before the NameTurns.
  class Turn {
   public:
    Turn() = default;
    Turn(Turn&& other) noexcept
        : turns_(std::exchange(other.turns_, nullptr)), name_(std::move(other.name_)) {}
    Turn& operator=(Turn&&) = delete;
    ~Turn() {
      if (turns_ != nullptr) turns_->Leave(name_);
    }

   private:
    friend class NameTurns;
    Turn(NameTurns* turns, std::string name) : turns_(turns), name_(std::move(name)) {}
    NameTurns* turns_ = nullptr;
    std::string name_;
  };

  // Waits for the calls on `name` that came before. DEADLINE_EXCEEDED with reason CALL_IN_PROGRESS.
  absl::StatusOr<Turn> Take(absl::string_view name, absl::Time deadline);

 private:
  void Leave(const std::string& name);

  const std::string kind_;
  Mutex mutex_;
  CondVar changed_;
  absl::flat_hash_set<std::string> taken_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_NAME_TURNS_H_
