#include "control/berthctl/spinner.h"

#include <cstddef>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace berth::berthctl {

Spinner::Spinner(Console& console, std::string what) : console_(console), what_(std::move(what)) {
  if (console_.err_is_terminal) thread_ = std::thread([this] { Run(); });
}

Spinner::~Spinner() {
  if (!thread_.joinable()) return;
  {
    MutexLock lock(&mutex_);
    done_ = true;
  }
  changed_.SignalAll();
  thread_.join();
}

void Spinner::Run() {
  static constexpr char kFrames[] = {'|', '/', '-', '\\'};
  const absl::Time start = absl::Now();
  absl::Time next = start + absl::Milliseconds(500);
  size_t frame = 0;
  MutexLock lock(&mutex_);
  while (!done_) {
    if (changed_.WaitUntil(&mutex_, next) || absl::Now() < next) continue;
    console_.err << "\r\033[K" << kFrames[frame % sizeof kFrames] << ' ' << what_ << "  "
                 << absl::ToInt64Seconds(absl::Now() - start) << " s" << std::flush;
    ++frame;
    next = absl::Now() + absl::Milliseconds(100);
  }
  if (frame > 0) console_.err << "\r\033[K" << std::flush;
}

}  // namespace berth::berthctl
