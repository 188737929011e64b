// PidFile: a file with this process's number, locked while the process lives.
#ifndef BERTH_CONTROL_BERTH_NBD_PID_FILE_H_
#define BERTH_CONTROL_BERTH_NBD_PID_FILE_H_

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "image/io/unique_fd.h"

namespace berth::control {

// Lifetime: the file goes with the object.
class PidFile {
 public:
  // Makes it, or takes one over that nobody holds. FAILED_PRECONDITION where another process holds it.
  static absl::StatusOr<PidFile> Create(const std::string& path);

  PidFile(PidFile&&) = default;
  PidFile& operator=(PidFile&&) = delete;
  ~PidFile();

 private:
  PidFile(UniqueFd file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}

  UniqueFd file_;
  std::string path_;  // Absolute: the process changes its directory.
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_PID_FILE_H_
