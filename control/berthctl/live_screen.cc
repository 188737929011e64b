#include "control/berthctl/live_screen.h"

#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>

#include "absl/time/clock.h"

namespace berth::berthctl {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};
constexpr size_t kSignalCount = sizeof kSignals / sizeof kSignals[0];

volatile sig_atomic_t ended = 0;
struct sigaction saved_actions[kSignalCount];

void OnSignal(int) { ended = 1; }

}  // namespace

LiveScreen::LiveScreen(Console& console, bool draws) : console_(console), draws_(draws) {
  ended = 0;
  struct sigaction action {};
  action.sa_handler = OnSignal;
  for (size_t i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &action, &saved_actions[i]);
  if (!draws_) return;
  if (console_.in_is_terminal && tcgetattr(STDIN_FILENO, &saved_) == 0) {
    termios raw = saved_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    raw.c_cc[VMIN] = 0;
    raw.c_cc[VTIME] = 0;
    raw_ = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
  }
  console_.out << "\033[?1049h\033[?25l" << std::flush;
}

LiveScreen::~LiveScreen() {
  if (draws_) console_.out << "\033[?25h\033[?1049l" << std::flush;
  if (raw_) tcsetattr(STDIN_FILENO, TCSANOW, &saved_);
  for (size_t i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &saved_actions[i], nullptr);
}

void LiveScreen::Draw(const std::vector<std::string>& lines) {
  winsize window{};
  const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_row > 1 && window.ws_col > 0;
  const size_t rows = known ? window.ws_row - 1u : 23;
  const size_t columns = known ? window.ws_col : 80;
  console_.out << "\033[H";
  for (size_t i = 0; i < std::min(rows, lines.size()); ++i) {
    console_.out << lines[i].substr(0, columns) << "\033[K\r\n";
  }
  console_.out << "\033[J" << std::flush;
}

bool LiveScreen::KeepsGoing() {
  char key = 0;
  while (read(STDIN_FILENO, &key, 1) == 1) {
    if (key == 'q' || key == 'Q' || key == '\003') return false;
  }
  return true;
}

bool LiveScreen::WaitFor(absl::Duration duration) {
  const absl::Time end = absl::Now() + duration;
  while (ended == 0) {
    const absl::Duration left = end - absl::Now();
    if (left <= absl::ZeroDuration()) return true;
    pollfd input = {raw_ ? STDIN_FILENO : -1, POLLIN, 0};
    // At most a tenth of a second, as a signal may come between the look at `ended` and poll().
    const int ready = poll(
        &input, 1, static_cast<int>(absl::ToInt64Milliseconds(std::min(left, absl::Milliseconds(100)))) + 1);
    if (ready > 0 && ((input.revents & (POLLHUP | POLLERR)) != 0 || !KeepsGoing())) return false;
  }
  return false;
}

}  // namespace berth::berthctl
