// ChangesUnderWay: which changes of an image are under way on its channels, so that a resize can wait for
// those that began before it. Changes count without atomics, each on its channel's reactor.
//
// Thread-safe. Lifetime: outlives its channels' parts.
#ifndef BERTH_IMAGE_QCOW2_CHANGES_UNDER_WAY_H_
#define BERTH_IMAGE_QCOW2_CHANGES_UNDER_WAY_H_

#include <array>
#include <cassert>
#include <cstddef>
#include <map>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "image/io/mutex.h"
#include "image/io/reactor.h"

namespace berth::qcow2 {

class ChangesUnderWay {
  struct Wait;
  // Of one channel; confined to its reactor.
  struct Count {
    std::array<size_t, 2> inside = {};  // Of this generation and of the one before, in turn.
    size_t generation = 0;
    std::shared_ptr<Wait> wait;  // For the end of the generation before.
  };

 public:
  ChangesUnderWay() = default;
  ChangesUnderWay(const ChangesUnderWay&) = delete;
  ChangesUnderWay& operator=(const ChangesUnderWay&) = delete;

  // A channel's part. Thread: its reactor's.
  class Part {
   public:
    Part(ChangesUnderWay& all, Reactor& reactor);
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;
    ~Part();

   private:
    friend class ChangesUnderWay;
    ChangesUnderWay& all_;
    const std::shared_ptr<Count> count_;
  };

  // A change, from here to the object's end. Thread: the reactor's.
  class Change {
   public:
    explicit Change(const Part& part) : count_(part.count_), generation_(count_->generation) {
      ++count_->inside[generation_];
    }
    Change(const Change&) = delete;
    Change& operator=(const Change&) = delete;
    ~Change();

   private:
    const std::shared_ptr<Count> count_;
    const size_t generation_;
  };

  // Returns when every change has ended that had begun before. One caller at a time; blocks, so it is not on
  // a reactor's thread. Changes end as the operations of the file below do.
  void WaitForEarlier();

 private:
  struct Wait {
    explicit Wait(size_t channels) : left(channels) {}
    void Arrive();

    Mutex mutex;
    CondVar changed;
    size_t left ABSL_GUARDED_BY(mutex);
  };

  Mutex mutex_;
  std::map<const Part*, std::pair<Reactor*, std::shared_ptr<Count>>> parts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_CHANGES_UNDER_WAY_H_
