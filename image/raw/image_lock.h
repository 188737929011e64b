// ImageLock: keeps two programs from using one image in ways that do not go together, in qemu's way.
//
// qemu gives an image file two rows of one-byte locks, all of them shared ("read") locks of the open file
// description (F_OFD_SETLK). Byte 100+p locked says "I use permission p", byte 200+p says "I do not let
// others use p". Whoever wants in takes its own bytes first and then looks whether somebody holds a byte that
// speaks against it; of two that start at once at least one sees the other. The permissions are
// consistent-read (0), write (1), write-unchanged (2) and resize (3).
//
//   exclusive writer  uses read, write, resize   lets nobody write or resize
//   shared writer     uses read, write           lets others do anything
//   reader            uses read                  lets nobody write or resize
//
// As with qemu, a reader that lets others write, such as `qemu-img info` on a raw image, gets in beside a
// writer.
//
// Thread: not thread-safe. Lifetime: the bytes belong to the open file description and go with its last
// descriptor; the object must not outlive it.
#ifndef BERTH_IMAGE_RAW_IMAGE_LOCK_H_
#define BERTH_IMAGE_RAW_IMAGE_LOCK_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/block/image_modes.h"

namespace berth {

// Takes the bytes for `mode` on `fd`; kNone takes none. FAILED_PRECONDITION (reason IMAGE_LOCKED) where
// somebody speaks against it, with path, permission and, where it can be found, the holder's process id;
// UNIMPLEMENTED where the file system has no such locks. After an error nothing is held.
absl::Status LockImage(int fd, const std::string& path, LockMode mode, bool read_only);

// Takes the permission to resize for a shared writer, and gives it back. Errors as above.
absl::Status LockForResize(int fd, const std::string& path);
void UnlockAfterResize(int fd);

// True where some open file other than `fd`'s own uses the image for writing. `fd` needs to be open for
// reading.
absl::StatusOr<bool> IsOpenForWriting(int fd, const std::string& path);

}  // namespace berth

#endif  // BERTH_IMAGE_RAW_IMAGE_LOCK_H_
