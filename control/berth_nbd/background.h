// Background: a server that leaves its caller once it works.
#ifndef BERTH_CONTROL_BERTH_NBD_BACKGROUND_H_
#define BERTH_CONTROL_BERTH_NBD_BACKGROUND_H_

#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/io/unique_fd.h"

namespace berth::control {

// The child's end. Dropped before Ready(), it lets the parent end with 1.
class Background {
 public:
  // Forks. The parent waits for the child, whose errors go to the caller's standard error as they are, and
  // ends with 0 after Ready(), else with 1: it does not return. The child gets the object, is the leader of a
  // session of its own, and has /dev/null as its standard input and output; `output` is what standard output
  // was. Before there are threads.
  static absl::StatusOr<Background> Enter();

  // The caller's standard output, for what is printed before Ready().
  int output() const { return output_.get(); }

  // Lets the parent end. Without `keep_errors` standard error goes to /dev/null from now on, so that nobody
  // who reads it waits for the server's end.
  void Ready(bool keep_errors);

 private:
  Background(UniqueFd parent, UniqueFd output) : parent_(std::move(parent)), output_(std::move(output)) {}

  UniqueFd parent_;
  UniqueFd output_;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_BACKGROUND_H_
