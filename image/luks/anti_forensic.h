// The anti-forensic splitter: a key becomes so many stripes, of which every one is needed to have it back.
// Whoever destroys any part of the stripes on a disk has destroyed the key.
#ifndef BERTH_IMAGE_LUKS_ANTI_FORENSIC_H_
#define BERTH_IMAGE_LUKS_ANTI_FORENSIC_H_

#include <openssl/evp.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace berth::luks {

// `split` has a whole number of keys' sizes, one at least. INTERNAL where the library fails.
absl::Status SplitKey(const EVP_MD* hash, absl::Span<const uint8_t> key, absl::Span<uint8_t> split);
absl::Status MergeKey(const EVP_MD* hash, absl::Span<const uint8_t> split, absl::Span<uint8_t> key);

}  // namespace berth::luks

#endif  // BERTH_IMAGE_LUKS_ANTI_FORENSIC_H_
