// What a request may hold, checked once at the edge: everything behind it may rely on that.
//
// Pure; any thread. Errors are InvalidField() of status_details, with the field's path in the request.
#ifndef BERTH_CONTROL_VALIDATION_H_
#define BERTH_CONTROL_VALIDATION_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "berth/v1/attachments.pb.h"
#include "berth/v1/exports.pb.h"

namespace berth::control {

// Names of exports and attachments: 1 to 200 bytes of letters, digits, '.', '_' and '-', the first a letter
// or a digit. They are file names in the state directory, with a few bytes more.
inline constexpr size_t kMaxNameBytes = 200;
absl::Status CheckName(absl::string_view field, absl::string_view name);

// An absolute path of at most 4,095 bytes without NUL. Whether it is allowed is decided where it is opened.
absl::Status CheckImagePath(absl::string_view field, absl::string_view path);

// The largest size that Linux can address.
inline constexpr uint64_t kMaxSizeBytes = (uint64_t{1} << 63) - 512;
absl::Status CheckSize(absl::string_view field, uint64_t size_bytes);

// The format of backing files, which need not be given, beside the format of the image.
absl::Status CheckBackingFormat(absl::string_view field, v1::ImageFormat format,
                                v1::ImageFormat backing_format);

// The shape alone; the error never shows a value.
absl::Status CheckSecret(absl::string_view field, const v1::Secret& secret);
absl::Status CheckRateLimit(absl::string_view field, const v1::RateLimit& limit);
absl::Status CheckDescription(absl::string_view field, absl::string_view description);
absl::Status CheckAllowedClients(absl::string_view field,
                                 const google::protobuf::RepeatedPtrField<std::string>& rules);
absl::Status CheckBlockSizes(absl::string_view field, const v1::BlockSizes& sizes);
// Whether what `spec` says of resizes by clients can be.
absl::Status CheckClientResize(absl::string_view field, const v1::ExportSpec& spec);
absl::Status CheckExportSpec(const v1::ExportSpec& spec);
absl::Status CheckAttachmentSpec(const v1::AttachmentSpec& spec);

// A page of a list in the order of names: those after `after`, at most `size`.
struct Page {
  std::string after;
  size_t size = 0;
};
absl::StatusOr<Page> ParsePage(int32_t page_size, const std::string& page_token);
// The token of the page that follows `last`.
std::string PageToken(absl::string_view last);

}  // namespace berth::control

#endif  // BERTH_CONTROL_VALIDATION_H_
