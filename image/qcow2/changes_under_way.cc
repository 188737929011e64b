#include "image/qcow2/changes_under_way.h"

namespace berth::qcow2 {

ChangesUnderWay::Part::Part(ChangesUnderWay& all, Reactor& reactor)
    : all_(all), count_(std::make_shared<Count>()) {
  MutexLock lock(&all_.mutex_);
  all_.parts_[this] = {&reactor, count_};
}

ChangesUnderWay::Part::~Part() {
  assert(count_->inside[0] + count_->inside[1] == 0);
  MutexLock lock(&all_.mutex_);
  all_.parts_.erase(this);
}

ChangesUnderWay::Change::~Change() {
  if (--count_->inside[generation_] > 0 || generation_ == count_->generation) return;
  if (const std::shared_ptr<Wait> wait = std::exchange(count_->wait, nullptr); wait != nullptr)
    wait->Arrive();
}

void ChangesUnderWay::Wait::Arrive() {
  MutexLock lock(&mutex);
  if (--left == 0) changed.SignalAll();
}

void ChangesUnderWay::WaitForEarlier() {
  std::shared_ptr<Wait> wait;
  {
    // While a part is there its reactor runs; what is posted now is run, also where the channel goes first.
    MutexLock lock(&mutex_);
    wait = std::make_shared<Wait>(parts_.size());
    for (const auto& [part, channel] : parts_) {
      channel.first->Post([count = channel.second, wait] {
        const size_t before = count->generation;
        count->generation = 1 - before;
        if (count->inside[before] == 0) {
          wait->Arrive();
        } else {
          count->wait = wait;
        }
      });
    }
  }
  MutexLock lock(&wait->mutex);
  while (wait->left > 0) wait->changed.Wait(&wait->mutex);
}

}  // namespace berth::qcow2
