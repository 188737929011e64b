// ImageRoots: the directories inside which image files may be opened and made.
//
// A path is allowed where, with every symbolic link resolved, it lies inside a root. A link inside a root, or
// on the way to one, therefore works as long as it ends inside a root; one that leads out is refused. The
// path is resolved first and what came out is opened relative to the root's descriptor without following any
// link, so a link that is put there between the check and the open cannot lead elsewhere.
//
// A path outside the roots is PERMISSION_DENIED whether it exists or not: the answer tells nothing about it.
//
// Thread-safe. A value; copies share the descriptors of the roots.
#ifndef BERTH_IMAGE_OPENER_IMAGE_ROOTS_H_
#define BERTH_IMAGE_OPENER_IMAGE_ROOTS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "image/io/unique_fd.h"

namespace berth {

class ImageRoots {
 public:
  // Any path, relative ones too. For a program that chooses the paths itself, such as a test; never for paths
  // that come from a client.
  static ImageRoots Anywhere();

  // Exactly these existing directories; an empty list allows nothing. Each is opened now: a root that is
  // moved later is still the same directory.
  static absl::StatusOr<ImageRoots> Within(const std::vector<std::string>& directories);

  // Opens an existing regular file or block device with open(2)'s `flags`; others are refused without being
  // opened. May block.
  absl::StatusOr<UniqueFd> OpenFile(const std::string& path, int flags) const;

  // A directory inside the roots, and the name of something that is to be made in it.
  struct Place {
    UniqueFd directory;
    std::string name;
  };
  absl::StatusOr<Place> FindPlace(const std::string& path) const;

 private:
  struct Root {
    UniqueFd directory;
    std::string path;  // With every link resolved.
  };
  struct Located;

  absl::StatusOr<Located> Locate(const std::string& path) const;
  absl::Status Refusal(const std::string& path) const;
  const Root* RootOf(const std::string& resolved) const;

  bool anywhere_ = false;
  std::shared_ptr<const std::vector<Root>> roots_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_IMAGE_ROOTS_H_
