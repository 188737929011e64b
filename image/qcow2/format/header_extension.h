// "Header extensions": the area between the header and the backing file's name.
#ifndef BERTH_IMAGE_QCOW2_FORMAT_HEADER_EXTENSION_H_
#define BERTH_IMAGE_QCOW2_FORMAT_HEADER_EXTENSION_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "image/qcow2/format/header.h"

namespace berth::qcow2 {

// Reads the extensions in `area`, which need not have an end mark, into `header`. INVALID_ARGUMENT names the
// extension that is broken.
absl::Status DecodeExtensions(absl::Span<const uint8_t> area, Header* header);

// Appends the extensions of `header` and their end mark.
void AppendExtensions(const Header& header, std::vector<uint8_t>* bytes);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_FORMAT_HEADER_EXTENSION_H_
