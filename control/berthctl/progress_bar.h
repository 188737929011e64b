// ProgressBar: how far an operation is, on a terminal.
#ifndef BERTH_CONTROL_BERTHCTL_PROGRESS_BAR_H_
#define BERTH_CONTROL_BERTHCTL_PROGRESS_BAR_H_

#include <cstddef>
#include <deque>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "berth/v1/operations.pb.h"
#include "control/berthctl/console.h"

namespace berth::berthctl {

// "45%, 90 GiB of 200 GiB": what is known, without a guess.
std::string ProgressText(const v1::Operation& operation);

// One line of at most `columns`: `what`, a bar, and in figures the share, the amount, the rate and the time
// left at that rate. `per_second` is 0 where it is not known; then there is no time left to tell either.
std::string ProgressLine(absl::string_view what, const v1::Operation& operation, double per_second,
                         size_t columns);

// Draws on `console.err` at each update, and wipes the line at its end; nothing where that is no terminal.
// Nobody else may write there meanwhile. One thread.
class ProgressBar {
 public:
  ProgressBar(Console& console, std::string what) : console_(console), what_(std::move(what)) {}
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void Update(const v1::Operation& operation);

 private:
  struct Sample {
    absl::Time time;
    uint64_t done;
  };

  double PerSecond(const v1::Operation& operation);

  Console& console_;
  const std::string what_;
  std::deque<Sample> samples_;  // Of the last seconds.
  bool drawn_ = false;
};

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_PROGRESS_BAR_H_
