// Spinner: shows on a terminal that something goes on, and for how long. Of calls whose progress the server
// does not tell; the others have a ProgressBar.
#ifndef BERTH_CONTROL_BERTHCTL_SPINNER_H_
#define BERTH_CONTROL_BERTHCTL_SPINNER_H_

#include <string>
#include <thread>

#include "control/berthctl/console.h"
#include "image/io/mutex.h"

namespace berth::berthctl {

// Draws on `console.err` from half a second after its birth to its end, when it wipes the line; nothing where
// that is no terminal. Nobody else may write there meanwhile.
class Spinner {
 public:
  Spinner(Console& console, std::string what);
  ~Spinner();
  Spinner(const Spinner&) = delete;
  Spinner& operator=(const Spinner&) = delete;

 private:
  void Run();

  Console& console_;
  const std::string what_;
  Mutex mutex_;
  CondVar changed_;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_SPINNER_H_
