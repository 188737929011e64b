// PartialImage: an image under a name of its own while it is being filled, which gets its real name when it
// is whole.
//
// What a crash leaves has a name that begins with a dot and ends in ".berth-part", and goes when the same
// image is made again.
//
// Thread: one. All of it may block.
#ifndef BERTH_IMAGE_OPENER_PARTIAL_IMAGE_H_
#define BERTH_IMAGE_OPENER_PARTIAL_IMAGE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/opener/image_roots.h"

namespace berth {

class PartialImage {
 public:
  // For an image that is to be at `path`. ALREADY_EXISTS where there is something, FAILED_PRECONDITION
  // (reason IMAGE_LOCKED) where another process is filling it; errors as ImageRoots::FindPlace().
  static absl::StatusOr<PartialImage> Begin(const ImageRoots& roots, const std::string& path);

  PartialImage(PartialImage&&) = default;
  PartialImage& operator=(PartialImage&&) = delete;
  // Takes away what was not published.
  ~PartialImage();

  // Where to make the image; nothing is there yet.
  const std::string& path() const { return partial_path_; }

  // Gives the image, which is durable and closed, its name; the name is durable when this returns.
  // ALREADY_EXISTS where somebody took it meanwhile.
  absl::Status Publish();

 private:
  PartialImage(ImageRoots::Place place, const std::string& path);

  ImageRoots::Place place_;
  std::string path_;
  std::string partial_name_;
  std::string partial_path_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_PARTIAL_IMAGE_H_
