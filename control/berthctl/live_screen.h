// LiveScreen: a terminal that shows one page, drawn anew again and again, until a key ends it.
#ifndef BERTH_CONTROL_BERTHCTL_LIVE_SCREEN_H_
#define BERTH_CONTROL_BERTHCTL_LIVE_SCREEN_H_

#include <termios.h>

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "control/berthctl/console.h"

namespace berth::berthctl {

// One at a time in a process, on one thread. Takes the standard input and output as its terminal, its second
// screen where it has one, and the signals that end a programme; gives all back at its end. With `draws`
// false it leaves the terminal alone, and only waits.
class LiveScreen {
 public:
  LiveScreen(Console& console, bool draws);
  ~LiveScreen();
  LiveScreen(const LiveScreen&) = delete;
  LiveScreen& operator=(const LiveScreen&) = delete;

  bool draws() const { return draws_; }

  // Shows as many lines as fit, each cut at the right edge.
  void Draw(const std::vector<std::string>& lines);

  // Returns false when the user wants to end: q, Ctrl-C, or a signal.
  bool WaitFor(absl::Duration duration);

 private:
  // Reads what was typed.
  bool KeepsGoing();

  Console& console_;
  const bool draws_;
  termios saved_{};
  bool raw_ = false;
};

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_LIVE_SCREEN_H_
