// Key slots: from a secret to the master key of a LUKS image, and a new image's first slot.
#ifndef BERTH_IMAGE_LUKS_KEY_SLOTS_H_
#define BERTH_IMAGE_LUKS_KEY_SLOTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "image/luks/luks_header.h"
#include "image/secret/secret.h"

namespace berth::luks {

// Reasons (image/block/error_reason.h).
inline constexpr char kReasonSecretNeeded[] = "SECRET_NEEDED";
inline constexpr char kReasonWrongSecret[] = "WRONG_SECRET";

// How long opening an image may take before it is given up: looked at before each slot, so that one slot more
// may be tried.
inline constexpr absl::Duration kUnlockTimeout = absl::Seconds(60);

// Fills `out` with what lies `offset` bytes behind the start of the header.
using MaterialReader = absl::FunctionRef<absl::Status(uint64_t offset, absl::Span<uint8_t> out)>;

// The master key. Tries the slots in use, in order. FAILED_PRECONDITION (reason SECRET_NEEDED) without a
// secret, PERMISSION_DENIED (reason WRONG_SECRET) where it opens no slot, UNIMPLEMENTED for a hash or cipher
// that is not known, DEADLINE_EXCEEDED. Blocks, and computes for seconds.
absl::StatusOr<Secret> Unlock(const Header& header, const Secret& secret, MaterialReader read,
                              absl::Time deadline);

// Puts `key` into the slot `index` of `header`, whose iterations, stripes and offset are set, and its digest
// into the header, whose digest_iterations are; chooses the salts. Returns the key material to be written
// at the slot's offset.
absl::StatusOr<std::vector<uint8_t>> FillSlot(const Secret& key, const Secret& secret, size_t index,
                                              Header* header);

// What is said where an encrypted image is opened without a secret.
absl::Status SecretNeeded();

}  // namespace berth::luks

#endif  // BERTH_IMAGE_LUKS_KEY_SLOTS_H_
