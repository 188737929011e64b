// NewFile: a file that gets its name when it is whole.
//
// It has no name until Publish(), so what failed or was cut short leaves nothing behind. A file system
// without nameless files (O_TMPFILE) gives it the name at once, and the destructor takes it away again: there
// a crash leaves a file that is not whole.
//
// Not thread-safe. All of it may block.
#ifndef BERTH_IMAGE_OPENER_NEW_FILE_H_
#define BERTH_IMAGE_OPENER_NEW_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/io/unique_fd.h"
#include "image/opener/image_roots.h"

namespace berth {

class NewFile {
 public:
  // An empty file, mode 0600, open for reading and writing. ALREADY_EXISTS where the name is taken, so that
  // nobody works in vain; PERMISSION_DENIED outside the roots, NOT_FOUND for a missing directory,
  // RESOURCE_EXHAUSTED for a full disk.
  static absl::StatusOr<NewFile> Create(const ImageRoots& roots, const std::string& path);

  NewFile(NewFile&&) = default;
  NewFile& operator=(NewFile&&) = delete;
  ~NewFile();

  int fd() const { return fd_.get(); }

  // Gives the file its name; both are on the disk when this returns. ALREADY_EXISTS where somebody was
  // faster.
  absl::Status Publish();

 private:
  NewFile(ImageRoots::Place place, std::string path) : place_(std::move(place)), path_(std::move(path)) {}

  ImageRoots::Place place_;
  std::string path_;
  UniqueFd fd_;
  UniqueFd named_;  // The directory, where the name has to be taken away again.
};

// Makes durable that the name at `path` is there, for whoever made it may have died before that.
absl::Status MakeNameDurable(const ImageRoots& roots, const std::string& path);

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_NEW_FILE_H_
