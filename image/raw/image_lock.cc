#include "image/raw/image_lock.h"

#include <fcntl.h>

#include <cerrno>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "image/block/error_reason.h"
#include "image/raw/lock_holder.h"

namespace berth {
namespace {

constexpr off_t kUsedBase = 100;
constexpr off_t kUnsharedBase = 200;

constexpr uint32_t kConsistentRead = 1 << 0;
constexpr uint32_t kWrite = 1 << 1;
constexpr uint32_t kResize = 1 << 3;
constexpr int kPermissions = 4;
constexpr const char* kPermissionNames[kPermissions] = {"consistent read", "write", "write unchanged",
                                                        "resize"};

struct Claim {
  uint32_t used = 0;      // Bits of permissions.
  uint32_t unshared = 0;  // The same, of those that others may not use.
};

Claim ClaimOf(LockMode mode, bool read_only) {
  if (mode == LockMode::kSharedWriter) {
    return {read_only ? kConsistentRead : kConsistentRead | kWrite, 0};
  }
  return {read_only ? kConsistentRead : kConsistentRead | kWrite | kResize, kWrite | kResize};
}

struct flock OneByte(short type, off_t byte) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return lock;
}

// An errno, or 0.
int SetByte(int fd, short type, off_t byte) {
  struct flock lock = OneByte(type, byte);
  int result;
  do {
    result = fcntl(fd, F_OFD_SETLK, &lock);
  } while (result != 0 && errno == EINTR);
  return result == 0 ? 0 : errno;
}

int SetClaim(int fd, short type, const Claim& claim) {
  int first_error = 0;
  for (int p = 0; p < kPermissions; ++p) {
    for (const off_t base : {kUsedBase, kUnsharedBase}) {
      if (((base == kUsedBase ? claim.used : claim.unshared) & (1u << p)) == 0) continue;
      const int error = SetByte(fd, type, base + p);
      if (error != 0 && first_error == 0) first_error = error;
    }
  }
  return first_error;
}

// Whether somebody else holds `byte`; an errno in `error`.
bool HeldByOther(int fd, off_t byte, int* error) {
  struct flock lock = OneByte(F_WRLCK, byte);
  if (fcntl(fd, F_OFD_GETLK, &lock) != 0) {
    *error = errno;
    return false;
  }
  return lock.l_type != F_UNLCK;
}

absl::Status LockError(int fd, int error, const std::string& path) {
  if (error == EAGAIN || error == EACCES) {
    return WithReason(absl::FailedPreconditionError(absl::StrCat(
                          "\"", path, "\" is locked as a whole by another program", DescribeHolders(fd))),
                      kReasonImageLocked);
  }
  return absl::UnimplementedError(
      absl::StrCat("cannot lock \"", path, "\" (", absl::ErrnoToStatus(error, "F_OFD_SETLK").message(),
                   "): its file system or kernel lacks such locks; the lock can be switched off"));
}

absl::Status Conflict(int fd, const std::string& path, const char* permission, bool it_uses) {
  return WithReason(
      absl::FailedPreconditionError(absl::StrCat(
          "\"", path, "\" is in use: another program ", it_uses ? "holds" : "does not share", " the \"",
          permission, "\" permission", DescribeHolders(fd), "; close the image there first")),
      kReasonImageLocked);
}

absl::Status CheckClaim(int fd, const std::string& path, const Claim& claim) {
  for (int p = 0; p < kPermissions; ++p) {
    const uint32_t bit = 1u << p;
    int error = 0;
    if ((claim.used & bit) != 0 && HeldByOther(fd, kUnsharedBase + p, &error)) {
      return Conflict(fd, path, kPermissionNames[p], false);
    }
    if ((claim.unshared & bit) != 0 && HeldByOther(fd, kUsedBase + p, &error)) {
      return Conflict(fd, path, kPermissionNames[p], true);
    }
    if (error != 0) return LockError(fd, error, path);
  }
  return absl::OkStatus();
}

absl::Status Take(int fd, const std::string& path, const Claim& claim) {
  const int error = SetClaim(fd, F_RDLCK, claim);
  absl::Status status = error != 0 ? LockError(fd, error, path) : CheckClaim(fd, path, claim);
  if (!status.ok()) (void)SetClaim(fd, F_UNLCK, claim);
  return status;
}

}  // namespace

absl::Status LockImage(int fd, const std::string& path, LockMode mode, bool read_only) {
  if (mode == LockMode::kNone) return absl::OkStatus();
  return Take(fd, path, ClaimOf(mode, read_only));
}

absl::Status LockForResize(int fd, const std::string& path) { return Take(fd, path, {kResize, 0}); }

void UnlockAfterResize(int fd) { (void)SetClaim(fd, F_UNLCK, {kResize, 0}); }

absl::StatusOr<bool> IsOpenForWriting(int fd, const std::string& path) {
  int error = 0;
  const bool held = HeldByOther(fd, kUsedBase + 1, &error);
  if (error != 0) return absl::ErrnoToStatus(error, absl::StrCat("F_OFD_GETLK on \"", path, "\""));
  return held;
}

}  // namespace berth
