#include "control/validation.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "control/export_block_sizes.h"
#include "control/protobuf_time.h"
#include "control/status_details.h"
#include "image/secret/secret.h"
#include "nbd/access_rules.h"
#include "nbd/block_sizes.h"

namespace berth::control {
namespace {

constexpr size_t kMaxPathBytes = 4095;
constexpr size_t kMaxDescriptionBytes = 4096;
constexpr size_t kMaxSnapshotBytes = 1024;
constexpr uint32_t kMaxConnections = 16;
constexpr int32_t kDefaultPageSize = 100;
constexpr int32_t kMaxPageSize = 1000;
constexpr absl::Duration kMaxTimeout = absl::Hours(24 * 365);
// Linux's minor numbers have 20 bits; an nbd device takes at least one.
constexpr uint32_t kMaxDeviceIndex = (1 << 20) - 1;
// The version of the token's form, so that an old token is refused and not misread.
constexpr absl::string_view kPageTokenPrefix = "1:";

bool IsNameByte(unsigned char c) { return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-'; }

absl::Status CheckTimeout(absl::string_view field, const google::protobuf::Duration& value) {
  if (value.seconds() == 0 && value.nanos() == 0) return absl::OkStatus();
  if (value.nanos() != 0 || value.seconds() < 0 || ToDuration(value) > kMaxTimeout) {
    return InvalidField(field, absl::StrCat(absl::FormatDuration(ToDuration(value)),
                                            " is not a whole number of seconds from 1 to ",
                                            absl::ToInt64Seconds(kMaxTimeout)));
  }
  return absl::OkStatus();
}

absl::Status CheckImage(const v1::Image& image) {
  if (image.format() == v1::IMAGE_FORMAT_UNSPECIFIED) {
    return InvalidField("spec.image.format",
                        "name the format: RAW, QCOW2, LUKS, MEMORY or NULL; it is never guessed");
  }
  if (!v1::ImageFormat_IsValid(image.format())) {
    return InvalidField(
        "spec.image.format",
        absl::StrCat(image.format(), " is no format of this server: RAW, QCOW2, LUKS, MEMORY or NULL"));
  }
  if (!v1::CacheMode_IsValid(image.cache())) {
    return InvalidField("spec.image.cache", absl::StrCat(image.cache(), " is no cache mode of this server"));
  }
  if (!v1::DiscardMode_IsValid(image.discard())) {
    return InvalidField("spec.image.discard",
                        absl::StrCat(image.discard(), " is no discard mode of this server"));
  }
  if (!image.snapshot().empty() && image.format() != v1::IMAGE_FORMAT_QCOW2) {
    return InvalidField("spec.image.snapshot", "only a QCOW2 image has internal snapshots; leave this empty");
  }
  if (image.snapshot().size() > kMaxSnapshotBytes) {
    return InvalidField("spec.image.snapshot",
                        absl::StrCat("has ", image.snapshot().size(), " bytes; at most ", kMaxSnapshotBytes));
  }
  if (absl::Status status =
          CheckBackingFormat("spec.image.backing_format", image.format(), image.backing_format());
      !status.ok()) {
    return status;
  }
  if (image.has_secret()) {
    if (image.format() != v1::IMAGE_FORMAT_LUKS && image.format() != v1::IMAGE_FORMAT_QCOW2) {
      return InvalidField("spec.image.secret", "only LUKS and QCOW2 images are encrypted; leave this empty");
    }
    if (absl::Status status = CheckSecret("spec.image.secret", image.secret()); !status.ok()) return status;
  }
  if (image.format() == v1::IMAGE_FORMAT_RAW || image.format() == v1::IMAGE_FORMAT_QCOW2 ||
      image.format() == v1::IMAGE_FORMAT_LUKS) {
    if (image.size_bytes() != 0) {
      return InvalidField(
          "spec.image.size_bytes",
          "the image has the size that its file says; leave this 0, or resize with UpdateExport");
    }
    return CheckImagePath("spec.image.path", image.path());
  }
  if (!image.path().empty()) {
    return InvalidField("spec.image.path", "a MEMORY or NULL image has no file; leave this empty");
  }
  return CheckSize("spec.image.size_bytes", image.size_bytes());
}

}  // namespace

absl::Status CheckName(absl::string_view field, absl::string_view name) {
  if (name.empty()) return InvalidField(field, "must not be empty");
  const bool valid = name.size() <= kMaxNameBytes &&
                     absl::ascii_isalnum(static_cast<unsigned char>(name[0])) &&
                     std::all_of(name.begin(), name.end(), IsNameByte);
  if (valid) return absl::OkStatus();
  return InvalidField(field,
                      absl::StrCat(Quoted(name), " is no name: 1 to ", kMaxNameBytes,
                                   " bytes of letters, digits, '.', '_' and '-', the first a letter or a "
                                   "digit"));
}

absl::Status CheckImagePath(absl::string_view field, absl::string_view path) {
  if (path.empty()) return InvalidField(field, "must not be empty");
  if (path[0] != '/') return InvalidField(field, absl::StrCat(Quoted(path), " is not an absolute path"));
  if (path.size() > kMaxPathBytes) {
    return InvalidField(field, absl::StrCat(Quoted(path), " is longer than ", kMaxPathBytes, " bytes"));
  }
  if (path.find('\0') != absl::string_view::npos) {
    return InvalidField(field, absl::StrCat(Quoted(path), " holds a NUL byte"));
  }
  return absl::OkStatus();
}

absl::Status CheckSize(absl::string_view field, uint64_t size_bytes) {
  if (size_bytes == 0) return InvalidField(field, "must not be 0");
  if (size_bytes > kMaxSizeBytes) {
    return InvalidField(field, absl::StrCat(size_bytes, " is more than the largest size, ", kMaxSizeBytes));
  }
  return absl::OkStatus();
}

absl::Status CheckBackingFormat(absl::string_view field, v1::ImageFormat format,
                                v1::ImageFormat backing_format) {
  if (backing_format == v1::IMAGE_FORMAT_UNSPECIFIED) return absl::OkStatus();
  if (format != v1::IMAGE_FORMAT_QCOW2) {
    return InvalidField(field, "only a QCOW2 image has a backing file; leave this unspecified");
  }
  if (backing_format != v1::IMAGE_FORMAT_RAW && backing_format != v1::IMAGE_FORMAT_QCOW2) {
    return InvalidField(
        field, absl::StrCat(v1::ImageFormat_IsValid(backing_format) ? v1::ImageFormat_Name(backing_format)
                                                                    : absl::StrCat(backing_format),
                            " is no format of a backing file: RAW or QCOW2"));
  }
  return absl::OkStatus();
}

absl::Status CheckSecret(absl::string_view field, const v1::Secret& secret) {
  switch (secret.source_case()) {
    case v1::Secret::kFile:
      return CheckImagePath(absl::StrCat(field, ".file"), secret.file());
    case v1::Secret::kValue:
      if (secret.value().empty() || secret.value().size() > kMaxSecretBytes) {
        return InvalidField(
            absl::StrCat(field, ".value"),
            absl::StrCat("has ", secret.value().size(), " bytes; a secret has 1 to ", kMaxSecretBytes));
      }
      return absl::OkStatus();
    case v1::Secret::SOURCE_NOT_SET:
      break;
  }
  return absl::OkStatus();
}

absl::Status CheckRateLimit(absl::string_view field, const v1::RateLimit& limit) {
  if (limit.burst_operations() != 0 && limit.operations_per_second() == 0) {
    return InvalidField(absl::StrCat(field, ".burst_operations"), "needs operations_per_second");
  }
  if (limit.burst_bytes() != 0 && limit.bytes_per_second() == 0) {
    return InvalidField(absl::StrCat(field, ".burst_bytes"), "needs bytes_per_second");
  }
  return absl::OkStatus();
}

absl::Status CheckDescription(absl::string_view field, absl::string_view description) {
  if (description.size() > kMaxDescriptionBytes) {
    return InvalidField(field,
                        absl::StrCat(description.size(), " bytes are more than ", kMaxDescriptionBytes));
  }
  return absl::OkStatus();
}

absl::Status CheckAllowedClients(absl::string_view field,
                                 const google::protobuf::RepeatedPtrField<std::string>& rules) {
  const absl::Status status = nbd::AccessRules::Parse({rules.begin(), rules.end()}).status();
  return status.ok() ? status : InvalidField(field, status.message());
}

absl::Status CheckBlockSizes(absl::string_view field, const v1::BlockSizes& sizes) {
  const nbd::BlockSizes wanted = ToBlockSizes(sizes);
  // One after the other, each beside defaults or what passed before, so that the error names its field.
  nbd::BlockSizes checked;
  checked.minimum = wanted.minimum;
  if (const absl::Status status = nbd::CheckBlockSizes(checked); !status.ok()) {
    return InvalidField(absl::StrCat(field, ".minimum_bytes"), status.message());
  }
  checked.maximum_payload = wanted.maximum_payload;
  if (const absl::Status status = nbd::CheckBlockSizes(checked); !status.ok()) {
    return InvalidField(absl::StrCat(field, ".maximum_payload_bytes"), status.message());
  }
  checked.preferred = wanted.preferred;
  if (const absl::Status status = nbd::CheckBlockSizes(checked); !status.ok()) {
    return InvalidField(absl::StrCat(field, ".preferred_bytes"), status.message());
  }
  if (wanted.must_be_asked_for && !wanted.constraining()) {
    return InvalidField(absl::StrCat(field, ".must_be_asked_for"),
                        "there is nothing to ask for; set minimum_bytes or maximum_payload_bytes");
  }
  return absl::OkStatus();
}

absl::Status CheckClientResize(absl::string_view field, const v1::ExportSpec& spec) {
  if (!spec.client_resize()) return absl::OkStatus();
  if (spec.read_only()) return InvalidField(field, "a read-only export keeps its size; set one of the two");
  if (spec.length_bytes() != 0) {
    return InvalidField(field, "a part of fixed length keeps its size; leave length_bytes 0, for the end");
  }
  return absl::OkStatus();
}

absl::Status CheckExportSpec(const v1::ExportSpec& spec) {
  if (!spec.has_image()) return InvalidField("spec.image", "is missing");
  if (absl::Status status = CheckImage(spec.image()); !status.ok()) return status;
  if (absl::Status status = CheckDescription("spec.description", spec.description()); !status.ok()) {
    return status;
  }
  if (spec.offset_bytes() > kMaxSizeBytes) {
    return InvalidField("spec.offset_bytes",
                        absl::StrCat(spec.offset_bytes(), " is more than ", kMaxSizeBytes));
  }
  if (spec.length_bytes() > kMaxSizeBytes - spec.offset_bytes()) {
    return InvalidField("spec.length_bytes", absl::StrCat(spec.length_bytes(), " is more than ",
                                                          kMaxSizeBytes - spec.offset_bytes()));
  }
  if (spec.read_only() && spec.shared_writers()) {
    return InvalidField("spec.shared_writers", "a read-only export has no writers; set one of the two");
  }
  if (absl::Status status = CheckAllowedClients("spec.allowed_clients", spec.allowed_clients());
      !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckBlockSizes("spec.block_sizes", spec.block_sizes()); !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckClientResize("spec.client_resize", spec); !status.ok()) return status;
  return CheckRateLimit("spec.rate_limit", spec.rate_limit());
}

absl::Status CheckAttachmentSpec(const v1::AttachmentSpec& spec) {
  if (absl::Status status = CheckName("spec.export", spec.export_()); !status.ok()) return status;
  if (!spec.device().empty()) {
    absl::string_view digits = spec.device();
    uint32_t index = 0;
    // The text must be the kernel's own spelling: "/dev/nbd07" is no device.
    if (!absl::ConsumePrefix(&digits, "/dev/nbd") || !absl::SimpleAtoi(digits, &index) ||
        absl::StrCat(index) != digits || index > kMaxDeviceIndex) {
      return InvalidField(
          "spec.device",
          absl::StrCat(Quoted(spec.device()), " is not /dev/nbdN; leave it empty for any free device"));
    }
  }
  if (spec.connections() > kMaxConnections) {
    return InvalidField("spec.connections",
                        absl::StrCat(spec.connections(), " is more than ", kMaxConnections));
  }
  const uint32_t block_size = spec.block_size();
  if (block_size != 0 && block_size != 512 && block_size != 1024 && block_size != 2048 &&
      block_size != 4096) {
    return InvalidField("spec.block_size", absl::StrCat(block_size, " is none of 512, 1024, 2048 and 4096"));
  }
  if (absl::Status status = CheckTimeout("spec.timeout", spec.timeout()); !status.ok()) return status;
  return CheckTimeout("spec.dead_connection_timeout", spec.dead_connection_timeout());
}

absl::StatusOr<Page> ParsePage(int32_t page_size, const std::string& page_token) {
  if (page_size < 0) return InvalidField("page_size", absl::StrCat(page_size, " is negative"));
  Page page;
  page.size = static_cast<size_t>(page_size == 0 ? kDefaultPageSize : std::min(page_size, kMaxPageSize));
  if (page_token.empty()) return page;
  std::string token;
  absl::string_view after;
  if (page_token.size() <= 2 * kMaxNameBytes && absl::WebSafeBase64Unescape(page_token, &token)) {
    after = token;
    if (absl::ConsumePrefix(&after, kPageTokenPrefix) && CheckName("page_token", after).ok()) {
      page.after = std::string(after.data(), after.size());
      return page;
    }
  }
  return InvalidField("page_token", absl::StrCat(Quoted(page_token), " did not come from a list's answer"));
}

std::string PageToken(absl::string_view last) {
  return absl::WebSafeBase64Escape(absl::StrCat(kPageTokenPrefix, last));
}

}  // namespace berth::control
