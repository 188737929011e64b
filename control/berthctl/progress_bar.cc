#include "control/berthctl/progress_bar.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "control/berthctl/size_text.h"

namespace berth::berthctl {
namespace {

constexpr size_t kWidestBar = 40;
constexpr size_t kNarrowestBar = 8;
// Figures grow and shrink within this, and the rest of the line stays where it is.
constexpr size_t kFiguresRoom = 48;
// What the rate is a mean over.
constexpr absl::Duration kRateWindow = absl::Seconds(5);

std::string Amount(const v1::Operation& operation, uint64_t amount) {
  return operation.unit() == v1::OPERATION_UNIT_BYTES ? FormatSize(amount) : absl::StrCat(amount);
}

double ShareDone(const v1::Operation& operation) {
  return std::min(1.0, static_cast<double>(operation.done()) / static_cast<double>(operation.total()));
}

std::string Percent(const v1::Operation& operation) {
  // Rounded down: 100% is the end.
  return absl::StrCat(static_cast<int>(ShareDone(operation) * 100), "%");
}

}  // namespace

std::string ProgressText(const v1::Operation& operation) {
  if (operation.total() == 0) return operation.done() == 0 ? "-" : Amount(operation, operation.done());
  return absl::StrCat(Percent(operation), ", ", Amount(operation, operation.done()), " of ",
                      Amount(operation, operation.total()));
}

std::string ProgressLine(absl::string_view what, const v1::Operation& operation, double per_second,
                         size_t columns) {
  std::string figures;
  if (operation.total() != 0) {
    const std::string percent = Percent(operation);
    figures = absl::StrCat(std::string(4 - std::min<size_t>(4, percent.size()), ' '), percent, "  ",
                           Amount(operation, operation.done()), " of ", Amount(operation, operation.total()));
  } else if (operation.done() != 0) {
    figures = Amount(operation, operation.done());
  }
  if (per_second >= 1) {
    absl::StrAppend(&figures, "  ", Amount(operation, static_cast<uint64_t>(per_second)), "/s");
  }
  if (operation.cancel_requested()) {
    absl::StrAppend(&figures, "  being cancelled");
  } else if (per_second >= 1 && operation.total() > operation.done()) {
    const double seconds = static_cast<double>(operation.total() - operation.done()) / per_second;
    absl::StrAppend(&figures, "  ",
                    absl::FormatDuration(absl::Ceil(absl::Seconds(seconds), absl::Seconds(1))), " left");
  }
  std::string line = Printable(what);
  // "  [", "] "
  size_t taken = line.size() + std::max(figures.size(), kFiguresRoom) + 5;
  if (operation.total() != 0 && taken + kNarrowestBar > columns) {
    taken -= line.size();
    line.clear();
  }
  if (operation.total() != 0 && taken + kNarrowestBar <= columns) {
    const size_t width = std::min(kWidestBar, columns - taken);
    const auto filled = static_cast<size_t>(ShareDone(operation) * static_cast<double>(width));
    absl::StrAppend(&line, "  [", std::string(filled, '#'), std::string(width - filled, '.'), "]");
  }
  // Where there is no room for all, the figures matter most.
  if (line.size() + 1 + figures.size() > columns) line.clear();
  absl::StrAppend(&line, line.empty() ? "" : " ", figures);
  return line.substr(0, columns);
}

ProgressBar::~ProgressBar() {
  if (drawn_) console_.err << "\r\033[K" << std::flush;
}

void ProgressBar::Update(const v1::Operation& operation) {
  if (!console_.err_is_terminal) return;
  const double per_second = PerSecond(operation);
  winsize window{};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 1;
  // The last column is left free, as some terminals go to the next line with it.
  const size_t columns = known ? window.ws_col - 1u : 79;
  console_.err << "\r\033[K" << ProgressLine(what_, operation, per_second, columns) << std::flush;
  drawn_ = true;
}

double ProgressBar::PerSecond(const v1::Operation& operation) {
  const auto& stamp = operation.update_time();
  const absl::Time now = absl::FromUnixSeconds(stamp.seconds()) + absl::Nanoseconds(stamp.nanos());
  samples_.push_back({now, operation.done()});
  // One that is older than the window stays, as the window's beginning.
  while (samples_.size() > 2 && now - samples_[1].time >= kRateWindow) samples_.pop_front();
  const double seconds = absl::ToDoubleSeconds(now - samples_.front().time);
  if (seconds <= 0 || operation.done() < samples_.front().done) return 0;
  return static_cast<double>(operation.done() - samples_.front().done) / seconds;
}

}  // namespace berth::berthctl
